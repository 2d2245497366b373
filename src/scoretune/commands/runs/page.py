"""Runs side by side on one page that loads nothing: their curves, settings and results."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from scoretune.commands.runs.index import Comparison
from scoretune.core.errors import UserError
from scoretune.evaluate.report import render
from scoretune.evaluate.report.charts import Axes, Series, chart, read_points, thinned
from scoretune.evaluate.report.record import EVALUATIONS

HUES, DASHES = 6, ("", " dashed", " dotted")  # classes of CSS; with both, 18 runs look different
MOST_DOTS = 30


class Panel(NamedTuple):
    """One chart: which number of which log, against network evaluations."""

    title: str
    log: str
    keys: tuple[str, ...]
    axes: Axes
    bounds: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    """Where the ends of its interval are."""


REWARD = Axes(EVALUATIONS, "mean reward")
ACCURACY = Axes(EVALUATIONS, "share of pictures as asked", percent=True, least_span=0.3)
PANELS = (
    Panel(
        "Reward while training", "metrics", ("reward",), REWARD, (("reward_low",), ("reward_high",))
    ),
    Panel("Reward, deterministic sampler", "evaluations", ("reward", "deterministic"), REWARD),
    *(
        Panel(
            f"{who.capitalize()} accuracy",
            "evaluations",
            (who, "overall"),
            ACCURACY,
            ((who, "low"), (who, "high")),
        )
        for who in ("judge", "reader")
    ),
    Panel("Chain KL to the base model", "evaluations", ("chain_kl",), Axes(EVALUATIONS, "nats")),
    Panel("Girsanov KL to it", "evaluations", ("girsanov_kl",), Axes(EVALUATIONS, "nats")),
    Panel("Loss", "metrics", ("loss",), Axes(EVALUATIONS, "loss")),
)


def write_page(comparison: Comparison, path: Path) -> Path:
    """Write the page. Raises UserError where it cannot be written."""
    charts = [(panel.title, _chart(panel, comparison)) for panel in PANELS]
    tables: tuple[tuple[str, str, Any], ...] = (
        ("Results", "Intervals are of 95 % over prompts, of one run each.", comparison.results),
        (
            "Settings that differ",
            "" if comparison.settings else "All settings are the same.",
            comparison.settings,
        ),
    )
    values = {
        "title": f"{len(comparison.names)} runs side by side",
        "charts": [(title, drawn) for title, drawn in charts if drawn],
        "runs": [(name, _style(i)) for i, name in enumerate(comparison.names)],
        "tables": tables,
    }
    text = render.text("compare.html", values, "scoretune.commands.runs")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return render.write(path, text)
    except OSError as error:
        raise UserError(f"cannot write {str(path)!r} ({error}): choose another --out") from error


def _chart(panel: Panel, comparison: Comparison) -> Markup | None:
    """A line a run, and a band where intervals are recorded; None without any."""
    low, high = panel.bounds
    lines = []
    for i, (name, record) in enumerate(zip(comparison.names, comparison.records, strict=True)):
        rows = getattr(record, panel.log)
        points = read_points(rows, "network_evaluations", *panel.keys, low=low, high=high)
        lines.append(Series(name, _style(i), thinned(points), dots=len(points) <= MOST_DOTS))
    return chart(lines[::-1], panel.axes)  # the first run on top


def _style(place: int) -> str:
    return f"hue{1 + place % HUES}{DASHES[place // HUES % len(DASHES)]}"
