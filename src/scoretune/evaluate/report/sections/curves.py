"""The loss and the distances to data of a network that learned from data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scoretune.evaluate.report.charts import Axes, Point, Series, chart, read_points, thinned
from scoretune.evaluate.report.record import UPDATE, Record, Row, number

NAMES = {
    "held_out_loss": "held-out loss",
    "sliced_wasserstein": "sliced Wasserstein distance",
    "frechet": "Fréchet distance",
}
NOTES = {
    "held_out_loss": "The objective on data that were never learned from, with fixed noise.",
    "sliced_wasserstein": "Of samples to held-out data. What known data score, as many of "
    "them, is about the best to hope for.",
    "frechet": "Between the Gaussians that fit samples and held-out data. Of pictures: their "
    "pixels, averaged to 8×8 where they are larger.",
}
MOST_DOTS = 40


def context(record: Record) -> dict[str, Any]:
    """A chart a number, with a dashed line at what data that were learned from score."""
    curves = [_curve("loss of training", record.metrics, "loss", "The batch's objective.")]
    for key, name in NAMES.items():
        real = number(record.result, "data", key, "real")
        curves.append(_curve(name, record.evaluations, key, NOTES[key], real))
    return {"curves": [curve for curve in curves if curve["chart"]]}


def _curve(
    name: str, rows: Sequence[Row], key: str, note: str, real: float | None = None
) -> dict[str, Any]:
    points = read_points(rows, UPDATE, key)
    lines = [Series(name, "plain", thinned(points), dots=len(points) < MOST_DOTS)]
    if real is not None and points:
        ends = (Point(points[0].x, real), Point(points[-1].x, real))
        lines.insert(0, Series("data that were learned from", "judge", ends, True, dots=False))
    drawn = chart(lines, Axes(UPDATE, name, from_zero=True))
    return {"name": name, "chart": drawn, "note": note}
