"""Runs side by side on one page that loads nothing: their curves, settings and results."""

from __future__ import annotations

import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from scoretune.commands.runs.index import Comparison
from scoretune.core.errors import UserError
from scoretune.evaluate.report.record import NOTHING, Row, number

COLOURS = ("#0869a6", "#ad7300", "#9a4f86", "#00735a", "#b8400f", "#57616b")
INK = "#010203"  # stands for the page's own colour of text, which differs by day and by night
STYLE = """
:root { --page: #faf9f6; --panel: #fff; --ink: #1c2228; --soft: #57616b; --rule: #e3e1da;
  color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --page: #11151a; --panel: #181e25; --ink: #e6e9ec;
  --soft: #9da8b3; --rule: #2a323b; } }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.6 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 24px 72px; }
h1 { font-size: 26px; margin: 0 0 18px; } h2 { font-size: 20px; margin: 44px 0 6px; }
figure { background: var(--panel); border: 1px solid var(--rule); border-radius: 12px; margin: 0;
  padding: 14px; color: var(--ink); }
figure svg { width: 100%; height: auto; display: block; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(380px, 1fr)); gap: 14px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { text-align: left; padding: 5px 14px 5px 0; border-top: 1px solid var(--rule);
  overflow-wrap: anywhere; vertical-align: top; }
th, td:first-child { color: var(--soft); font-weight: 500; }
.dot { display: inline-block; width: 11px; height: 11px; border-radius: 50%; margin-right: 7px; }
"""


class Panel(NamedTuple):
    """One chart: which numbers of which log, against network evaluations."""

    title: str
    log: str
    keys: tuple[str, ...]
    bounds: tuple[tuple[str, ...], tuple[str, ...]] | None = None


PANELS = (
    Panel("Reward while training", "metrics", ("reward",), (("reward_low",), ("reward_high",))),
    Panel("Reward, deterministic sampler", "evaluations", ("reward", "deterministic")),
    Panel(
        "Judge accuracy", "evaluations", ("judge", "overall"), (("judge", "low"), ("judge", "high"))
    ),
    Panel(
        "Reader accuracy",
        "evaluations",
        ("reader", "overall"),
        (("reader", "low"), ("reader", "high")),
    ),
    Panel("Path KL to the pretrained model, nats", "evaluations", ("path_kl",)),
    Panel("Loss", "metrics", ("loss",)),
)


def write_page(compared: Comparison, path: Path) -> Path:
    """Write the page. Raises UserError where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_page(compared), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {str(path)!r} ({error}): choose another --out") from error
    return path


def _page(compared: Comparison) -> str:
    charts = [chart for panel in PANELS if (chart := _chart(panel, compared))]
    drawn = "".join(f"<figure>{chart}</figure>" for chart in charts)
    alike = "<p>All settings are the same.</p>"
    settings = _table(compared.names, compared.settings) if compared.settings else alike
    title = f"{len(compared.names)} runs side by side"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style><main><h1>{title}</h1>"
        f'<div class="two">{drawn or "<p>No run has logged anything yet.</p>"}</div>'
        "<h2>Results</h2><p>Intervals are of 95 % over prompts, of one run each.</p>"
        f"{_table(compared.names, compared.results)}<h2>Settings that differ</h2>{settings}"
        "</main></html>\n"
    )


def _table(names: Sequence[str], rows: Any) -> str:
    heads = "".join(f"<th>{_dot(i)}{escape(name)}</th>" for i, name in enumerate(names))
    body = ""
    for name, row in rows.items():
        cells = "".join(f"<td>{escape(NOTHING if v is None else str(v))}</td>" for v in row)
        body += f"<tr><td>{escape(name)}</td>{cells}</tr>"
    return f"<table><tr><th></th>{heads}</tr>{body}</table>"


def _dot(place: int) -> str:
    return f'<span class="dot" style="background:{COLOURS[place % len(COLOURS)]}"></span>'


def _chart(panel: Panel, compared: Comparison) -> str:
    """An SVG with a line a run, and a band where intervals are known; empty without any."""
    lines = [_points(getattr(record, panel.log), panel) for record in compared.records]
    if not any(lines):
        return ""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    inks = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    style = dict.fromkeys(inks, INK) | {"svg.fonttype": "none", "svg.hashsalt": panel.title}
    with rc_context(style):
        figure = Figure(figsize=(6.2, 3.9), layout="constrained")
        axes = figure.subplots()
        for i, (name, points) in enumerate(zip(compared.names, lines, strict=True)):
            _line(axes, points, name, i)
        axes.set_title(panel.title, loc="left", fontsize=11)
        axes.set_xlabel("network evaluations")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=8)
        held = io.StringIO()
        figure.savefig(held, format="svg", transparent=True, metadata={"Date": None})
    text = held.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor")


Point = tuple[float, float, float | None, float | None]


def _line(axes: Any, points: Sequence[Point], name: str, place: int) -> None:
    if not points:
        return
    colour, dashes = COLOURS[place % len(COLOURS)], ("-", "--", ":")[place // len(COLOURS) % 3]
    x, y, low, high = zip(*points, strict=True)
    few = "o" if len(points) <= 30 else ""
    axes.plot(x, y, dashes, color=colour, label=name, linewidth=1.8, marker=few, markersize=4)
    if None not in low and None not in high:
        axes.fill_between(x, low, high, color=colour, alpha=0.14, linewidth=0)


def _points(rows: Sequence[Row], panel: Panel) -> list[Point]:
    found = []
    for row in rows:
        x, y = number(row, "network_evaluations"), number(row, *panel.keys)
        if x is not None and y is not None:
            ends = (number(row, *keys) for keys in panel.bounds or ())
            found.append((x, y, *(ends if panel.bounds else (None, None))))
    return found
