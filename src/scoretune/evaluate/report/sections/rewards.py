"""A chart for each reward of a sum: what it adds to the training reward."""

from __future__ import annotations

from typing import Any

from scoretune.evaluate.report.charts import Axes, Series, chart, read_points, thinned
from scoretune.evaluate.report.record import EVALUATIONS, Record

PREFIX = "reward/"


def context(record: Record) -> dict[str, Any] | None:
    """Names with their charts; one reward alone is no sum."""
    keys = dict.fromkeys(k for row in record.metrics for k in row if k.startswith(PREFIX))
    if len(keys) < 2:
        return None
    axes = Axes(EVALUATIONS, "mean, times its weight", least_span=0.05)
    rewards = []
    for key in keys:
        name = key.removeprefix(PREFIX)
        points = thinned(read_points(record.metrics, "network_evaluations", key))
        rewards.append((name, chart([Series(name, "plain", points, dots=False)], axes) or ""))
    return {"rewards": rewards}
