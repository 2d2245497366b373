"""Which times a matching loss cares about: weights on the error, and how times are drawn.

A weight is a function (process, t [B]) -> [B] that multiplies ‖ε̂ − ε‖². Errors of one network are
proportional to each other, ‖ε̂ − ε‖² = SNR ‖x̂0 − x0‖² = σ² ‖ŝ − s‖², so this one unit serves all.

A law of times is a quantile function: (process, u [B], t_min) -> (t [B], factor [B]) turns
uniform numbers in [0, 1) into times of [t_min, horizon]. The factor goes on the loss. It is 1 where
the law itself is the emphasis that is wanted, and p_uniform/p where the law must not change the
expectation under uniform times.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from scoretune.diffusion import estimates
from scoretune.diffusion.estimates import Prediction
from scoretune.diffusion.grids import time_of_ratio
from scoretune.diffusion.processes import Process, diffusion_sq, noise_ratio

Weight: TypeAlias = Callable[[Process, Tensor], Tensor]
Times: TypeAlias = Callable[[Process, Tensor, float], tuple[Tensor, Tensor]]

WeightName: TypeAlias = Literal["noise", "data", "v", "velocity", "likelihood", "edm", "min_snr"]
TimesName: TypeAlias = Literal["uniform", "importance", "lognormal", "logit_normal"]


def conversion(process: Process, prediction: Prediction, t: Tensor) -> Tensor:
    """κ with (error of the output a·x0 + b·ε) = κ·(error of ε̂), κ = b − aσ/α, [B].

    The state is known, so α(x̂0 − x0) + σ(ε̂ − ε) = 0. Needs α > 0.
    """
    a, b = prediction.row(process, t)
    return b - a * process.sigma(t) / process.alpha(t)


def on_output(weight: Weight, process: Process, prediction: Prediction, t: Tensor) -> Tensor:
    """`weight` for the squared error of the network's own output: w/κ², [B].

    Finite for v and velocity at any t: both grow alike as the signal goes.
    """
    t = with_signal(process, t)
    return weight(process, t) / conversion(process, prediction, t) ** 2


def with_signal(process: Process, t: Tensor) -> Tensor:
    """t, but a millionth earlier where no signal is left (α = 0): nearly any weight on ε's error is
    infinite there."""
    return torch.where(process.alpha(t) > 0, t, t * (1 - 1e-6))


class _Positive:
    """A weight or a law of times by its fields, which must be finite and, but for a mean, > 0."""

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if field.name != "mean" and not (math.isfinite(value) and value > 0):
                name = f"{type(self).__name__} {field.name}"
                raise ValueError(f"{name} must be finite and > 0, got {value}")


@dataclass(frozen=True)
class Unit:
    """Weight 1 on the squared error of a prediction: κ² on ε's.

    noise: 1, or σ² on the score (arXiv 2006.11239 L_simple). data: 1/SNR. v: (SNR + 1)/SNR for a
    variance-preserving process (arXiv 2202.00512). velocity: flow matching's (arXiv 2210.02747).
    """

    prediction: Prediction

    def __call__(self, process: Process, t: Tensor) -> Tensor:
        return conversion(process, self.prediction, t) ** 2


def likelihood(process: Process, t: Tensor) -> Tensor:
    """g²/σ² = d ln ρ²/dt, which is g² on the score's error: the bound on the likelihood's weight
    (arXiv 2101.09258), [B]."""
    return diffusion_sq(process, t) / process.sigma(t) ** 2


@dataclass(frozen=True)
class EDMWeight(_Positive):
    """(ρ² + σ_d²)/(ρσ_d)² on the data's error (arXiv 2206.00364 Table 1): 1 + ρ²/σ_d² on ε's."""

    sigma_data: float = 0.5

    def __call__(self, process: Process, t: Tensor) -> Tensor:
        return 1 + (noise_ratio(process, t) / self.sigma_data) ** 2


@dataclass(frozen=True)
class MinSNR(_Positive):
    """min(SNR, γ) on the data's error (arXiv 2303.09556): min(1, γρ²) on ε's."""

    gamma: float = 5.0

    def __call__(self, process: Process, t: Tensor) -> Tensor:
        return (self.gamma * noise_ratio(process, t) ** 2).clamp(max=1)


WEIGHTS: dict[str, Weight] = {
    "noise": Unit(estimates.noise),
    "data": Unit(estimates.data),
    "v": Unit(estimates.v),
    "velocity": Unit(estimates.velocity),
    "likelihood": likelihood,
    "edm": EDMWeight(),
    "min_snr": MinSNR(),
}


def uniform(process: Process, u: Tensor, t_min: float) -> tuple[Tensor, Tensor]:
    """t uniform on [t_min, horizon]."""
    return t_min + (process.horizon - t_min) * u, torch.ones_like(u)


def importance(process: Process, u: Tensor, t_min: float) -> tuple[Tensor, Tensor]:
    """p(t) ∝ g²/σ², which is ln ρ uniform (arXiv 2101.09258), with factor p_uniform/p.

    With the likelihood weight every time then counts alike: the product is
    2 ln(ρ_T/ρ_min)/(T − t_min). Needs a finite ρ at the horizon.
    """
    ends = _ratio_ends(process, u, t_min)
    if not math.isfinite(float(ends[1])):
        raise ValueError(
            f"importance needs a finite σ/α at the horizon and {process} has none: use uniform"
        )
    span = torch.log(ends[1] / ends[0])
    t = _within(process, time_of_ratio(process, ends[0] * torch.exp(u.to(ends) * span)), t_min)
    factor = 2 * span / (process.horizon - t_min) / likelihood(process, t)
    return t.to(u), factor.to(u)


@dataclass(frozen=True)
class LogNormal(_Positive):
    """ln ρ ~ N(mean, std²) (arXiv 2206.00364 Table 1), cut to the ρ of [t_min, horizon]."""

    mean: float = -1.2
    std: float = 1.2

    def __call__(self, process: Process, u: Tensor, t_min: float) -> tuple[Tensor, Tensor]:
        ends = _ratio_ends(process, u, t_min)
        low, high = torch.special.ndtr((torch.log(ends) - self.mean) / self.std)
        normal = torch.special.ndtri(low + u.to(ends) * (high - low))
        ratio = torch.exp(self.mean + self.std * normal)
        t = _within(process, time_of_ratio(process, ratio), t_min)
        return t.to(u), torch.ones_like(u)


@dataclass(frozen=True)
class LogitNormal(_Positive):
    """logit of the share of [t_min, horizon] ~ N(mean, std²) (arXiv 2403.03206 sec. 3.1; SD3)."""

    mean: float = 0.0
    std: float = 1.0

    def __call__(self, process: Process, u: Tensor, t_min: float) -> tuple[Tensor, Tensor]:
        moved = torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))
        return uniform(process, moved, t_min)


TIMES: dict[str, Times] = {
    "uniform": uniform,
    "importance": importance,
    "lognormal": LogNormal(),
    "logit_normal": LogitNormal(),
}


def _ratio_ends(process: Process, u: Tensor, t_min: float) -> Tensor:
    """(ρ(t_min), ρ(horizon)), [2] in float64 on the device of `u`."""
    if not 0 < t_min < process.horizon:
        raise ValueError(f"t_min must lie in (0, {process.horizon}), got {t_min}")
    ends = torch.tensor([t_min, process.horizon], dtype=torch.float64, device=u.device)
    return noise_ratio(process, ends)


def _within(process: Process, t: Tensor, t_min: float) -> Tensor:
    return t.clamp(t_min, process.horizon)
