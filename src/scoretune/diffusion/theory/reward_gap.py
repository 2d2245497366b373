"""What samples of a policy are worth by its ODE and by its SDEs, and how far the two are apart.

A policy is tuned under a sampler of stochasticity η and deployed under another, mostly η = 0
(arXiv 2510.10767). Even with an exact score and steps that are infinitely fine the two differ:
sampling starts from N(0, π²) rather than from the law of x_T, which the ODE remembers and the SDE
forgets. The *reward gap* is E r(x_0) under η less E r(x_0) under η = 0, both from N(0, π²).

Gaussian data N(m, s²) and r = −(x − c)² are closed forms in q_η = (s²/u_T)^{(1+η²)/2}; in more
dimensions, a sum over the eigendirections of the covariance. Any law on the line and any smooth
reward are integrals for η = 1. Finite steps add a bias of their own: `sampler_bias`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from scoretune.diffusion.kernels import Kernel
from scoretune.diffusion.processes import Process, noise_ratio
from scoretune.diffusion.theory.gaussian import Moments, after_steps, arrival, law, wasserstein
from scoretune.shapes import check_rank

Slope = Callable[[Tensor], Tensor]
"""The derivative r' of a reward, elementwise: points [K] to numbers [K]."""

POINTS, REACH = 4001, 8.0
"""Points of a quadrature, and how many standard deviations of a component it goes beyond all."""


# ------------------------------------------------------------------ Gaussian data


def expected(moments: Moments, centre: float) -> float:
    """E r for r = −(x − c)², of any law with these moments: −(m − c)² − s²."""
    return -((moments[0] - centre) ** 2) - moments[1]


def reward(process: Process, *, mean: float, variance: float, centre: float, eta: float) -> float:
    """R(η) = E r of what the dynamics of η make of the prior, r = −(x − c)², by `arrival`.

    For VE, where α = 1 and π = σ_T, it is −(m − c)² − s² + 2m(m − c)q_η − (m² − s²)q_η².
    """
    return expected(arrival(process, mean=mean, variance=variance, eta=eta), centre)


def gap(process: Process, *, mean: float, variance: float, centre: float, eta: float) -> float:
    """R(η) − R(0): what the deployed ODE lacks (> 0) of the sampler that was tuned."""
    law = {"mean": mean, "variance": variance, "centre": centre}
    by_sde, by_ode = (reward(process, eta=e, **law) for e in (eta, 0.0))
    return by_sde - by_ode


def gap_rate(*, mean: float, variance: float, centre: float) -> float:
    """lim ρ_T·(R(η) − R(0)) for any η > 0, as the noise ρ_T = σ_T/α_T grows: −2m(m − c)s.

    Like 1/T for VE with σ_T = T, like e^{−B/2} for VP with B = ∫β. Where m(m − c) = 0 it is 0, and
    the gap of the order of 1/ρ_T².
    """
    return -2 * mean * (mean - centre) * math.sqrt(variance)


def asymptotic_gap(process: Process, *, mean: float, variance: float, centre: float) -> float:
    """`gap_rate`/ρ_T: what the gap of any η > 0 tends to. 0 where no signal is left."""
    ratio = float(noise_ratio(process, torch.tensor(process.horizon, dtype=torch.float64)))
    return gap_rate(mean=mean, variance=variance, centre=centre) / ratio


def sampler_bias(
    process: Process,
    kernel: Kernel | None,
    times: Tensor,
    variance: float = 0.25,
    *,
    mean: float = 1.0,
    eta: float = 0.0,
    start: Moments | None = None,
) -> float:
    """W2 at times[-1] of what a sampler makes of data N(m, s²) with their exact score, exactly.

    From the prior, so that it holds what the start and what the steps do wrong; from
    `gaussian.law` at times[0] as `start`, the steps alone. Without a kernel, the start alone: the
    exact dynamics of `eta`.
    """
    reached = after_steps(
        process, kernel, times, mean=mean, variance=variance, eta=eta, start=start
    )
    return wasserstein(reached, law(process, times[-1].double(), mean=mean, variance=variance))


# ------------------------------------------------------------------ any law on the line


class Law(Protocol):
    """A Gaussian mixture on the line, as `rl.tilt.Mixture`: weights and variances [*B, K], means
    [*B, K, 1], and the mixtures that noise and its observation make of it."""

    @property
    def log_weights(self) -> Tensor: ...
    @property
    def means(self) -> Tensor: ...
    @property
    def variances(self) -> Tensor: ...
    @property
    def mean(self) -> Tensor: ...
    def diffused(self, alpha: float, sigma: float) -> Law: ...
    def posterior(self, x: Tensor, alpha: float, sigma: float) -> Law: ...


def cdf(mixture: Law, x: Tensor) -> Tensor:
    """F(x) of points [K]: [K], or [B, K] of a batch of B mixtures."""
    check_rank(1, 1, x=x)
    means, stds = mixture.means.squeeze(-1)[..., None], mixture.variances.sqrt()[..., None]
    below = torch.special.ndtr((x - means) / stds)
    probabilities: Tensor = (mixture.log_weights.exp()[..., None] * below).sum(-2)
    return probabilities


def quantile(mixture: Law, probabilities: Tensor) -> Tensor:
    """F^{-1} of probabilities [K] by bisection, [K]; 40 deviations beyond all where infinite."""
    check_rank(1, 1, probabilities=probabilities)
    beyond = 40 * mixture.variances.sqrt()
    centres = mixture.means.squeeze(-1)
    low = torch.full_like(probabilities, float((centres - beyond).min()))
    high = torch.full_like(probabilities, float((centres + beyond).max()))
    for _ in range(80):
        middle = (low + high) / 2
        under = cdf(mixture, middle) < probabilities
        low, high = torch.where(under, middle, low), torch.where(under, high, middle)
    return (low + high) / 2


def ode_cdf(process: Process, data: Law, x: Tensor) -> Tensor:
    """P(x_0 <= x) under the ODE from N(0, π²): Φ(F_T^{-1}(F_0(x))/π), [K].

    On the line the flow of the ODE is increasing and takes the law of x_T to the data, so it takes
    quantiles to quantiles.
    """
    last = quantile(data.diffused(*_end(process)), cdf(data, x))
    probabilities: Tensor = torch.special.ndtr(last / process.prior_std)
    return probabilities


def sde_cdf(process: Process, data: Law, x: Tensor) -> Tensor:
    """P(x_0 <= x) under the SDE of η = 1 from N(0, π²): ∫ P(x_0 <= x | x_T = πz) φ(z) dz, [K].

    With η = 1 the dynamics are the noising in reverse, so x_0 given x_T is the posterior.
    """
    z = torch.linspace(-9, 9, 401, dtype=torch.float64)
    density = torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    return density @ cdf(data.posterior(process.prior_std * z[:, None], *_end(process)), x)


def lost(data: Law, slope: Slope, reached: Callable[[Tensor], Tensor]) -> float:
    """E r(data) − E r(x) = ∫ r'(x) (F(x) − F_0(x)) dx, for x distributed as `reached` says."""
    x = _points(data)
    return float(torch.trapezoid(slope(x) * (reached(x) - cdf(data, x)), x))


def smooth_gap(process: Process, data: Law, slope: Slope) -> float:
    """E r under the SDE of η = 1 less E r under the ODE, for any mixture and any smooth reward."""
    by_ode = lost(data, slope, lambda x: ode_cdf(process, data, x))
    return by_ode - lost(data, slope, lambda x: sde_cdf(process, data, x))


def smooth_gap_rate(data: Law, slope: Slope) -> float:
    """lim ρ_T·gap for any law with mean m and any smooth reward: m ∫ r'(x) φ(Φ^{-1}(F_0(x))) dx.

    The prior lacks the α_T m by which x_T is off centre. To the ODE that is a shift by m/ρ_T of the
    Gaussian quantile z = Φ^{-1}(F_0(x)); the SDE forgets it. For Gaussian data it is `gap_rate`.
    """
    x = _points(data)
    z = torch.special.ndtri(cdf(data, x).clamp(1e-300, 1 - 1e-16))
    density = torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    return float(data.mean) * float(torch.trapezoid(slope(x) * density, x))


def _end(process: Process) -> tuple[float, float]:
    """(α_T, σ_T)."""
    last = torch.tensor(process.horizon, dtype=torch.float64)
    return float(process.alpha(last)), float(process.sigma(last))


def _points(data: Law) -> Tensor:
    """Where a quadrature over the law looks, [K]."""
    centres, reach = data.means.squeeze(-1), REACH * data.variances.sqrt()
    low, high = float((centres - reach).min()), float((centres + reach).max())
    return torch.linspace(low, high, POINTS, dtype=torch.float64)
