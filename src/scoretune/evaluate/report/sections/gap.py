"""The sampler gap: what noise is worth, while training and at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from scoretune.evaluate.report.charts import Axes, Point, Series, chart, read_points
from scoretune.evaluate.report.format import THIN, level, plain, shift
from scoretune.evaluate.report.record import (
    EVALUATIONS,
    UPDATE,
    Record,
    Row,
    at,
    number,
    reward_change,
)

HUES = 6
"""As many lines of stochasticity have a hue of their own, `hue1` to `hue6`."""


class Sampler(NamedTuple):
    """A row of a matrix; with η = 0 it is the ODE."""

    solver: str
    eta: float


def context(record: Record) -> dict[str, Any] | None:
    """The gap of every evaluation, or, for runs before it was measured, both rewards; the newest
    matrix of samplers and step counts, and its history."""
    gap = _gap(record)
    rewards = None if gap else _rewards(record)
    matrix = _matrix(record.gaps[-1]) if record.gaps else None
    if not (gap or rewards or matrix):
        return None
    return {
        "gap": gap,
        "rewards": rewards,
        "noise_alone_gained": _noise_alone_gained(record),
        "matrix": matrix,
        "etas": _etas(record) if len(record.gaps) > 1 else None,
    }


# ------------------------------------------------------------------------------ every evaluation


def _gap(record: Record) -> dict[str, Any] | None:
    lines = [
        Series("bias of the step count", "plain", _points(record, "bias"), dashed=True),
        Series("gap: stochastic less ODE, same steps", "noisy", _points(record, "gap")),
    ]
    if not lines[1].points:
        return None
    rows = [row for row in record.evaluations if number(row, "gap", "mean") is not None]
    first, last = rows[0], rows[-1]
    steps, eta = number(last, "gap", "steps"), number(last, "gap", "eta")
    biased = number(last, "bias", "mean") is not None
    return {
        "chart": chart(lines, Axes(UPDATE, "reward", least_span=0.02, from_zero=True)),
        "last": _interval(last, "gap"),
        "first": "" if last is first else _interval(first, "gap"),
        "steps": "" if steps is None else f"{steps:.0f}",
        "eta": "" if eta is None else f"{eta:g}",
        "bias": _interval(last, "bias") if biased else "",
        "sampler": str(at(last, "sampler") or "unknown"),
    }


def _points(record: Record, key: str) -> tuple[Point, ...]:
    bounds = {"low": (key, "low"), "high": (key, "high")}
    return read_points(record.evaluations, UPDATE, key, "mean", **bounds)


def _interval(row: Row, key: str) -> str:
    mean, low, high = (number(row, key, name) for name in ("mean", "low", "high"))
    text = shift(mean or 0.0)
    if low is None or high is None:
        return text
    return f"{text} (95{THIN}% interval {shift(low)} to {shift(high)})"


def _noise_alone_gained(record: Record) -> bool:
    """That only the noisy sampler gained, where the other's gain is more than chance."""
    noisy, ode = (reward_change(record, sampler) for sampler in ("stochastic", "deterministic"))
    if not noisy or not ode or ode.may_be_chance:
        return False
    return noisy.gain > 0 and ode.gain < 0.5 * noisy.gain


def _rewards(record: Record) -> dict[str, Any] | None:
    """Both rewards, of runs before gaps were measured."""
    noisy, ode = (
        read_points(record.evaluations, "network_evaluations", "reward", sampler)
        for sampler in ("stochastic", "deterministic")
    )
    lines = [
        Series("stochastic sampler", "noisy", noisy, dashed=True),
        Series("deterministic sampler", "plain", ode),
    ]
    drawn = chart(lines, Axes(EVALUATIONS, "mean reward", least_span=0.05))
    if not drawn:
        return None
    return {
        "chart": drawn,
        "noisy": reward_change(record, "stochastic"),
        "ode": reward_change(record, "deterministic"),
    }


# ------------------------------------------------------------------------------ the matrix


def _rows(line: Row) -> list[Row]:
    """The rows of a matrix that say which sampler they are about."""
    rows = at(line, "rows")
    return [
        row
        for row in (rows if isinstance(rows, list) else [])
        if number(row, "steps") is not None and number(row, "eta") is not None
    ]


def _sampler(row: Row) -> Sampler:
    return Sampler(str(row.get("solver")), number(row, "eta") or 0.0)


def steps_of(row: Row) -> int:
    return int(number(row, "steps") or 0)


def _step_counts(rows: Sequence[Row]) -> list[int]:
    return sorted(set(map(steps_of, rows)))


def _matrix(line: Row) -> dict[str, Any] | None:
    """A table of the ODE's reward and of every other sampler's gap, shaded by its size."""
    rows = _rows(line)
    if not rows:
        return None
    counts = _step_counts(rows)
    cells = {(_sampler(row), steps_of(row)): row for row in rows}
    largest = max(map(extent, rows))
    samplers = dict.fromkeys(map(_sampler, rows))
    return {
        "after": f"{number(line, 'update') or 0:.0f}",
        "steps": counts,
        "rows": [(s, [_cell(cells.get((s, n)), largest) for n in counts]) for s in samplers],
    }


def extent(row: Row) -> float:
    """The gap or its uncertainty, the larger: chance must not get the darkest colours."""
    gap, low, high = (number(row, key) or 0.0 for key in ("gap", "gap_low", "gap_high"))
    return max(abs(gap), (high - low) / 2)


def _cell(row: Row | None, largest: float) -> dict[str, str]:
    """A reward or a gap, with its half interval; `shade` is a percentage."""
    reward, gap = number(row, "reward"), number(row, "gap")
    if reward is None:
        return {"text": plain(None), "note": str(at(row, "reason") or "not measured"), "side": ""}
    if gap is None or not number(row, "eta"):
        return {"text": level(reward), "note": _half(row, "ci_low", "ci_high"), "side": ""}
    return {
        "text": shift(gap),
        "note": _half(row, "gap_low", "gap_high"),
        "side": "up" if gap > 0 else "down",
        "shade": f"{50 * abs(gap) / largest if largest > 0 else 0:.0f}",
    }


def _half(row: Row | None, *ends: str) -> str:
    low, high = (number(row, end) for end in ends)
    return "" if low is None or high is None else f"\u00b1{plain((high - low) / 2)}"


def _training_steps(record: Record) -> int | None:
    """The training grid's number of steps, where the matrix has it; else its middle one."""
    counts = _step_counts([row for line in record.gaps for row in _rows(line)])
    if not counts:
        return None
    trained = [n for row in record.evaluations if (n := number(row, "gap", "steps")) is not None]
    return int(trained[-1]) if trained and trained[-1] in counts else counts[len(counts) // 2]


def _etas(record: Record) -> dict[str, Any] | None:
    """Gap against updates, a line for each noisy sampler; bands would hide one another."""
    steps, points = _training_steps(record), dict[Sampler, list[Point]]()
    for line in record.gaps:
        for row in _rows(line):
            gap, sampler = number(row, "gap"), _sampler(row)
            if sampler.eta and gap is not None and steps_of(row) == steps:
                point = Point(number(line, "update") or 0.0, gap)
                points.setdefault(sampler, []).append(point)
    lines = [
        Series(f"{sampler.solver} \u03b7 = {sampler.eta:g}", f"hue{1 + i % HUES}", tuple(line))
        for i, (sampler, line) in enumerate(points.items())
    ]
    drawn = chart(lines, Axes(UPDATE, "gap", least_span=0.02, from_zero=True))
    return {"chart": drawn, "steps": steps} if drawn else None
