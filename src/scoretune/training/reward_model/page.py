"""The report of a reward model: how often it agrees with people, and a reliability diagram."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scoretune.evaluate.report import render
from scoretune.evaluate.report.charts import Axes, Point, Series, chart
from scoretune.evaluate.report.format import percent
from scoretune.preference import Reliability

TIES = {
    "bradley_terry": "Bradley–Terry (nobody voted for a tie)",
    "rao_kupper": "Rao–Kupper, ln θ",
    "davidson": "Davidson, ν",
}


def write(folder: Path, result: dict[str, Any], calibration: Reliability) -> Path:
    """FOLDER/report.html."""
    values = {
        "title": "A reward from votes",
        "result": result,
        "rows": _rows(result),
        "diagram": _diagram(calibration),
        "folder": str(folder),
    }
    text = render.text("reward_model.html", values, "scoretune.training")
    return render.write(folder / "report.html", text)


def _rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    held, settings = result["held_out"], result["settings"]
    accuracy = f"{percent(held['accuracy'])} [{percent(held['low'])}, {percent(held['high'])}]"
    rows = [
        ("Held-out votes that it agrees with, 95 % interval", accuracy),
        ("Held-out pairs, prompts", f"{held['pairs']}, {held['prompts']}"),
        ("Loss a held-out vote", f"{held['loss']:.3f} nats"),
    ]
    if held["raters"] is not None:
        low, high = percent(held["raters"]), percent(held["majority"])
        span = f"{low}, as two raters do, to {high}, as each pair's majority does"
        rows.insert(1, ("A perfect reward would agree with", span))
    if "calibration_error" in held:
        rows.append(("Expected calibration error", f"{held['calibration_error']:.3f}"))
    if held["factor"] is not None:
        factor = f"{held['factor']:.2f} ± {held['factor_error']:.2f}"
        rows.append(("Scale of held-out votes over its own", factor))
    tie = TIES[result["tie_model"]]
    if result["tie"] is not None:
        tie += f" = {result['tie']:.2f} ± {result['tie_error']:.2f}"
    rows += [
        ("Ties", tie),
        ("Features", result["features"]),
        ("Members", str(settings["members"])),
        ("Pairs, rankings, votes", f"{result['pairs']}, {result['rankings']}, {result['votes']:g}"),
    ]
    return rows


def _diagram(calibration: Reliability) -> Any:
    """The share of votes for the likelier side by how sure the model was."""
    bins = zip(
        calibration.weight.tolist(),
        calibration.confidence.tolist(),
        calibration.share.tolist(),
        strict=True,
    )
    points = tuple(Point(sure, share, *_interval(share, n)) for n, sure, share in bins if n)
    ideal = Series("as predicted", "hue2", (Point(0.5, 0.5), Point(1.0, 1.0)), dashed=True)
    voted = Series("voted", "hue1", points)
    axes = Axes("predicted share", "share of votes", percent=True, least_span=0.5)
    return chart([ideal, voted], axes)


def _interval(share: float, votes: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of so many votes."""
    z = 1.96
    centre = (share + z * z / (2 * votes)) / (1 + z * z / votes)
    half = z / (1 + z * z / votes) * (share * (1 - share) / votes + z * z / (4 * votes**2)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)
