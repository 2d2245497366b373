"""Functions of a noising process x_t = α(t) x0 + σ(t) ε that follow from α and σ alone.

Where a process has a closed form for its derivatives it is used; otherwise they are taken by
forward-mode differentiation. Identities: arXiv 2011.13456, arXiv 2402.07487.
"""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from scoretune.shapes import check_batch


class Schedule(Protocol):
    """What these functions need of a process; a class of yours that has it will do."""

    @property
    def horizon(self) -> float: ...
    def alpha(self, t: Tensor) -> Tensor: ...
    def sigma(self, t: Tensor) -> Tensor: ...


@runtime_checkable
class _ClosedSDE(Protocol):
    def sde(self, t: Tensor) -> tuple[Tensor, Tensor]: ...


@runtime_checkable
class _ClosedRates(Protocol):
    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]: ...


@runtime_checkable
class _ClosedTime(Protocol):
    def time(self, ratio: Tensor) -> Tensor: ...


def rates(process: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """(α'(t), σ'(t)), same shape as t. From (f, g²): α' = fα, σ' = fσ + g²/(2σ)."""
    if isinstance(process, _ClosedRates):
        return process.rates(t)
    if isinstance(process, _ClosedSDE):
        f, g_sq = process.sde(t)
        sigma = process.sigma(t)
        return f * process.alpha(t), f * sigma + g_sq / (2 * sigma)
    # A time that was expanded over a batch shares memory, which forward mode refuses: clone.
    t, ones = t.clone(), torch.ones_like(t)
    alpha_rate = torch.func.jvp(process.alpha, (t,), (ones,))[1]
    sigma_rate = torch.func.jvp(process.sigma, (t,), (ones,))[1]
    return alpha_rate, sigma_rate


def drift_rate(process: Schedule, t: Tensor) -> Tensor:
    """f(t) = α'/α, the linear drift of the noising SDE dx = f x dt + g dw."""
    if isinstance(process, _ClosedSDE):
        return process.sde(t)[0]
    return rates(process, t)[0] / process.alpha(t)


def diffusion_sq(process: Schedule, t: Tensor) -> Tensor:
    """g²(t) = 2σσ' − 2(α'/α)σ² = 2σ(σ'α − α'σ)/α, the squared noise of the noising SDE."""
    if isinstance(process, _ClosedSDE):
        return process.sde(t)[1]
    alpha, sigma = process.alpha(t), process.sigma(t)
    alpha_rate, sigma_rate = rates(process, t)
    return 2 * sigma * (sigma_rate * alpha - alpha_rate * sigma) / alpha


def noise_ratio(process: Schedule, t: Tensor) -> Tensor:
    """ρ(t) = σ/α, increasing in t; +∞ where no signal is left."""
    return process.sigma(t) / process.alpha(t)


def time_of_ratio(process: Schedule, ratio: Tensor) -> Tensor:
    """The time at which σ/α = ratio: the nearest on [0, horizon], same shape, float64.

    By the process's own closed form, or by bisection.
    """
    ends = torch.tensor([0.0, process.horizon], dtype=torch.float64, device=ratio.device)
    lowest, highest = noise_ratio(process, ends)
    wanted = torch.clamp(ratio.to(torch.float64), lowest, highest)
    if isinstance(process, _ClosedTime):
        return process.time(wanted).clamp(0, process.horizon)
    low, high = torch.zeros_like(wanted), torch.full_like(wanted, process.horizon)
    for _ in range(60):
        middle = (low + high) / 2
        below = noise_ratio(process, middle) < wanted
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


def half_log_snr(process: Schedule, t: Tensor) -> Tensor:
    """λ(t) = log(α/σ), the time of the DPM solvers (arXiv 2206.00927)."""
    return torch.log(process.alpha(t)) - torch.log(process.sigma(t))


def log_snr(process: Schedule, t: Tensor) -> Tensor:
    """log(α²/σ²) = 2λ: the logarithm of the signal-to-noise ratio of *powers*."""
    return 2 * half_log_snr(process, t)


def expand(t: Tensor, x: Tensor) -> Tensor:
    """Reshape per-sample numbers [B] to [B, 1, …] so that they multiply x [B, *S].

    The result has x's dtype, or float32 if that is narrower: a float64 time never widens an
    image, and a half-precision image never narrows a coefficient. A number for all is [].
    """
    if t.dim():
        check_batch(x, t=t)
    wide = torch.promote_types(x.dtype, torch.float32)
    return t.to(device=x.device, dtype=wide).reshape(-1, *(1,) * (x.dim() - 1))


class _HasNoise(Protocol):
    @property
    def noise(self) -> Tensor: ...


def score(process: Schedule, estimate: _HasNoise, t: Tensor) -> Tensor:
    """∇ log p_t(x) = −ε̂/σ(t), shape [B, *S], from an `Estimate`."""
    noise = estimate.noise
    return -noise / expand(process.sigma(t), noise)
