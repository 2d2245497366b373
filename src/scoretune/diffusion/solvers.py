"""Deterministic solvers of the probability-flow ODE: steps as pure functions, loops around them.

`field(x, t) -> Estimate` with x [B, *S] and t [B]; `times` is a decreasing tensor [N+1], and the
result is the state at times[-1]. States are kept in float32 or wider.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor

from scoretune.diffusion.estimates import Estimate
from scoretune.diffusion.processes import Process, expand, rates
from scoretune.diffusion.scales import ratio_quotient

Field: TypeAlias = Callable[[Tensor, Tensor], Estimate]

FEW_STEPS = 15
"""Below this many steps DPM-Solver++ makes its last step of first order (arXiv 2211.01095)."""


def velocity_of(process: Process, estimate: Estimate, t: Tensor) -> Tensor:
    """The probability-flow velocity u = α'x̂ + σ'ε̂ = f x − ½g²s, [B, *S]."""
    alpha_rate, sigma_rate = rates(process, t)
    x0, eps = estimate.data, estimate.noise
    return expand(alpha_rate, x0) * x0 + expand(sigma_rate, eps) * eps


def euler_step(
    process: Process, x: Tensor, estimate: Estimate, t: Tensor, t_next: Tensor
) -> Tensor:
    """x' = x + (t' − t) u: order 1 in native time."""
    return x + expand(t_next - t, x) * velocity_of(process, estimate, t)


def ddim_step(process: Process, x: Tensor, estimate: Estimate, t: Tensor, t_next: Tensor) -> Tensor:
    """x' = α'x̂ + σ'ε̂ (arXiv 2010.02502 eq. 12, η = 0): order 1, exact for point-mass data."""
    alpha, sigma = expand(process.alpha(t_next), x), expand(process.sigma(t_next), x)
    return alpha * estimate.data + sigma * estimate.noise


def dpmpp_2m_step(
    process: Process,
    x: Tensor,
    estimate: Estimate,
    t: Tensor,
    t_next: Tensor,
    previous: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """DPM-Solver++(2M), midpoint (arXiv 2211.01095 Alg. 2): x' = (σ'/σ)x + α'(1 − e^{−h})D.

    `previous` is the data estimate of the last step and its time: D = x̂ + (x̂ − x̂_prev)·h/(2h_prev).
    None makes the step first order, D = x̂.
    """
    kept = ratio_quotient(process, t, t_next)
    direction = estimate.data
    if previous is not None:
        last_data, last_t = previous
        # h = −ln(ρ'/ρ); a step that came from pure noise has h_prev = ∞ and no slope to offer.
        slope = torch.log(kept) / torch.log(ratio_quotient(process, last_t, t))
        direction = direction + expand(slope / 2, x) * (estimate.data - last_data)
    shrink = process.sigma(t_next) / process.sigma(t)
    return expand(shrink, x) * x + expand(process.alpha(t_next) * (1 - kept), x) * direction


def euler(process: Process, field: Field, x: Tensor, times: Tensor) -> Tensor:
    """Euler on the probability-flow ODE in native time; finite from rectified flow's t = 1."""
    for t, t_next in _steps(x, times):
        x = euler_step(process, x, field(x, t), t, t_next)
    return x


def ddim(process: Process, field: Field, x: Tensor, times: Tensor) -> Tensor:
    """DDIM, η = 0: the same x/α on the same ρ-grid for every process."""
    for t, t_next in _steps(x, times):
        x = ddim_step(process, x, field(x, t), t, t_next)
    return x


def heun(process: Process, field: Field, x: Tensor, times: Tensor) -> Tensor:
    """Heun (trapezoid) on the probability-flow ODE in native time: order 2, two calls a step.

    A step that ends at σ = 0 stays an Euler step, as in EDM (arXiv 2206.00364 Alg. 1): networks
    are not trained there and σ' may be infinite.
    """
    for t, t_next in _steps(x, times):
        slope = velocity_of(process, field(x, t), t)
        ahead = x + expand(t_next - t, x) * slope
        if bool((process.sigma(t_next) == 0).any()):
            x = ahead
            continue
        slope_next = velocity_of(process, field(ahead, t_next), t_next)
        x = x + expand((t_next - t) / 2, x) * (slope + slope_next)
    return x


def dpmpp_2m(
    process: Process, field: Field, x: Tensor, times: Tensor, *, lower_order_final: bool = True
) -> Tensor:
    """DPM-Solver++(2M): order 2, one call a step.

    First order: the first step, a last step to σ = 0, and (`lower_order_final`) the last of fewer
    than 15 steps. These are diffusers' rules.
    """
    previous: tuple[Tensor, Tensor] | None = None
    steps = _steps(x, times)
    for k, (t, t_next) in enumerate(steps):
        estimate = field(x, t)
        short = lower_order_final and len(steps) < FEW_STEPS
        if k == len(steps) - 1 and (short or bool((process.sigma(t_next) == 0).any())):
            previous = None
        x = dpmpp_2m_step(process, x, estimate, t, t_next, previous)
        previous = (estimate.data, t)
    return x


def _steps(x: Tensor, times: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The pairs (t, t_next), each [B] on x's device; `times` [N+1], or [N+1, B] of one's own."""
    if not (times.dim() in (1, 2) and len(times) >= 2 and bool((times.diff(dim=0) < 0).all())):
        raise ValueError("times must decrease strictly, in at least two entries: [N+1] or [N+1, B]")
    rows = times.to(x.device)
    return list(pairwise(rows if rows.dim() == 2 else rows[:, None].expand(-1, x.shape[0])))
