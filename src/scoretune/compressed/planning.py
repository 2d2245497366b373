"""Which basis and how many measurements suit some data: measured sparsity, δ, and what recovery
from m measurements is expected to cost, before anything is trained."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scoretune.compressed.bases import BASES, Basis
from scoretune.compressed.dimension import Rule, latent_dimension, statistical_dimension
from scoretune.compressed.sparsity import sparsities, tail_norms

HARD = 0.9
"""The share of states that the number of measurements is made for."""
CURVE = 60
"""Sparsities at which the predicted error is looked for its least."""


@dataclass(frozen=True)
class Survey:
    """Data in one basis: coefficients that a state needs for the tolerance, on `average` and in
    nine of ten states (`high`); `tails` [d + 1] is the root mean square of ‖x − x_s‖ over that of
    ‖x‖ for s = 0 … d; `nonnegative`: no coefficient is below 0."""

    name: str
    average: float
    high: float
    nonnegative: bool
    tails: Tensor

    @property
    def dimension(self) -> int:
        return len(self.tails) - 1

    @property
    def delta(self) -> float:
        """δ of a state of average sparsity: below it recovery fails."""
        return statistical_dimension(self.average, self.dimension, self.nonnegative)

    def recommended(self, rule: Rule = "feasible", *, exponent: float, steps: float) -> int:
        """m by a rule, for the sparsity of nine of ten states."""
        return latent_dimension(
            self.high,
            self.dimension,
            rule,
            nonnegative=self.nonnegative,
            exponent=exponent,
            steps_a_dimension=steps,
        )

    def predicted_error(self, m: int) -> float:
        """The relative error of recovery from m exact measurements: the least over s of

            tail(s) √(m / (m − δ(s, d)))

        What is beyond s coefficients is noise of the measurements, amplified by the law of random
        noise, and is missing from the answer: tail² (1 + δ/(m − δ)). Derived here; 1 at most.
        """
        d, least = self.dimension, 1.0
        for s in sorted({round(d * (i / CURVE) ** 2) for i in range(CURVE + 1)}):
            delta = statistical_dimension(s, d, self.nonnegative)
            if delta < m:
                least = min(least, float(self.tails[s]) * (m / (m - delta)) ** 0.5)
        return least if m < d else 0.0


def survey(states: Tensor, tolerance: float) -> list[Survey]:
    """States [n, *S] in every basis that such a state has, the sparsest first."""
    surveys = []
    for name in BASES:
        basis = basis_or_none(name, tuple(states.shape[1:]))
        if basis is None:
            continue
        coefficients = basis.analysis(states)
        needed = sparsities(coefficients, tolerance).double()
        surveys.append(
            Survey(
                name,
                float(needed.mean()),
                float(needed.quantile(HARD)),
                bool((coefficients >= 0).all()),
                tail_norms(coefficients),
            )
        )
    return sorted(surveys, key=lambda surveyed: surveyed.delta)


def basis_or_none(name: str, shape: tuple[int, ...]) -> Basis | None:
    """The basis for states of a shape; None where it has none, as wavelets for odd sides."""
    try:
        return BASES[name](shape)
    except ValueError:
        return None


def square_above(m: int, most: int) -> int:
    """The side k of the least square k² ≥ m, or of the largest k² ≤ most."""
    side = int(m**0.5)
    side += side * side < m
    return side if side * side <= most else int(most**0.5)


def relative_error(recovered: Tensor, states: Tensor) -> float:
    """√(Σ‖x̂ − x‖² / Σ‖x‖²) over a batch."""
    missed = (recovered - states).double().square().sum()
    return float(torch.sqrt(missed / states.double().square().sum().clamp_min(1e-300)))
