"""What a law is."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeAlias

if TYPE_CHECKING:
    import torch

P = ParamSpec("P")
Measured: TypeAlias = "Callable[[torch.device], float]"


@dataclass(frozen=True)
class Law:
    """On a sound installation |measured(device) − expected| <= tolerance; `source` says why.

    A law `of_scores` holds of networks that are exact scores: one that breaks it is no worse, but
    its samplers draw different laws.
    """

    name: str
    expected: float
    measured: Measured
    tolerance: float
    source: str
    of_scores: bool = False


def measurement(
    function: Callable[Concatenate[torch.device, P], float],
) -> Callable[P, Measured]:
    """A measurement (device, settings) whose settings are given first and whose device later."""

    @functools.wraps(function)
    def given(*arguments: P.args, **settings: P.kwargs) -> Measured:
        return lambda device: function(device, *arguments, **settings)

    return given


@dataclass(frozen=True)
class Verdict:
    """What was measured. `error` says how the measurement failed, where it did; then it is NaN."""

    law: Law
    measured: float
    error: str | None = None

    @property
    def passed(self) -> bool:
        return abs(self.measured - self.law.expected) <= self.law.tolerance

    def as_dict(self) -> dict[str, object]:
        """Plain data; null stands for a number that is none."""
        return {
            "law": self.law.name,
            "expected": float(self.law.expected),
            "measured": self.measured if math.isfinite(self.measured) else None,
            "tolerance": float(self.law.tolerance),
            "passed": self.passed,
            "of_scores": self.law.of_scores,
        }
