"""Gaussian data N(m, s²) in each dimension: every law of the reverse dynamics in closed form.

With v_t = α²s² + σ² the variance of x_t and u_t = v_t/α² = s² + ρ² that of x_t/α, the family

    dx = [f x − (1+η²)/2 g² ∇ln p_t] dt + η g dw̄        (arXiv 2011.13456; η = 1 and η = 0)

is linear, and f + g²/(2v) = ½ d ln v/dt, g²/v = d ln u/dt integrate it exactly. s² → 0 is gDDIM
(arXiv 2206.05564). A full covariance is the same in its eigenbasis.
"""

import torch
from torch import Tensor

from scoretune.diffusion.estimates import Estimate
from scoretune.diffusion.processes import Process, expand, noise_ratio
from scoretune.diffusion.transitions import Transition
from scoretune.diffusion.walks import Field


def state_variance(process: Process, t: Tensor, variance: float) -> Tensor:
    """v_t = α²s² + σ², same shape as t."""
    return process.alpha(t) ** 2 * variance + process.sigma(t) ** 2


def scaled_variance(process: Process, t: Tensor, variance: float) -> Tensor:
    """u_t = s² + ρ², the variance of x_t/α, same shape as t."""
    return variance + noise_ratio(process, t) ** 2


def exact(process: Process, *, mean: float, variance: float) -> Field:
    """The field of the exact score −(x − αm)/v: x̂0 = m + αs²/v (x − αm), ε̂ = σ/v (x − αm)."""

    def field(x: Tensor, t: Tensor) -> Estimate:
        alpha, sigma = process.alpha(t), process.sigma(t)
        spread = expand(state_variance(process, t, variance), x)
        away = x - expand(alpha, x) * mean
        data = mean + expand(alpha, x) * variance / spread * away
        return Estimate(data, expand(sigma, x) / spread * away)

    return field


def transition(
    process: Process,
    x: Tensor,
    t: Tensor,
    t_next: Tensor,
    *,
    mean: float,
    variance: float,
    eta: float,
) -> Transition:
    """The law of x at t_next given x [B, *S] at t >= t_next, both [B], of any η >= 0.

    With y = x − αm:  y' | y ~ N(√(v'/v) (u'/u)^{η²/2} y, v'[1 − (u'/u)^{η²}]).
    """
    kept = log_kept(process, t, t_next, variance)
    v, v_next = (state_variance(process, at, variance) for at in (t, t_next))
    slope = torch.sqrt(v_next / v) * torch.exp(eta**2 / 2 * kept)
    away = x - expand(process.alpha(t), x) * mean
    std = torch.sqrt(v_next * -torch.expm1(eta**2 * kept))
    centre = expand(process.alpha(t_next), x) * mean + expand(slope, x) * away
    return Transition(centre, expand(std, x))


def log_kept(process: Process, t: Tensor, t_next: Tensor, variance: float) -> Tensor:
    """ln(u'/u) <= 0, same shape as t."""
    before, after = (scaled_variance(process, at, variance) for at in (t, t_next))
    return torch.log(after / before)


def arrival(
    process: Process, *, mean: float, variance: float, eta: float, prior_std: float | None = None
) -> tuple[float, float]:
    """Mean and variance at t = 0 of the exact reverse dynamics from N(0, π²) at the horizon.

    With q = s²/u_T:  m[1 − q^{(1+η²)/2}]  and  s²(1 − q^{η²}) + (s²/v_T) q^{η²} π². The default π
    is the process's own. η = 0 remembers how the prior differs from p_T, η > 0 forgets it.
    """
    last = torch.tensor(process.horizon, dtype=torch.float64)
    std = process.prior_std if prior_std is None else prior_std
    quotient = variance / float(scaled_variance(process, last, variance))
    v_last = float(state_variance(process, last, variance))
    lost = quotient ** (eta**2)
    # α_T s/√v_T = √q, so that the mean needs no α.
    centre = mean * (1 - quotient ** ((1 + eta**2) / 2))
    return centre, variance * (1 - lost) + variance / v_last * lost * std**2


def wasserstein(first: tuple[float, float], second: tuple[float, float]) -> float:
    """W2 of two laws N(mean, variance) on the line: √((m − m')² + (s − s')²)."""
    apart = first[0] - second[0], first[1] ** 0.5 - second[1] ** 0.5
    return float((apart[0] ** 2 + apart[1] ** 2) ** 0.5)
