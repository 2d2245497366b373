"""How noisy a sampler is: η(t) of the marginal-preserving family, or a step's own std.

For any η(t) >= 0 and an exact score, dx = [f x − (1+η²)/2 g² s] dt + η g dw̄ (t decreasing) has
the process's own marginals: η = 0 is the probability-flow ODE, η = 1 the reverse SDE
(arXiv 2206.05564 (gDDIM) eq. 6). A scale is called as `scale(process, t, t_next)` with times [B]
and returns [B]. Most prescribe η; `Posterior` and `CPS` prescribe the std of a step itself.
"""

import math
from dataclasses import dataclass, fields
from typing import ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from scoretune.diffusion.processes import Process, rates
from scoretune.shapes import check_same_shape

Prescribes: TypeAlias = Literal["eta", "std", "nothing"]


class _Levels:
    """A scale by noise levels, its fields, which must be finite and >= 0."""

    prescribes: ClassVar[Prescribes] = "eta"

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]
            check_level(f"{type(self).__name__} {field.name}", getattr(self, field.name))


@dataclass(frozen=True)
class Still:
    """No noise: η = 0, and std 0."""

    prescribes: ClassVar[Prescribes] = "nothing"

    def __call__(self, process: Process, t: Tensor, t_next: Tensor) -> Tensor:
        return torch.zeros_like(t)


@dataclass(frozen=True)
class Memoryless:
    """η = 1: the noise is g itself; for rectified flow this is the memoryless schedule
    √(2t/(1−t)) of arXiv 2409.08861, under which x_0 and x_T are independent."""

    prescribes: ClassVar[Prescribes] = "eta"

    def __call__(self, process: Process, t: Tensor, t_next: Tensor) -> Tensor:
        return torch.ones_like(t)


@dataclass(frozen=True)
class Constant(_Levels):
    """The same η at every time."""

    eta: float

    def __call__(self, process: Process, t: Tensor, t_next: Tensor) -> Tensor:
        return torch.full_like(t, self.eta)


@dataclass(frozen=True)
class Ramp(_Levels):
    """η linear in t, from `first` at the horizon to `last` at the data."""

    first: float
    last: float

    def __call__(self, process: Process, t: Tensor, t_next: Tensor) -> Tensor:
        return self.last + (self.first - self.last) * t / process.horizon


@dataclass(frozen=True)
class FlowSDE(_Levels):
    """Flow-GRPO's noise a√(t/(1−t)) (arXiv 2505.05470), which is η = a/√2 at every time."""

    a: float = 0.7

    def __call__(self, process: Process, t: Tensor, t_next: Tensor) -> Tensor:
        return torch.full_like(t, self.a / math.sqrt(2))


@dataclass(frozen=True)
class DanceSDE(_Levels):
    """DanceGRPO's constant noise ηg = level (arXiv 2505.07818): η = level/g(t)."""

    level: float = 0.3

    def __call__(self, process: Process, t: Tensor, t_next: Tensor) -> Tensor:
        return self.level / torch.sqrt(step_diffusion_sq(process, t, t_next))


@dataclass(frozen=True)
class Posterior(_Levels):
    """DDIM(η)'s std (arXiv 2010.02502 eq. 16): c = η σ' √(1 − (ρ'/ρ)²).

    η = 1 is ancestral DDPM. Exists while c <= σ', that is η² <= 1/(1 − (ρ'/ρ)²): see `limit`.
    Not the η of the family above, with which it agrees only at 0, at 1 and for small steps.
    """

    eta: float
    prescribes: ClassVar[Prescribes] = "std"

    def __call__(self, process: Process, t: Tensor, t_next: Tensor) -> Tensor:
        fresh = torch.sqrt(1 - ratio_quotient(process, t, t_next) ** 2)
        return self.eta * process.sigma(t_next) * fresh

    @staticmethod
    def limit(process: Process, t: Tensor, t_next: Tensor) -> Tensor:
        """η_max of this step, [B]; +∞ for a step of no length."""
        return torch.rsqrt(1 - ratio_quotient(process, t, t_next) ** 2)


@dataclass(frozen=True)
class CPS:
    """Coefficient-preserving sampling (arXiv 2509.05952): c = σ' sin(level·π/2), level in [0, 1].

    The noise is a fixed share of σ' however short the step, so the sampler does not converge to
    the data as the steps shrink (its effective η² = −ln cos(level·π/2)/h grows).
    """

    level: float
    prescribes: ClassVar[Prescribes] = "std"

    def __post_init__(self) -> None:
        if not 0 <= self.level <= 1:
            raise ValueError(f"CPS level must lie in [0, 1], got {self.level}")

    def __call__(self, process: Process, t: Tensor, t_next: Tensor) -> Tensor:
        return process.sigma(t_next) * math.sin(self.level * math.pi / 2)


Scale: TypeAlias = Still | Memoryless | Constant | Ramp | FlowSDE | DanceSDE | Posterior | CPS


def ratio_quotient(process: Process, t: Tensor, t_next: Tensor) -> Tensor:
    """ρ(t_next)/ρ(t) = e^{−h} in [0, 1], [B]; written so that α(t) = 0 and σ(t_next) = 0 give 0."""
    check_same_shape(t=t, t_next=t_next)
    kept = process.alpha(t) * process.sigma(t_next)
    # Rounding may put a step of no length above 1, and 1 − 1.0000001 has no root.
    return (kept / (process.alpha(t_next) * process.sigma(t))).clamp(max=1)


def step_diffusion_sq(process: Process, t: Tensor, t_next: Tensor) -> Tensor:
    """g²(t) = 2σ(σ'α − α'σ)/α for a step t -> t_next, [B], always finite.

    Where the process starts without any signal (α(t) = 0: rectified flow at t = 1) g² is infinite,
    and the α in the denominator is read at t_next instead, as Flow-GRPO's code does.
    """
    check_same_shape(t=t, t_next=t_next)
    alpha, sigma = process.alpha(t), process.sigma(t)
    alpha_rate, sigma_rate = rates(process, t)
    below = torch.where(alpha > 0, alpha, process.alpha(t_next))
    return 2 * sigma * (sigma_rate * alpha - alpha_rate * sigma) / below


def check_level(name: str, value: float) -> None:
    """Refuse a noise level that is negative, infinite or NaN."""
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be finite and >= 0, got {value}")
