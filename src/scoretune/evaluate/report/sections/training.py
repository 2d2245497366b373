"""The distance from the base model, and how well the critic forecasts the reward."""

from __future__ import annotations

from typing import Any

from scoretune.evaluate.report.charts import Axes, Series, chart, read_points, thinned
from scoretune.evaluate.report.record import UPDATE, Record


def context(record: Record) -> dict[str, Any] | None:
    """The two charts; an objective may measure the KLs at evaluations alone."""
    kls = [_kl(record, "chain_kl", "plain"), _kl(record, "girsanov_kl", "quiet")]
    values = thinned(read_points(record.metrics, UPDATE, "explained_variance"))
    critic = Series("explained variance", "plain", values, dots=False)
    axes = Axes(UPDATE, "explained variance, fraction", floor=-1.0, from_zero=True)
    charts = {
        "kl": chart(kls, Axes(UPDATE, "KL, nats", from_zero=True)),
        "critic": chart([critic], axes),
    }
    return charts if any(charts.values()) else None


def _kl(record: Record, name: str, style: str) -> Series:
    trained = thinned(read_points(record.metrics, UPDATE, name))
    points = trained or read_points(record.evaluations, UPDATE, name)
    return Series(name.replace("_kl", ""), style, points, dots=not trained)
