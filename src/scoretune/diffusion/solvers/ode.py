"""Deterministic samplers: Euler, DDIM and Heun on the probability-flow ODE.

`field(x, t) -> Estimate` with x [B, *S] and t [B]; `times` is a decreasing tensor [N+1], and the
result is the state at times[-1]. States are kept in float32 or wider. `visit` is told of every
node that a sampler goes on from, once, however often it looks elsewhere.
"""

from itertools import pairwise

import torch
from torch import Tensor

from scoretune.diffusion.estimates import Estimate, Field
from scoretune.diffusion.kernels import EulerMaruyama, Renoise, Still
from scoretune.diffusion.processes import Process, expand, rates
from scoretune.diffusion.solvers.base import KernelSampler, Visit, node_times, on_grid
from scoretune.diffusion.transitions import Weights, wide


def velocity_of(process: Process, estimate: Estimate, t: Tensor) -> Tensor:
    """The probability-flow velocity u = α'x̂ + σ'ε̂ = f x − ½g²s, [B, *S]."""
    alpha_rate, sigma_rate = rates(process, t)
    x0, eps = estimate.data, estimate.noise
    return expand(alpha_rate, x0) * x0 + expand(sigma_rate, eps) * eps


def euler_step(
    process: Process, x: Tensor, estimate: Estimate, t: Tensor, t_next: Tensor
) -> Tensor:
    """x' = x + (t' − t) u: order 1 in native time."""
    return EulerMaruyama(Still())(process, x, estimate, t, t_next).mean


def ddim_step(process: Process, x: Tensor, estimate: Estimate, t: Tensor, t_next: Tensor) -> Tensor:
    """x' = α'x̂ + σ'ε̂ (arXiv 2010.02502 eq. 12, η = 0): order 1, exact for point-mass data."""
    return Renoise(Still())(process, x, estimate, t, t_next).mean


def euler(
    process: Process, field: Field, x: Tensor, times: Tensor, *, visit: Visit | None = None
) -> Tensor:
    """Euler on the probability-flow ODE in native time: order 1, finite from rectified flow's 1."""
    return KernelSampler(EulerMaruyama(Still()))(process, field, x, times, visit=visit)


def ddim(
    process: Process, field: Field, x: Tensor, times: Tensor, *, visit: Visit | None = None
) -> Tensor:
    """DDIM, η = 0: order 1, the same x/α on the same ρ-grid for every process."""
    return KernelSampler(Renoise(Still()))(process, field, x, times, visit=visit)


def heun(
    process: Process, field: Field, x: Tensor, times: Tensor, *, visit: Visit | None = None
) -> Tensor:
    """Heun (trapezoid) on the probability-flow ODE in native time: order 2, two calls a step.

    A step that ends at σ = 0 stays an Euler step, as in EDM (arXiv 2206.00364 Alg. 1): networks
    are not trained there and σ' may be infinite.
    """
    nodes, x = on_grid(process, x, times), wide(x)
    steps = EulerMaruyama(Still()).weights(process, nodes[:-1], nodes[1:]).over(x)
    half = nodes.diff(dim=0) / 2
    alpha_rate, sigma_rate = (rate[1:] for rate in rates(process, nodes))
    ends = Weights(torch.ones_like(half), half * alpha_rate, half * sigma_rate, half).over(x)
    last = (process.sigma(nodes[1:]) == 0).any(1).tolist()
    grid = zip(steps.each(), ends.each(), last, pairwise(node_times(nodes, x)), strict=True)
    for k, (step, end, final, (t, t_next)) in enumerate(grid):
        estimate = field(x, t)
        if visit is not None:
            visit(k, x, estimate)
        ahead = step.mean(x, estimate)
        # x + d(u + u')/2 is half-way between x and x + d u, and from there on by d u'/2.
        x = ahead if final else end.mean(torch.lerp(x, ahead, 0.5), field(ahead, t_next))
    return x
