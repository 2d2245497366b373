"""How a run compresses its data: the basis, the number of measurements and why, chosen from the
data's measured sparsity, or from what the linear decoder misses; refused where recovery is expected
to fail."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoretune.compressed import BASES, OPERATORS, Gaussian, relative_error
from scoretune.compressed.linear import linear_decoder
from scoretune.compressed.operators import Drawn
from scoretune.compressed.planning import Survey, square_above, survey
from scoretune.core.config import Compress
from scoretune.core.errors import UserError
from scoretune.data.datasets import Data
from scoretune.models.compression import Compression, Decoder, standards

LOOKED_AT = 1000
"""States that sparsity and the measurements' mean and deviation are measured on."""
FITTED = 4000
"""States that a linear decoder is fitted to, where it is the decoder."""
DENSE_MOST = 4096
"""Numbers of a state up to which the operator is a Gaussian matrix unless told otherwise."""
NOT_SPARSE = 0.9
"""Share of a state's numbers from which on measuring saves nothing."""
SPREAD = 0.01
"""The decoder's weight as a share of the measurements' standard deviation: half of the weight
that arXiv 2509.03898's code decodes its generated digits with."""
HELD_BACK = 4
"""One of so many of the states that are looked at says what a linear decoder, fitted to the others,
misses."""


@dataclass(frozen=True)
class Plan:
    """How data are to be measured: `center` and `scale` standardise them first; the `chosen` basis
    among all that were surveyed, m, and whether m is a square of side `side` (0: it is not).
    `linear_error` is the relative error of the linear decoder on states that it was not fitted to,
    where that is the decoder, or where it may be proposed since m is below δ; else None."""

    center: Tensor
    scale: Tensor
    surveys: tuple[Survey, ...]
    chosen: Survey
    m: int
    side: int
    rule: str
    decoder: Decoder
    linear_error: float | None

    @property
    def state(self) -> tuple[int, ...]:
        """The shape of a state of measurements."""
        return (1, self.side, self.side) if self.side else (self.m,)

    def lines(self) -> list[str]:
        """What was chosen, and why."""
        best, d = self.chosen, self.chosen.dimension
        first = f"compress: {self.m} measurements of {d} numbers ({self.m / d:.0%}), {self.rule}"
        if self.decoder == "linear":
            return [
                first,
                f"compress: the linear decoder misses {self.linear_error:.1%} of states' norm that "
                "it was not fitted to",
            ]
        signs = " of non-negative coefficients" if best.nonnegative else ""
        return [
            first,
            f"compress: in {best.name} a state needs {best.average:.0f} coefficients, nine of ten "
            f"no more than {best.high:.0f}; recovery{signs} needs {best.delta:.0f} measurements; "
            f"predicted relative error {best.predicted_error(self.m):.1%}",
        ]

    def as_dict(self) -> dict[str, Any]:
        best = self.chosen
        return {
            "m": self.m,
            "dimension": best.dimension,
            "basis": best.name,
            "sparsity": best.average,
            "sparsity_of_nine_in_ten": best.high,
            "delta": best.delta,
            "predicted_error": None if self.decoder == "linear" else best.predicted_error(self.m),
            "rule": self.rule,
            "decoder": self.decoder,
            "linear_error": self.linear_error,
        }


def plan(data: Data, settings: Compress, *, square: bool, source: str) -> Plan:
    """The plan for data. Raises UserError where recovery is expected to fail: they are not sparse,
    m is below δ, or by the linear decoder no m is enough."""
    center, scale = standards(data.states, data.kind)
    states = (_some(data, LOOKED_AT) - center) / scale
    surveys = tuple(survey(states, settings.tolerance))
    named = {surveyed.name: surveyed for surveyed in surveys}
    if settings.basis != "auto" and settings.basis not in named:
        raise UserError(
            f"compress.basis={settings.basis} does not exist for states of shape "
            f"{list(states.shape[1:])}: give {', '.join(named)}"
        )
    basis = "identity" if settings.decoder == "linear" else settings.basis
    chosen = surveys[0] if basis == "auto" else named[basis]
    m, rule = _measurements(states, chosen, settings)
    side = square_above(m, chosen.dimension) if square else 0
    m = side * side if square else m
    error, linear = None, settings.decoder == "linear"
    if linear or (m < chosen.delta and _operator(settings, chosen.dimension) == "gaussian"):
        error = linear_error(states, _drawn(settings, m, chosen.dimension))
    result = Plan(
        center, scale, surveys, chosen, m, side, rule, decoder=settings.decoder, linear_error=error
    )
    problem = None if settings.force else refusal(result, settings, source)
    if problem is not None:
        raise UserError(problem)
    return result


def refusal(plan: Plan, settings: Compress, source: str) -> str | None:
    """Why training refuses a plan; None where it does not."""
    chosen, best, d = plan.chosen, plan.surveys[0], plan.chosen.dimension
    if plan.decoder == "linear":
        if settings.ratio or plan.m < NOT_SPARSE * d:
            return None
        return (
            f"a linear decoder of fewer than {NOT_SPARSE:.0%} of the {d} numbers of {source!r} "
            f"misses more than {settings.tolerance:.0%} of a state ({plan.linear_error:.0%} with "
            f"{plan.m}): leave compress out, or allow more with compress.tolerance"
        )
    better, linear = "", ""
    if best.name != chosen.name and best.delta < 0.9 * chosen.delta:
        better = f" ({best.name} needs {best.average:.0f}, hence {best.delta:.0f} measurements)"
    if not settings.ratio and plan.m >= NOT_SPARSE * d:
        return (
            f"{source!r} is not sparse in {chosen.name}: of {d} numbers {chosen.average:.0f} hold "
            f"all but {settings.tolerance:.0%} of a state{better}; leave compress out, change "
            "compress.basis, or allow more with compress.tolerance"
        )
    if plan.m < chosen.delta:
        if plan.linear_error is not None:
            linear = f", or compress.decoder=linear (error {plan.linear_error:.0%})"
        least = min(1.0, int(chosen.delta / d * 100 + 1) / 100)
        return (
            f"{plan.m} measurements are below the {chosen.delta:.0f} that recovery in "
            f"{chosen.name} needs{better}: raise compress.ratio to {least:.2f} or more, or set "
            f"compress.force=true (predicted error {chosen.predicted_error(plan.m):.0%}){linear}"
        )
    return None


def compression(data: Data, settings: Compress, plan: Plan) -> tuple[Compression, Tensor, Tensor]:
    """The measurements that a plan stands for, with the mean and the standard deviation of all
    their numbers over `LOOKED_AT` states, in shapes that broadcast to a state."""
    measuring = _drawn(settings, plan.m, plan.chosen.dimension)
    linear = settings.decoder == "linear"
    some = (_some(data, FITTED if linear else LOOKED_AT) - plan.center) / plan.scale
    y = measuring.forward(some.flatten(1))
    coefficients = BASES[plan.chosen.name](tuple(some.shape[1:])).analysis(some)
    result = Compression(
        shape=tuple(data.states.shape[1:]),
        content=data.kind,
        measuring=measuring,
        basis=plan.chosen.name,
        weight=settings.weight or SPREAD * float(y.std()),
        box=settings.box and plan.chosen.name == "identity" and data.kind == "images",
        decoder=settings.decoder,
        iterations=settings.iterations,
        precision=settings.precision,
        center=plan.center,
        scale=plan.scale,
        # as large as a matrix of the operator, which a fast one does without
        linear=linear_decoder(y, coefficients) if linear or type(measuring) is Gaussian else None,
    )
    ones = (1,) * len(plan.state)
    return result, y.mean().view(ones), y.std().view(ones)


def measured_error(compression: Compression, states: Tensor) -> tuple[float, Tensor]:
    """Relative error of recovery from exact measurements of data [n, *S], beside what was
    recovered; pictures as they are shown, in [0, 1]."""
    recovered = compression.recover(compression.measure(states))
    if compression.content == "images":
        recovered = recovered.clamp(0, 1)
    first, second = (compression.standardised(part) for part in (recovered, states))
    return relative_error(first, second), recovered


def _some(data: Data, count: int) -> Tensor:
    """So many states, or all, of any place in the data, which may be sorted."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    return data.states[order[:count]]


def linear_error(states: Tensor, measuring: Drawn) -> float:
    """The relative error of the linear decoder on one of `HELD_BACK` states [n, *S], fitted to the
    others; both as they are given."""
    flat = states.flatten(1)
    y, count = measuring.forward(flat), max(1, len(flat) // HELD_BACK)
    decoder = linear_decoder(y[count:], flat[count:])
    return relative_error(decoder(y[:count]), flat[:count])


def _operator(settings: Compress, dimension: int) -> str:
    """The kind of the operator, by name."""
    if settings.operator != "auto":
        return settings.operator
    return "gaussian" if dimension <= DENSE_MOST else "dct"


def _drawn(settings: Compress, m: int, dimension: int) -> Drawn:
    return OPERATORS[_operator(settings, dimension)](m, dimension, settings.seed)


def _measurements(states: Tensor, chosen: Survey, settings: Compress) -> tuple[int, str]:
    """How many, and why."""
    d = chosen.dimension
    if settings.ratio:
        return max(1, round(settings.ratio * d)), f"compress.ratio={settings.ratio:g}"
    if settings.decoder == "linear":
        why = f"the least with which the linear decoder misses {settings.tolerance:.0%} at most"
        return _least_for_linear(states, settings), why
    m = chosen.recommended(settings.rule, exponent=settings.exponent, steps=settings.steps)
    return m, f"by the rule {settings.rule}"


def _least_for_linear(states: Tensor, settings: Compress) -> int:
    """The least m, to a percent of the numbers, with which the linear decoder misses no more than
    the tolerance; all numbers where none is enough."""
    d = states[0].numel()
    sizes = sorted({max(1, round(d * percent / 100)) for percent in range(1, 101)})

    def enough(m: int) -> bool:
        return linear_error(states, _drawn(settings, m, d)) <= settings.tolerance

    return sizes[min(bisect_left(sizes, True, key=enough), len(sizes) - 1)]
