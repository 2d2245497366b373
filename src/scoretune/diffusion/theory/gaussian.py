"""Gaussian data N(m, s²) in each dimension: every law of the reverse dynamics in closed form.

With v_t = α²s² + σ² the variance of x_t and u_t = v_t/α² = s² + ρ² that of x_t/α, the family

    dx = [f x − (1+η²)/2 g² ∇ln p_t] dt + η g dw̄        (arXiv 2011.13456; η = 1 and η = 0)

is linear, and f + g²/(2v) = ½ d ln v/dt, g²/v = d ln u/dt integrate it exactly. s² → 0 is gDDIM
(arXiv 2206.05564). A full covariance is the same in its eigenbasis.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from scoretune.diffusion.estimates import Estimate, Field
from scoretune.diffusion.kernels import Kernel
from scoretune.diffusion.processes import Process, expand, noise_ratio
from scoretune.diffusion.transitions import Transition
from scoretune.shapes import check_batch, check_rank, check_same_shape

Moments: TypeAlias = tuple[float, float]
"""Mean and variance of a law on the line."""
Solve: TypeAlias = Callable[[Process, Field, Tensor, Tensor], Tensor]
"""A deterministic solver: (process, field, x, times) -> x at times[-1]."""


def state_variance(process: Process, t: Tensor, variance: float | Tensor) -> Tensor:
    """v_t = α²s² + σ², same shape as t."""
    if isinstance(variance, Tensor) and variance.dim():
        check_same_shape(t=t, variance=variance)
    return process.alpha(t) ** 2 * variance + process.sigma(t) ** 2


def law(process: Process, t: Tensor, *, mean: float, variance: float) -> Moments:
    """The law N(αm, v) of x_t, at one time."""
    return float(process.alpha(t)) * mean, float(state_variance(process, t, variance))


def scaled_variance(process: Process, t: Tensor, variance: float) -> Tensor:
    """u_t = s² + ρ², the variance of x_t/α, same shape as t."""
    return variance + noise_ratio(process, t) ** 2


def exact(process: Process, *, mean: float | Tensor, variance: float | Tensor) -> Field:
    """The field of the exact score −(x − αm)/v: x̂0 = m + αs²/v (x − αm), ε̂ = σ/v (x − αm).

    Tensors [] as moments make it a policy with two parameters.
    """
    for name, moment in (("mean", mean), ("variance", variance)):
        if isinstance(moment, Tensor):
            check_rank(0, 0, **{name: moment})

    def field(x: Tensor, t: Tensor) -> Estimate:
        alpha, sigma = process.alpha(t), process.sigma(t)
        v = expand(state_variance(process, t, variance), x)
        away = x - expand(alpha, x) * mean
        data = mean + expand(alpha, x) * variance / v * away
        return Estimate(data, expand(sigma, x) / v * away)

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
    check_batch(x, t=t, t_next=t_next)
    slope, std = _carried(process, t, t_next, variance, eta)
    away = x - expand(process.alpha(t), x) * mean
    centre = expand(process.alpha(t_next), x) * mean + expand(slope, x) * away
    return Transition(centre, expand(std, x))


def _carried(
    process: Process, t: Tensor, t_next: Tensor, variance: float, eta: float
) -> tuple[Tensor, Tensor]:
    """What a step does to y = x − αm: (√(v'/v) (u'/u)^{η²/2}, √(v'[1 − (u'/u)^{η²}]))."""
    before, after = (scaled_variance(process, at, variance) for at in (t, t_next))
    v, v_next = (state_variance(process, at, variance) for at in (t, t_next))
    # xlogy: without noise, u = ∞ (rectified flow at t = 1) is no matter.
    kept = torch.xlogy(torch.full_like(before, eta**2), after / before)
    slope = torch.sqrt(v_next / v) * torch.exp(kept / 2)
    return slope, torch.sqrt(v_next * -torch.expm1(kept))


def arrival(process: Process, *, mean: float, variance: float, eta: float) -> Moments:
    """Mean and variance at t = 0 of the exact reverse dynamics from N(0, π²) at the horizon.

    With q = s²/u_T:  m[1 − q^{(1+η²)/2}]  and  s²(1 − q^{η²}) + (s²/v_T) q^{η²} π². η = 0 remembers
    how the prior differs from p_T, η > 0 forgets it.
    """
    last = torch.tensor(process.horizon, dtype=torch.float64)
    quotient = variance / float(scaled_variance(process, last, variance))
    v_last = float(state_variance(process, last, variance))
    lost = quotient ** (eta**2)
    # α_T s/√v_T = √q, so that the mean needs no α.
    centre = mean * (1 - quotient ** ((1 + eta**2) / 2))
    return centre, variance * (1 - lost) + variance / v_last * lost * process.prior_std**2


# ----------------------------------------------------------------------------- in N steps


def after_steps(
    process: Process,
    kernel: Kernel | None,
    times: Tensor,
    *,
    mean: float,
    variance: float,
    eta: float = 0.0,
    start: Moments | None = None,
) -> Moments:
    """Mean and variance at times[-1] of a sampler's own N steps along `times` [N+1], float64.

    Exactly: with the field of `exact` a kernel's step is x' = a(x − αm) + b + cξ. Without a kernel,
    the exact dynamics of the given η. From `start`, or else from the process's prior N(0, π²).
    """
    check_rank(1, 1, times=times)
    t, t_next = times[:-1].double(), times[1:].double()
    alpha, sigma = process.alpha(t), process.sigma(t)
    if kernel is None:
        slope, std = _carried(process, t, t_next, variance, eta)
        offset = process.alpha(t_next) * mean
    else:
        weights = kernel.weights(process, t, t_next)
        v = state_variance(process, t, variance)
        slope = weights.state + (weights.data * alpha * variance + weights.noise * sigma) / v
        offset, std = (weights.state * alpha + weights.data) * mean, weights.std
    centre, square = (0.0, process.prior_std**2) if start is None else start
    for a, b, at, c in torch.stack([slope, offset, alpha * mean, std], 1).tolist():
        centre, square = a * (centre - at) + b, a * a * square + c * c
    return centre, square


def after_solver(
    process: Process,
    solver: Solve,
    times: Tensor,
    *,
    mean: float,
    variance: float,
    start: Moments | None = None,
) -> Moments:
    """The same for a solver without noise of any order: it is affine in where it starts."""
    ends = torch.tensor([[0.0], [1.0]], dtype=torch.float64, device=times.device)
    field = exact(process, mean=mean, variance=variance)
    low, high = solver(process, field, ends, times.double())[:, 0].tolist()
    centre, square = (0.0, process.prior_std**2) if start is None else start
    return (high - low) * centre + low, (high - low) ** 2 * square


def wasserstein(first: Moments, second: Moments) -> float:
    """W2 of two laws N(mean, variance) on the line: √((m − m')² + (s − s')²)."""
    apart = first[0] - second[0], first[1] ** 0.5 - second[1] ** 0.5
    return float((apart[0] ** 2 + apart[1] ** 2) ** 0.5)
