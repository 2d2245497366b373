"""The guard: the reward beside the judge, and what each watch saw."""

from __future__ import annotations

from typing import Any, NamedTuple

from scoretune.evaluate.report.charts import Axes, Series, chart, read_points
from scoretune.evaluate.report.format import level, percent
from scoretune.evaluate.report.record import UPDATE, Record, Row, at, number

NAMES = {
    "judge": "Judge",
    "chain_kl": "Chain KL, nats",
    "diversity": "Variety of a prompt\u2019s samples",
    "pattern": "Periodic patterns",
}


class Alarm(NamedTuple):
    """The first alarm in words."""

    title: str
    text: str


def context(record: Record) -> dict[str, Any] | None:
    """The chart of both gains, the first alarm, and a row for each watch."""
    rows = [row for row in record.evaluations if isinstance(row.get("guard"), dict)]
    lines = [
        Series("optimised reward", "reader", _points(rows, "reward_gain"), dashed=True),
        Series("judge, never optimised", "judge", _points(rows, "judge_gain")),
    ]
    marks = tuple(dict.fromkeys(float(alarm["update"]) for alarm in record.alarms))
    label = "gain, in deviations of the base"
    drawn = chart(lines, Axes(UPDATE, label, least_span=0.5, from_zero=True, marks=marks))
    if not drawn:
        return None
    return {"chart": drawn, "alarm": alarm(record), "watches": _watches(record, rows)}


def alarm(record: Record) -> Alarm | None:
    """When and why the guard first rang, and what it did; None where nothing rang."""
    if not record.alarms:
        return None
    update = record.alarms[0]["update"]
    texts = "; ".join(str(row.get("text")) for row in record.alarms if row["update"] == update)
    guard = at(record.result, "guard")
    ended, kept = number(guard, "ended"), number(guard, "kept")
    if ended is None or kept is None:
        then = " The run went on: guard.action was warn." if record.result else ""
    elif at(guard, "action") == "rollback":
        then = f" The run ended there and went back to the weights of update {kept:.0f}."
    else:
        then = " The run ended there."
    first = number(record.alarms[0], "update") or 0
    return Alarm(f"Alarm at update {first:.0f}:", f"{texts}.{then}")


def _points(rows: list[Row], key: str) -> Any:
    return read_points(rows, UPDATE, "guard", key)


def _watches(record: Record, rows: list[Row]) -> list[tuple[str, ...]]:
    """A row for each watch: its name, where it began, its last value, its limit, its alarm."""
    alarms = {str(a.get("watch")): f"update {a['update']:.0f}" for a in reversed(record.alarms)}
    first, last = rows[0], rows[-1]
    limits = at(record.about, "config", "guard")
    watches = {
        "judge": (
            _value(first, "guard", "judge"),
            _value(last, "guard", "judge"),
            _judge_limit(last, limits),
        ),
        "chain_kl": (
            _value(first, "chain_kl"),
            _value(last, "chain_kl"),
            f"at most {_value(limits, 'chain_kl')}" if number(limits, "chain_kl") else "no budget",
        ),
        "diversity": (
            percent(1.0),
            percent(number(last, "guard", "diversity") or 0.0),
            "" if (share := number(limits, "diversity")) is None else f"at least {percent(share)}",
        ),
        "pattern": (
            "1",
            _value(last, "guard", "pattern"),
            "" if (most := number(limits, "pattern")) is None else f"at most {most:g}",
        ),
    }
    return [
        (NAMES[name], *cells, alarms.get(name, "none"))
        for name, cells in watches.items()
        if cells[1]
    ]


def _judge_limit(last: Row, limits: Any) -> str:
    """How far the judge may fall from its best evaluation."""
    judge = number(last, "guard", "judge")
    if judge is None:
        return ""
    best = judge + (number(last, "guard", "fall") or 0.0)
    margin = max(number(last, "guard", "chance") or 0.0, number(limits, "margin") or 0.0)
    return f"at least {level(best - margin)}: {level(best)} at best"


def _value(row: Any, *keys: str) -> str:
    value = number(row, *keys)
    return "" if value is None else level(value)
