"""The distance from the base model, and how well the critic forecasts the reward."""

from __future__ import annotations

from typing import Any

from scoretune.evaluate.report.charts import Axes, Series, chart, read_points, thinned
from scoretune.evaluate.report.record import UPDATE, Record


def context(record: Record) -> dict[str, Any] | None:
    """The two charts; an objective may measure the path KL at evaluations alone."""
    trained = thinned(read_points(record.metrics, UPDATE, "path_kl"))
    points = trained or read_points(record.evaluations, UPDATE, "path_kl")
    path_kl = Series("path KL", "plain", points, dots=not trained)
    values = thinned(read_points(record.metrics, UPDATE, "explained_variance"))
    critic = Series("explained variance", "plain", values, dots=False)
    axes = Axes(UPDATE, "explained variance, fraction", floor=-1.0, from_zero=True)
    charts = {
        "path_kl": chart([path_kl], Axes(UPDATE, "path KL, nats", from_zero=True)),
        "critic": chart([critic], axes),
    }
    return charts if any(charts.values()) else None
