"""One step of a sampler as a Gaussian: (process, x, estimate, t, t_next) -> Transition.

Four kernels times a noise scale cover the probability-flow ODE, the reverse SDE, DDIM(η),
ancestral DDPM, gDDIM(η), the exponential integrator, Flow-SDE, Dance-SDE and CPS.
Every kernel is linear in (x, x̂, ε̂): `weights(process, t, t_next)` are its numbers, for times of
any shape, so that a sampler works out a whole grid at once. Primes in formulas are values at
t_next, x̂ and ε̂ the estimate, ρ = σ/α and d = t_next − t <= 0.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from scoretune.diffusion.estimates import Estimate
from scoretune.diffusion.processes import (
    VP,
    Cosine,
    Process,
    Tabulated,
    diffusion_sq,
    noise_ratio,
    rates,
)
from scoretune.diffusion.scales import (
    CPS,
    Constant,
    DanceSDE,
    FlowSDE,
    Memoryless,
    Posterior,
    Ramp,
    Scale,
    Still,
    check_level,
    ratio_quotient,
    step_diffusion_sq,
)
from scoretune.diffusion.transitions import Transition, Weights
from scoretune.shapes import check_batch, check_rank, check_same_shape

__all__ = [
    "CPS",
    "GDDIM",
    "Constant",
    "DanceSDE",
    "EulerMaruyama",
    "Exponential",
    "FlowSDE",
    "Kernel",
    "Memoryless",
    "Posterior",
    "Ramp",
    "Renoise",
    "Scale",
    "Still",
    "Transition",
    "response",
    "stochasticity",
]


class _Linear(ABC):
    """A kernel by its weights."""

    @abstractmethod
    def weights(self, process: Process, t: Tensor, t_next: Tensor) -> Weights: ...

    def __call__(
        self, process: Process, x: Tensor, estimate: Estimate, t: Tensor, t_next: Tensor
    ) -> Transition:
        check_batch(x, t=t, t_next=t_next)
        return self.weights(process, t, t_next).over(x).transition(x, estimate)


@dataclass(frozen=True)
class EulerMaruyama(_Linear):
    """Euler–Maruyama for the family of scale η: μ = x + d[f x − (1+η²)/2 g² s], c² = η² g² |d|.

    Computed as μ = x + d[u + (η²/2)(g²/σ) ε̂] with the velocity u = α'x̂ + σ'ε̂ (α', σ' derivatives
    here), in which nothing divides by α: with η = 0 rectified flow may start at t = 1. With η > 0
    there, g² = ∞ is replaced by `step_diffusion_sq`, which is Flow-GRPO's rule.
    Order 1. Unstable where |d|(f + (1+η²)g²/(2v)) > 2: for large η in few steps prefer GDDIM.
    """

    scale: Scale

    def __post_init__(self) -> None:
        _check_prescribes("EulerMaruyama", self.scale, "eta")

    def weights(self, process: Process, t: Tensor, t_next: Tensor) -> Weights:
        """(1, dα', d(σ' + η²g²/(2σ)), η g √|d|)."""
        check_same_shape(t=t, t_next=t_next)
        d = t_next - t
        alpha_rate, sigma_rate = rates(process, t)
        if self.scale == Still():
            return Weights(torch.ones_like(t), d * alpha_rate, d * sigma_rate, torch.zeros_like(t))
        noise_sq = self.scale(process, t, t_next) ** 2 * step_diffusion_sq(process, t, t_next)
        noise_rate = sigma_rate + noise_sq / (2 * process.sigma(t))
        std = torch.sqrt(noise_sq * d.abs())
        return Weights(torch.ones_like(t), d * alpha_rate, d * noise_rate, std)


@dataclass(frozen=True)
class Renoise(_Linear):
    """Go to the data and come back with part fresh noise: μ = α'x̂ + √(σ'² − c²) ε̂, std c.

    DDIM(η) (arXiv 2010.02502 eq. 12) with `Posterior(eta)`, Flow-CPS with `CPS(level)`, DDIM with
    `Still()`. `Posterior` beyond its η_max would need √(negative): that raises ValueError.
    """

    scale: Scale

    def __post_init__(self) -> None:
        _check_prescribes("Renoise", self.scale, "std")

    def weights(self, process: Process, t: Tensor, t_next: Tensor) -> Weights:
        """(0, α', √(σ'² − c²), c)."""
        check_same_shape(t=t, t_next=t_next)
        alpha, sigma, nothing = process.alpha(t_next), process.sigma(t_next), torch.zeros_like(t)
        if self.scale == Still():
            return Weights(nothing, alpha, sigma, nothing)
        std = self.scale(process, t, t_next)
        if bool((std > sigma * (1 + 1e-6)).any()):
            limit = float(Posterior.limit(process, t, t_next).min())
            raise ValueError(
                f"{self.scale} asks for more noise than a step can hold (eta <= {limit:.4f} here): "
                "lower eta, or use GDDIM(eta), which is defined for every eta"
            )
        kept = torch.sqrt(((sigma - std) * (sigma + std)).clamp(min=0))
        return Weights(nothing, alpha, kept, std)


@dataclass(frozen=True)
class GDDIM(_Linear):
    """The exact step of the family for point-mass data (arXiv 2206.05564 (gDDIM) Thm 1).

    μ = α'x̂ + σ'(ρ'/ρ)^{η²} ε̂, c² = σ'²(1 − (ρ'/ρ)^{2η²}). `eta` is a number or a scale that
    prescribes η. Defined for every η >= 0, never unstable; η = 0 is DDIM, η = 1 is DDIM(1) and
    ancestral DDPM, η → ∞ re-noises x̂ afresh. Where ρ = ∞ (rectified flow at t = 1) and η > 0 the
    step is α'x̂ + σ'ξ. Its bias, too little variance, grows with η at a fixed number of steps.
    """

    eta: float | Scale

    def __post_init__(self) -> None:
        if isinstance(self.eta, int | float):
            check_level("GDDIM eta", self.eta)
        else:
            _check_prescribes("GDDIM", self.eta, "eta")

    @property
    def scale(self) -> Scale:
        """η as a scale."""
        return Constant(self.eta) if isinstance(self.eta, int | float) else self.eta

    def weights(self, process: Process, t: Tensor, t_next: Tensor) -> Weights:
        """(0, α', σ'(ρ'/ρ)^{η²}, σ'√(1 − (ρ'/ρ)^{2η²}))."""
        eta_sq = self.scale(process, t, t_next) ** 2
        # xlogy: η = 0 at ρ = ∞ is 0·ln 0 = 0, so the noise is kept rather than lost in a NaN.
        log_kept = torch.xlogy(eta_sq, ratio_quotient(process, t, t_next))
        sigma = process.sigma(t_next)
        std = sigma * torch.sqrt(-torch.expm1(2 * log_kept))
        kept = sigma * torch.exp(log_kept)
        return Weights(torch.zeros_like(t), process.alpha(t_next), kept, std)


@dataclass(frozen=True)
class Exponential(_Linear):
    """The exponential integrator: the linear part exact, the score s frozen (arXiv 2204.13902).

    μ = (α'/α)x + (1+η²)/2 I s with I = `score_weight`, c² = η² α'²(ρ² − ρ'²). Order 1. Where no
    signal is left (rectified flow at t = 1) its limit is infinite: that raises ValueError.
    """

    scale: Scale

    def __post_init__(self) -> None:
        _check_prescribes("Exponential", self.scale, "eta")

    def weights(self, process: Process, t: Tensor, t_next: Tensor) -> Weights:
        """(α'/α, 0, −(1+η²)/2 I/σ, η α'√(ρ² − ρ'²))."""
        alpha, alpha_next = process.alpha(t), process.alpha(t_next)
        if bool((alpha == 0).any()):
            raise ValueError(
                f"Exponential cannot start where {process} has no signal (alpha = 0): "
                "begin the grid just below the horizon, or use GDDIM"
            )
        eta = self.scale(process, t, t_next)
        pull = (1 + eta**2) / 2 * score_weight(process, t, t_next) / process.sigma(t)
        gone = noise_ratio(process, t) ** 2 - noise_ratio(process, t_next) ** 2
        std = eta * alpha_next * torch.sqrt(gone.clamp(min=0))
        return Weights(alpha_next / alpha, torch.zeros_like(t), -pull, std)


Kernel: TypeAlias = EulerMaruyama | Renoise | GDDIM | Exponential
"""The kernels there are; any callable of the same signature will do."""

Step: TypeAlias = Callable[[Process, Tensor, Estimate, Tensor, Tensor], Transition]

GAUSS_LEGENDRE = np.polynomial.legendre.leggauss(20)
"""The nodes and the weights of the quadrature on [−1, 1]."""


def score_weight(process: Process, t: Tensor, t_next: Tensor) -> Tensor:
    """I = ∫ (α'/α_r) g_r² dr over r from t_next to t, same shape: the weight of a frozen score.

    Where α² + σ² = 1 it is 2(α'/α − 1); otherwise by Gauss–Legendre quadrature with 20 nodes.
    """
    check_same_shape(t=t, t_next=t_next)
    if isinstance(process, VP | Tabulated | Cosine):
        return 2 * (process.alpha(t_next) - process.alpha(t)) / process.alpha(t)
    return _quadrature(process, t, t_next)


def _quadrature(process: Process, t: Tensor, t_next: Tensor) -> Tensor:
    nodes, weights = (torch.as_tensor(a).to(t).reshape(-1, *(1,) * t.dim()) for a in GAUSS_LEGENDRE)
    r = t_next + (t - t_next) * (1 + nodes) / 2
    inside = weights * diffusion_sq(process, r) / process.alpha(r)
    # cumsum adds in the same order whatever the batch; sum would not, to the last bit.
    return process.alpha(t_next) * (t - t_next) / 2 * inside.cumsum(0)[-1]


def response(kernel: Step, process: Process, t: Tensor, t_next: Tensor) -> Tensor:
    """∂mean/∂x̂0 of a step at a given state, [B]: how far the mean follows the data estimate.

    Every kernel here is linear in (x, x̂, ε̂), and ε̂ = (x − α x̂)/σ, so a unit of x̂ at x = 0 tells.
    """
    check_rank(1, 1, t=t, t_next=t_next)
    x = torch.zeros_like(t)[:, None]
    noise = -(process.alpha(t) / process.sigma(t))[:, None]
    return kernel(process, x, Estimate(torch.ones_like(x), noise), t, t_next).mean[:, 0]


def stochasticity(kernel: Step, process: Process, t: Tensor, t_next: Tensor) -> Tensor:
    """The η [B] of the marginal-preserving family that a step is as noisy as.

    What the scale prescribes; for a step of given std c, the η at which GDDIM has that std:
    η² = ln(1 − c²/σ'²) / (2 ln(ρ'/ρ)).
    """
    check_same_shape(t=t, t_next=t_next)
    if isinstance(kernel, EulerMaruyama | GDDIM | Exponential):
        return kernel.scale(process, t, t_next)
    x = torch.zeros_like(t)[:, None]
    std = kernel(process, x, Estimate(x, x), t, t_next).std.flatten()
    lost = torch.log1p(-((std / process.sigma(t_next)) ** 2).clamp(max=1))
    kept = torch.log(ratio_quotient(process, t, t_next))
    # Where no signal is left every step is fresh noise, and the node weighs nothing.
    return torch.sqrt(torch.where(torch.isfinite(kept), lost / (2 * kept), torch.ones_like(kept)))


def _check_prescribes(kernel: str, scale: Scale, wanted: str) -> None:
    if scale.prescribes not in (wanted, "nothing"):
        other = "Renoise" if wanted == "eta" else "EulerMaruyama or GDDIM"
        raise ValueError(
            f"{kernel} needs a scale that prescribes {wanted}, but {scale} prescribes "
            f"{scale.prescribes}: use it with {other}"
        )


def noisy_steps(kernel: Kernel, process: Process, nodes: Tensor) -> Tensor:
    """Which steps of a grid [N+1] or [N+1, B] have noise, [N] on the CPU."""
    check_rank(1, 2, nodes=nodes)
    t, t_next = nodes[:-1].flatten(), nodes[1:].flatten()
    x = torch.zeros_like(t)[:, None]
    std = kernel(process, x, Estimate(x, x), t, t_next).std
    return (std.view(len(nodes) - 1, -1) != 0).all(1).cpu()
