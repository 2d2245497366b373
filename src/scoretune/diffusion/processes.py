"""Noising processes x_t = α(t) x0 + σ(t) ε, and everything that follows from α and σ.

The processes themselves are in `schedules` and `tabulated`. Where one has a closed form for its
derivatives it is used; otherwise they are taken by forward-mode differentiation. Identities:
arXiv 2011.13456, arXiv 2402.07487.
"""

from typing import Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from scoretune.diffusion.schedules import EDM, OU, VE, VP, Cosine, RectifiedFlow, SubVP
from scoretune.diffusion.tabulated import Tabulated

__all__ = [
    "EDM",
    "OU",
    "VE",
    "VP",
    "Cosine",
    "Process",
    "RectifiedFlow",
    "Schedule",
    "SubVP",
    "Tabulated",
    "diffusion_sq",
    "drift_rate",
    "expand",
    "half_log_snr",
    "log_snr",
    "noise_ratio",
    "rates",
    "score",
]


Process: TypeAlias = VP | RectifiedFlow | Tabulated | SubVP | OU | VE | EDM | Cosine
"""Every process there is; the union is the registry."""


class Schedule(Protocol):
    """What the functions below need of a process, so that they also serve one of your own."""

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


def half_log_snr(process: Schedule, t: Tensor) -> Tensor:
    """λ(t) = log(α/σ), the time of the DPM solvers (arXiv 2206.00927)."""
    return torch.log(process.alpha(t)) - torch.log(process.sigma(t))


def log_snr(process: Schedule, t: Tensor) -> Tensor:
    """log(α²/σ²) = 2λ: the logarithm of the signal-to-noise ratio of *powers*."""
    return 2 * half_log_snr(process, t)


def expand(t: Tensor, x: Tensor) -> Tensor:
    """Reshape per-sample numbers [B] to [B, 1, …] so that they multiply x [B, *S].

    The result has x's dtype, or float32 if that is narrower: a float64 time never widens an
    image, and a half-precision image never narrows a coefficient.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    return t.to(device=x.device, dtype=wide).reshape(-1, *(1,) * (x.dim() - 1))


class _HasNoise(Protocol):
    @property
    def noise(self) -> Tensor: ...


def score(process: Schedule, estimate: _HasNoise, t: Tensor) -> Tensor:
    """∇ log p_t(x) = −ε̂/σ(t), shape [B, *S], from an `Estimate`."""
    noise = estimate.noise
    return -noise / expand(process.sigma(t), noise)
