"""Heun's method in the noise ratio ρ = σ/α, with churn, for any process."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scoretune.diffusion import transitions
from scoretune.diffusion.estimates import Field
from scoretune.diffusion.processes import Process, noise_ratio, time_of_ratio
from scoretune.diffusion.scales import check_level
from scoretune.diffusion.solvers.base import Visit, node_times, on_grid, where_finite
from scoretune.diffusion.transitions import Weights, broadcast


@dataclass(frozen=True)
class Churn:
    """Noise before a step (arXiv 2206.00364 Alg. 2).

    A step that begins at s_min <= ρ <= s_max is first raised to ρ(1 + γ), no higher than the
    horizon, by noise of std s_noise; γ = min(amount/N, √2 − 1) for N steps.
    """

    amount: float
    s_min: float = 0.0
    s_max: float = math.inf
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        for name in ("amount", "s_min", "s_noise"):
            check_level(f"Churn {name}", getattr(self, name))
        if not self.s_max >= self.s_min:
            raise ValueError(f"Churn needs s_max >= s_min, got {self.s_max} and {self.s_min}")


def edm_heun(
    process: Process,
    field: Field,
    x: Tensor,
    times: Tensor,
    *,
    churn: float | Churn = 0.0,
    generator: torch.Generator | None = None,
    visit: Visit | None = None,
) -> Tensor:
    """EDM's sampler (arXiv 2206.00364 Alg. 2) on d(x/α)/dρ = ε̂: order 2, two calls a step.

    Euler in ρ, then the trapezoid; a step to σ = 0, or from α = 0 where ρ = ∞, stays Euler. With
    `churn`, a number or all four of them, noise raises a step before it is taken.
    """
    churn = churn if isinstance(churn, Churn) else Churn(churn)
    nodes, x = on_grid(process, x, times), transitions.wide(x)
    start, end, ratio = nodes[:-1], nodes[1:], noise_ratio(process, nodes[:-1])
    raised = start
    if churn.amount:
        gamma = min(churn.amount / len(start), math.sqrt(2) - 1)
        higher = time_of_ratio(process, ratio * (1 + gamma)).to(start)
        within = (ratio >= churn.s_min) & (ratio <= churn.s_max) & torch.isfinite(ratio)
        raised = torch.where(within & (higher > start), higher, start)
    grown, added = (broadcast(numbers, x) for numbers in _lift(process, start, raised))
    lifted = (raised > start).any(1).tolist()
    alpha, sigma = process.alpha(end), process.sigma(end)
    nothing = torch.zeros_like(alpha)
    steps = Weights(nothing, alpha, sigma, nothing).over(x)
    # α'(ρ' − ρ)/2, the weight of ε̂' − ε̂; a step to σ = 0 never asks there.
    bend = where_finite((sigma - alpha * noise_ratio(process, raised)) / 2) * (sigma > 0)
    bent, bend = (bend != 0).any(1).tolist(), broadcast(bend, x)
    ends = node_times(end, x)
    for k, (step, t) in enumerate(zip(steps.each(), node_times(raised, x), strict=True)):
        if lifted[k]:
            noise = transitions.fresh(x, generator)
            x = torch.addcmul(grown[k] * x, churn.s_noise * added[k], noise)
        estimate = field(x, t)
        if visit is not None:
            visit(k, x, estimate)
        x = step.mean(x, estimate)
        if bent[k]:
            x = torch.addcmul(x, bend[k], field(x, ends[k]).noise - estimate.noise)
    return x


def _lift(process: Process, t: Tensor, raised: Tensor) -> tuple[Tensor, Tensor]:
    """Up in time: (α̂/α, √(σ̂² − (α̂/α)²σ²)), which is (1, 0) where nothing is raised."""
    grown = process.alpha(raised) / process.alpha(t)
    grown = torch.where(raised > t, grown, torch.ones_like(grown))
    added = process.sigma(raised) ** 2 - (grown * process.sigma(t)) ** 2
    return grown, torch.sqrt(added.clamp(min=0))
