"""One step of a sampler as a Gaussian: (process, x, estimate, t, t_next) -> Transition.

Three kernels times a noise scale cover the probability-flow ODE, the reverse SDE, DDIM(η),
ancestral DDPM, gDDIM(η), Flow-SDE, Dance-SDE, CPS and MixGRPO's window.
Shapes: x [B, *S], t and t_next [B] with t_next <= t. Primes in formulas are values at t_next,
x̂ and ε̂ the estimate, ρ = σ/α and d = t_next − t.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, cast

import torch
from torch import Tensor

from scoretune.diffusion.estimates import Estimate
from scoretune.diffusion.processes import Process, expand, rates
from scoretune.diffusion.scales import (
    CPS,
    Constant,
    DanceSDE,
    FlowSDE,
    Memoryless,
    Posterior,
    Scale,
    Still,
    Within,
    check_level,
    ratio_quotient,
    step_diffusion_sq,
)

__all__ = [
    "CPS",
    "GDDIM",
    "Constant",
    "DanceSDE",
    "EulerMaruyama",
    "FlowSDE",
    "Kernel",
    "Memoryless",
    "Posterior",
    "Renoise",
    "Scale",
    "Still",
    "Transition",
    "Within",
    "response",
    "stochasticity",
]


@dataclass(frozen=True)
class Transition:
    """The law N(mean, std²) of x_next: mean [B, *S], std broadcastable to it, usually [B, 1, …].

    Log-probabilities, divergences and entropies are **sums** over dimensions, [B], computed in
    float32 or wider.
    """

    mean: Tensor
    std: Tensor

    @property
    def deterministic(self) -> Tensor:
        """[B] bool: the sample's step has no noise, hence no log-probability."""
        return (self.std == 0).flatten(1).all(1)

    def draw(self, generator: torch.Generator | None = None) -> Tensor:
        """x_next = mean + std·ξ; a CPU generator serves any device, for portable seeds."""
        device = self.mean.device if generator is None else generator.device
        noise = torch.randn(
            self.mean.shape, generator=generator, device=device, dtype=self.mean.dtype
        )
        return self.draw_with(noise.to(self.mean.device))

    def draw_with(self, noise: Tensor) -> Tensor:
        """x_next for a given standard normal ξ [B, *S]."""
        return self.mean + self.std * noise

    def log_prob(self, x: Tensor) -> Tensor:
        """log N(x; mean, std²) summed over dimensions, [B]. Differentiable in mean, std and x."""
        mean, std = _wide(self.mean), self._noisy_std("log-probability")
        z = (_wide(x) - mean) / std
        return _sum(-(z**2) / 2 - torch.log(std) - math.log(2 * math.pi) / 2)

    def kl(self, other: "Transition") -> Tensor:
        """KL(self ‖ other) summed over dimensions, [B].

        ½[(m − m₂)²/s₂² + (s/s₂)² − 1] − ln(s/s₂); with equal stds just ‖m − m₂‖²/(2s²).
        """
        std, other_std = self._noisy_std("KL"), other._noisy_std("KL")
        ratio = std / other_std
        shift = (_wide(self.mean) - _wide(other.mean)) / other_std
        return _sum((shift**2 + ratio**2 - 1) / 2 - torch.log(ratio))

    def entropy(self) -> Tensor:
        """½ln(2πe) + ln std, summed over dimensions, [B]."""
        std = self._noisy_std("entropy").expand(self.mean.shape)
        return _sum(torch.log(std) + (1 + math.log(2 * math.pi)) / 2)

    def _noisy_std(self, what: str) -> Tensor:
        if bool((self.std == 0).any()):
            raise ValueError(
                f"this step is deterministic (std 0) and has no {what}: "
                "use a noise scale above 0 at this time, or leave the step out"
            )
        return _wide(self.std)


@dataclass(frozen=True)
class EulerMaruyama:
    """Euler–Maruyama for the family of scale η: μ = x + d[f x − (1+η²)/2 g² s], c² = η² g² |d|.

    Computed as μ = x + d[u + (η²/2)(g²/σ) ε̂] with the velocity u = α'x̂ + σ'ε̂ (α', σ' derivatives
    here), in which nothing divides by α: with η = 0 rectified flow may start at t = 1. With η > 0
    there, g² = ∞ is replaced by `step_diffusion_sq`, which is Flow-GRPO's rule.
    Order 1. Unstable where |d|(f + (1+η²)g²/(2v)) > 2: for large η in few steps prefer GDDIM.
    """

    scale: Scale

    def __post_init__(self) -> None:
        _check_prescribes("EulerMaruyama", self.scale, "eta")

    def __call__(
        self, process: Process, x: Tensor, estimate: Estimate, t: Tensor, t_next: Tensor
    ) -> Transition:
        eta_sq = self.scale(process, t, t_next) ** 2
        g_sq, d = step_diffusion_sq(process, t, t_next), t_next - t
        alpha_rate, sigma_rate = rates(process, t)
        noise_rate = sigma_rate + eta_sq * g_sq / (2 * process.sigma(t))
        mean = x + expand(d * alpha_rate, x) * estimate.data
        mean = mean + expand(d * noise_rate, x) * estimate.noise
        return Transition(mean, expand(torch.sqrt(eta_sq * g_sq * d.abs()), x))


@dataclass(frozen=True)
class Renoise:
    """Go to the data and come back with part fresh noise: μ = α'x̂ + √(σ'² − c²) ε̂, std c.

    DDIM(η) (arXiv 2010.02502 eq. 12) with `Posterior(eta)`, Flow-CPS with `CPS(level)`, DDIM with
    `Still()`. `Posterior` beyond its η_max would need √(negative): that raises ValueError.
    """

    scale: Scale

    def __post_init__(self) -> None:
        _check_prescribes("Renoise", self.scale, "std")

    def __call__(
        self, process: Process, x: Tensor, estimate: Estimate, t: Tensor, t_next: Tensor
    ) -> Transition:
        std, sigma = self.scale(process, t, t_next), process.sigma(t_next)
        if bool((std > sigma * (1 + 1e-6)).any()):
            limit = float(Posterior.limit(process, t, t_next).min())
            raise ValueError(
                f"{self.scale} asks for more noise than a step can hold (eta <= {limit:.4f} here): "
                "lower eta, or use GDDIM(eta), which is defined for every eta"
            )
        kept = torch.sqrt(((sigma - std) * (sigma + std)).clamp(min=0))
        mean = expand(process.alpha(t_next), x) * estimate.data + expand(kept, x) * estimate.noise
        return Transition(mean, expand(std, x))


@dataclass(frozen=True)
class GDDIM:
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

    def __call__(
        self, process: Process, x: Tensor, estimate: Estimate, t: Tensor, t_next: Tensor
    ) -> Transition:
        scale = Constant(self.eta) if isinstance(self.eta, int | float) else self.eta
        eta_sq = scale(process, t, t_next) ** 2
        # xlogy: η = 0 at ρ = ∞ is 0·ln 0 = 0, so the noise is kept rather than lost in a NaN.
        log_kept = torch.xlogy(eta_sq, ratio_quotient(process, t, t_next))
        sigma = process.sigma(t_next)
        mean = expand(process.alpha(t_next), x) * estimate.data
        mean = mean + expand(sigma * torch.exp(log_kept), x) * estimate.noise
        return Transition(mean, expand(sigma * torch.sqrt(-torch.expm1(2 * log_kept)), x))


Kernel: TypeAlias = EulerMaruyama | Renoise | GDDIM
"""The kernels there are; any callable of the same signature will do."""

Step: TypeAlias = Callable[[Process, Tensor, Estimate, Tensor, Tensor], Transition]


def response(kernel: Step, process: Process, t: Tensor, t_next: Tensor) -> Tensor:
    """∂mean/∂x̂0 of a step at a given state, [B]: how far the mean follows the data estimate.

    Every kernel here is linear in (x, x̂, ε̂), and ε̂ = (x − α x̂)/σ, so a unit of x̂ at x = 0 tells.
    """
    x = torch.zeros_like(t)[:, None]
    noise = -(process.alpha(t) / process.sigma(t))[:, None]
    return kernel(process, x, Estimate(torch.ones_like(x), noise), t, t_next).mean[:, 0]


def stochasticity(kernel: Step, process: Process, t: Tensor, t_next: Tensor) -> Tensor:
    """The η [B] of the marginal-preserving family that a step is as noisy as.

    What the scale prescribes; for a step of given std c, the η at which GDDIM has that std:
    η² = ln(1 − c²/σ'²) / (2 ln(ρ'/ρ)).
    """
    if isinstance(kernel, GDDIM) and isinstance(kernel.eta, int | float):
        return torch.full_like(t, kernel.eta)
    if isinstance(kernel, EulerMaruyama):
        return kernel.scale(process, t, t_next)
    if isinstance(kernel, GDDIM):
        return cast(Scale, kernel.eta)(process, t, t_next)
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


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _sum(per_dimension: Tensor) -> Tensor:
    return per_dimension.flatten(1).sum(1)
