"""How far CPPO may go in one iteration, and schedules of numbers that shrink."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from scoretune.core.errors import UserError
from scoretune.rl import kl_penalty, sqrt_kl_penalty


@dataclass(frozen=True)
class Shrinking:
    """start / (1 + k/pace) in iteration k."""

    start: float
    pace: float

    def __call__(self, k: int) -> float:
        return self.start / (1 + k / self.pace)


Schedule: TypeAlias = float | Callable[[int], float]
"""A number, the same in every iteration, or a function of the iteration."""


def at(schedule: Schedule, k: int, name: str) -> float:
    """The schedule's number in iteration k, which must be positive."""
    number = schedule(k) if callable(schedule) else schedule
    if not 0 < number < math.inf:
        raise UserError(f"{name} must be finite and > 0, got {number} in iteration {k}")
    return number


SLOWING = Shrinking(0.1, 10)
SLOWING_KL = Shrinking(0.02, 10)


@dataclass(frozen=True, kw_only=True)
class SqrtKL:
    """Penalty C·E√KL with C adapted to keep E√KL near `radius`: CPPO (arXiv 2305.18901).

    The natural one when the noise depends on the action: paths of two policies are then mutually
    singular, and what bounds the gap of the surrogate is √KL. A policy settles only if the
    radius shrinks.
    """

    radius: Schedule = SLOWING
    coefficient: float = 1.0
    tolerance: float = 0.5

    def distance(self, kl: Tensor) -> Tensor:
        return (kl + 1e-12).sqrt()

    def penalty(self, kl: Tensor, coefficient: float) -> Tensor:
        return sqrt_kl_penalty(kl, coefficient)


@dataclass(frozen=True, kw_only=True)
class KL:
    """Penalty C·E KL with C adapted to keep E KL near `radius`.

    Natural when the noise doesn't depend on the action (arXiv 2502.01819).
    """

    radius: Schedule = SLOWING_KL
    coefficient: float = 1.0
    tolerance: float = 0.5

    def distance(self, kl: Tensor) -> Tensor:
        return kl

    def penalty(self, kl: Tensor, coefficient: float) -> Tensor:
        return kl_penalty(kl, coefficient)


@dataclass(frozen=True, kw_only=True)
class Clip:
    """No penalty: likelihood ratios are clipped to 1 ± `clip` (arXiv 1707.06347)."""

    clip: float = 0.2


Trust: TypeAlias = SqrtKL | KL | Clip
"""What may hold a CPPO step back."""


def check_trust(trust: Trust) -> None:
    if not isinstance(trust, SqrtKL | KL | Clip):
        raise UserError(f"trust must be SqrtKL(…), KL(…) or Clip(…), got {trust!r}")
    if isinstance(trust, Clip):
        if not 0 < trust.clip < 1:
            raise UserError(f"clip must be between 0 and 1, got {trust.clip}")
        return
    if not (trust.coefficient > 0 and trust.tolerance > 0):
        raise UserError("coefficient and tolerance of a penalty must be > 0")
