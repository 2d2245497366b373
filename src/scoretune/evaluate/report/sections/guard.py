"""The report's section on the guard: the reward beside the judge, and what each watch saw."""

from __future__ import annotations

from html import escape

from scoretune.evaluate.report import charts as draw
from scoretune.evaluate.report.charts import Axes, Point, Series, percent
from scoretune.evaluate.report.record import UPDATE, Record, Row, at, number

WATCHES = ("judge", "path_kl", "diversity", "pattern")
NAMES = {
    "judge": "Judge",
    "path_kl": "Path KL, nats",
    "diversity": "Variety of a prompt\u2019s samples",
    "pattern": "Periodic patterns",
}


def slots(record: Record) -> dict[str, str]:
    """The section by its slots in the template; an empty string for what lacks its data."""
    seen = [row for row in record.evaluations if isinstance(row.get("guard"), dict)]
    return {
        "guard": _chart(record, seen),
        "guard_told": told(record) if seen else "",
        "guard_watches": _watches(record, seen) if seen else "",
    }


def told(record: Record) -> str:
    """What the guard did, in a few sentences; an empty string where nothing rang."""
    alarms = record.alarms
    if not alarms:
        return "No alarm was raised."
    first = alarms[0]
    text = f"<b>Alarm at update {number(first, 'update') or 0:.0f}:</b> "
    text += "; ".join(escape(str(a.get("text"))) for a in alarms if a["update"] == first["update"])
    text += "."
    guard = at(record.result, "guard")
    ended, kept = number(guard, "ended"), number(guard, "kept")
    if ended is None or kept is None:
        return text + (" The run went on: guard.action was warn." if record.result else "")
    if at(guard, "action") == "rollback":
        return text + f" The run ended there and went back to the weights of update {kept:.0f}."
    return text + " The run ended there."


def _chart(record: Record, seen: list[Row]) -> str:
    """Gains of the optimised reward and the judge, in deviations of the base model's values."""
    lines = [
        Series("optimised reward", "reader", _points(seen, "reward_gain"), dashed=True),
        Series("judge, never optimised", "judge", _points(seen, "judge_gain")),
    ]
    marks = tuple(dict.fromkeys(float(alarm["update"]) for alarm in record.alarms))
    label = "gain, in deviations of the base"
    return draw.chart(lines, Axes(UPDATE, label, least_span=0.5, from_zero=True, marks=marks))


def _points(seen: list[Row], key: str) -> tuple[Point, ...]:
    return tuple(
        Point(update, value)
        for row in seen
        if (update := number(row, "update")) is not None
        and (value := number(row, "guard", key)) is not None
    )


def _watches(record: Record, seen: list[Row]) -> str:
    """A row for each watch: where it began, its last value, its limit, and its alarm."""
    rung = {str(a.get("watch")): f"update {a['update']:.0f}" for a in reversed(record.alarms)}
    first, last = seen[0], seen[-1]
    limits = at(record.about, "config", "guard")
    fell, chance = (number(last, "guard", key) for key in ("fall", "chance"))
    now = number(last, "guard", "judge")
    best = None if now is None else now + (fell or 0.0)
    margin = max(chance or 0.0, number(limits, "margin") or 0.0)
    share, times = (number(limits, key) for key in ("diversity", "pattern"))
    rows = {
        "judge": (
            _plain(number(first, "guard", "judge")),
            _plain(now),
            "" if best is None else f"at least {_plain(best - margin)}: {_plain(best)} at best",
        ),
        "path_kl": (
            _plain(number(first, "path_kl")),
            _plain(number(last, "path_kl")),
            f"at most {_plain(number(limits, 'path_kl'))}"
            if number(limits, "path_kl")
            else "no budget",
        ),
        "diversity": (
            percent(1.0),
            percent(number(last, "guard", "diversity") or 0.0),
            "" if share is None else f"at least {percent(share)}",
        ),
        "pattern": (
            "1",
            _plain(number(last, "guard", "pattern")),
            "" if times is None else f"at most {times:g}",
        ),
    }
    shown = [name for name in WATCHES if rows[name][1]]
    body = "".join(
        f"<tr><td>{NAMES[name]}</td>"
        + "".join(f"<td>{cell}</td>" for cell in (*rows[name], rung.get(name, "none")))
        + "</tr>"
        for name in shown
    )
    head = "".join(f"<th>{name}</th>" for name in ("", "base", "last", "limit", "alarm"))
    return f'<table class="watches"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}".replace("-", "\u2212")
