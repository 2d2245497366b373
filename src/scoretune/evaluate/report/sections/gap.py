"""The report's section on the sampler gap: what noise is worth, while training and at the end."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from scoretune.evaluate.report import charts as draw
from scoretune.evaluate.report.charts import THIN, Axes, Point, Series
from scoretune.evaluate.report.record import (
    EVALUATIONS,
    UPDATE,
    Record,
    Row,
    at,
    level,
    number,
    plain,
    reward_change,
    shift,
)

HUES = 6
"""As many lines of stochasticity have a hue of their own, `hue1` to `hue6`."""


def slots(record: Record) -> dict[str, str]:
    """The section by its slots in the template; an empty string for what lacks its data."""
    gap, rewards = _gap_chart(record), _rewards_chart(record)
    last = record.gaps[-1] if record.gaps else {}
    found = {
        "gap": gap,
        "gap_rewards": "" if gap else rewards,
        "gap_now": _now(record) if gap else _rewards_now(record),
        "gap_matrix": _matrix(last),
        "gap_etas": _etas_chart(record) if len(record.gaps) > 1 else "",
        "gap_matrix_when": f"{number(last, 'update') or 0:.0f}",
    }
    found["gap_steps"] = str(_chosen_steps(record) or "")
    return found | {"sampler_gap": "shown" if gap or rewards or found["gap_matrix"] else ""}


# ------------------------------------------------------------------------------ every evaluation


def _gap_chart(record: Record) -> str:
    lines = [
        Series("bias of the step count", "plain", _against_update(record, "bias"), dashed=True),
        Series("gap: stochastic less ODE, same steps", "noisy", _against_update(record, "gap")),
    ]
    if not lines[1].points:
        return ""
    return draw.chart(lines, Axes(UPDATE, "reward", least_span=0.02, from_zero=True))


def _against_update(record: Record, key: str) -> tuple[Point, ...]:
    return tuple(
        Point(update, mean, number(row, key, "low"), number(row, key, "high"))
        for row in record.evaluations
        if (update := number(row, "update")) is not None
        and (mean := number(row, key, "mean")) is not None
    )


def _now(record: Record) -> str:
    """The last gap and bias in words, and a warning when only the training sampler profits."""
    known = [row for row in record.evaluations if number(row, "gap", "mean") is not None]
    first, last = known[0], known[-1]
    steps, eta = number(last, "gap", "steps"), number(last, "gap", "eta")
    text = f"The gap is <b>{_told(last, 'gap')}</b>"
    if steps is not None and eta is not None:
        text += f" in {steps:.0f} steps at \u03b7{THIN}={THIN}{eta:g}"
    if last is not first:
        text += f"; before training it was {_told(first, 'gap')}"
    text += ". "
    if number(last, "bias", "mean") is not None:
        text += (
            "The number of steps is counted apart: the ODE on the training grid earns "
            f"{_told(last, 'bias')} compared with the sampler of the evaluation "
            f"({escape(str(at(last, 'sampler') or 'unknown'))})."
        )
    return text + _warning(record)


def _told(row: Row, key: str) -> str:
    mean, low, high = (number(row, key, name) for name in ("mean", "low", "high"))
    text = shift(mean or 0.0)
    if low is None or high is None:
        return text
    return f"{text} (95{THIN}% interval {shift(low)} to {shift(high)})"


def _warning(record: Record) -> str:
    """That only the noisy sampler gained, where the other's gain is more than chance."""
    noisy, still = (reward_change(record, sampler) for sampler in ("stochastic", "deterministic"))
    if not noisy or not still or still.may_be_chance:
        return ""
    if noisy.gain > 0 and still.gain < 0.5 * noisy.gain:
        return " <b>Less than half of the gain survives without the noise.</b>"
    return ""


# ------------------------------------------------------------------ runs before gaps were measured


def _rewards_chart(record: Record) -> str:
    def points(sampler: str) -> tuple[Point, ...]:
        return tuple(
            Point(spent, value)
            for row in record.evaluations
            if (spent := number(row, "network_evaluations")) is not None
            and (value := number(row, "reward", sampler)) is not None
        )

    lines = [
        Series("stochastic sampler", "noisy", points("stochastic"), dashed=True),
        Series("deterministic sampler", "plain", points("deterministic")),
    ]
    return draw.chart(lines, Axes(EVALUATIONS, "mean reward", least_span=0.05))


def _rewards_now(record: Record) -> str:
    """Both rewards in words."""
    noisy, still = (reward_change(record, sampler) for sampler in ("stochastic", "deterministic"))
    if noisy is None or still is None:
        return ""
    text = f"The reward moved from {level(noisy.before)} to <b>{level(noisy.after)}</b> under "
    text += f"the stochastic sampler and from {level(still.before)} to "
    text += f"<b>{level(still.after)}</b> under the deterministic one. The gap, stochastic minus "
    text += f"deterministic, went from {shift(noisy.before - still.before)} to "
    text += f"{shift(noisy.after - still.after)}."
    return text + _warning(record)


# ------------------------------------------------------------------------------ the matrix


def _rows(line: Row) -> list[Row]:
    """The rows of a matrix that say which sampler they are about."""
    rows = at(line, "rows")
    found = rows if isinstance(rows, list) else []
    return [r for r in found if number(r, "steps") is not None and number(r, "eta") is not None]


def _sampler(row: Row) -> tuple[str, float]:
    return str(row.get("solver")), number(row, "eta") or 0.0


def _steps_of(rows: Sequence[Row]) -> list[int]:
    return sorted({int(number(row, "steps") or 0) for row in rows})


def _matrix(line: Row) -> str:
    """A table of the ODE's reward and of every other sampler's gap, shaded by its size."""
    rows = _rows(line)
    if not rows:
        return ""
    numbers = _steps_of(rows)
    largest = max(map(_extent, rows))
    head = "".join(f'<th scope="col">{steps} steps</th>' for steps in numbers)
    body = []
    for sampler in dict.fromkeys(map(_sampler, rows)):
        own = {int(number(r, "steps") or 0): r for r in rows if _sampler(r) == sampler}
        cells = "".join(_entry(own.get(steps), largest) for steps in numbers)
        solver, eta = escape(sampler[0]), f" \u03b7{THIN}={THIN}{sampler[1]:g}"
        name = f"{solver}{eta}" if sampler[1] else f"{solver} (ODE)"
        body.append(f'<tr><th scope="row">{name}</th>{cells}</tr>')
    return (
        f'<table class="heat"><thead><tr><th scope="col">sampler</th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table>"
    )


def _extent(row: Row) -> float:
    """The gap or its uncertainty, the larger: chance must not get the darkest colours."""
    gap, low, high = (number(row, key) or 0.0 for key in ("gap", "gap_low", "gap_high"))
    return max(abs(gap), (high - low) / 2)


def _entry(row: Row | None, largest: float) -> str:
    reward = number(row, "reward")
    if row is None or reward is None:
        return f"<td>\u2013<small>{escape(str(at(row, 'reason') or 'not measured'))}</small></td>"
    gap = number(row, "gap")
    if gap is None or not number(row, "eta"):
        low, high = number(row, "ci_low"), number(row, "ci_high")
        return f"<td>{level(reward)}<small>{_half(low, high)}</small></td>"
    share = 50 * abs(gap) / largest if largest > 0 else 0
    side = "up" if gap > 0 else "down"
    interval = _half(number(row, "gap_low"), number(row, "gap_high"))
    return (
        f'<td class="{side}" style="--share:{share:.0f}%">{shift(gap)}'
        f"<small>{interval}</small></td>"
    )


def _half(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"\u00b1{plain((high - low) / 2)}"


def _chosen_steps(record: Record) -> int | None:
    """The training grid's number of steps, where the matrix has it; else its middle one."""
    numbers = _steps_of([row for line in record.gaps for row in _rows(line)])
    if not numbers:
        return None
    known = [n for row in record.evaluations if (n := number(row, "gap", "steps")) is not None]
    own = int(known[-1]) if known else None
    return own if own in numbers else numbers[len(numbers) // 2]


def _etas_chart(record: Record) -> str:
    """Gap against updates, a line for each noisy sampler; bands would hide one another."""
    steps, found = _chosen_steps(record), dict[tuple[str, float], list[Point]]()
    for line in record.gaps:
        for row in _rows(line):
            gap, (_, eta) = number(row, "gap"), _sampler(row)
            if eta and gap is not None and number(row, "steps") == steps:
                point = Point(number(line, "update") or 0.0, gap)
                found.setdefault(_sampler(row), []).append(point)
    lines = [
        Series(f"{solver} \u03b7 = {eta:g}", f"hue{1 + i % HUES}", tuple(points))
        for i, ((solver, eta), points) in enumerate(found.items())
    ]
    return draw.chart(lines, Axes(UPDATE, "gap", least_span=0.02, from_zero=True))
