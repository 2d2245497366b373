"""Accuracy on held-out prompts and the training reward, against network evaluations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from scoretune.evaluate.report.charts import Axes, Series, chart, read_points, thinned
from scoretune.evaluate.report.record import EVALUATIONS, Record

SPENT = "network_evaluations"


def context(record: Record) -> dict[str, Any] | None:
    """The chart, and whether a judge's accuracy is on it."""
    bounds = {"low": ("reward_low",), "high": ("reward_high",)}
    points = thinned(read_points(record.metrics, SPENT, "reward", **bounds))
    reward = Series("training reward", "faint", points, dots=False)
    accuracies = [_accuracy(record, who) for who in ("reader", "judge")]
    if any(line.points for line in accuracies):
        fits = all(0 <= p.y <= 1 for p in reward.points)  # else it cannot share the axis
        axes = Axes(EVALUATIONS, "share of pictures as asked", percent=True, least_span=0.3)
        drawn = chart([*([reward] if fits else []), *accuracies], axes)
    else:
        axes = Axes(EVALUATIONS, "mean training reward", least_span=0.05)
        drawn = chart([replace(reward, style="plain")], axes)
    return {"chart": drawn, "judged": record.judged} if drawn else None


def _accuracy(record: Record, who: str) -> Series:
    bounds = {"low": (who, "low"), "high": (who, "high")}
    points = read_points(record.evaluations, SPENT, who, "overall", **bounds)
    return Series(f"{who} accuracy", who, points, dashed=who == "reader")
