"""Bars of the accuracy before and after, a task a row, for the judge and for the reader."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from scoretune.evaluate.report.charts import bars
from scoretune.evaluate.report.record import Record, at, change_of


def context(record: Record) -> dict[str, Any] | None:
    """Who looked, with its chart."""
    charts = [(who, _chart(record, who)) for who in ("judge", "reader")]
    networks = [(who, drawn) for who, drawn in charts if drawn]
    return {"networks": networks} if networks else None


def _chart(record: Record, who: str) -> Markup | None:
    measured = [at(row, who, "tasks") for row in record.evaluations]
    measured.append(at(record.result, who, "final", "tasks"))
    names = dict.fromkeys(name for tasks in measured if isinstance(tasks, dict) for name in tasks)
    changes = {name: change_of(record, who, "tasks", name) for name in names}
    rows = [(name, change.before, change.after) for name, change in changes.items() if change]
    return bars(rows, who, f"{who} accuracy, % of pictures")
