"""Consistency models: one network call from any noise level to the data (arXiv 2303.01469).

A consistency function is constant along a path of the probability-flow ODE and says where the path
was at t_min. Everything is written in the coordinates (x̄, ρ) = (x/α, σ/α), in which all processes
are the same, so that any network of any process will do: f(x, t) is the path's x̄ at t_min, data
with noise of ρ_min = ρ(t_min) left.

Times decrease, as a sampler's do. t_next is less noisy than t.
"""

import math
from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from scoretune.diffusion import grids
from scoretune.diffusion.estimates import Estimate, Field
from scoretune.diffusion.processes import Process, expand, noise_ratio
from scoretune.diffusion.solvers import ddim_step
from scoretune.diffusion.theory.gaussian import state_variance
from scoretune.diffusion.transitions import squared_norm
from scoretune.shapes import check_batch, check_rank, check_same_shape

Function: TypeAlias = Callable[[Tensor, Tensor], Tensor]
Solver: TypeAlias = Literal["heun", "euler"]


def from_estimate(
    process: Process, estimate: Estimate, x: Tensor, t: Tensor, *, t_min: float, sigma_data: float
) -> Tensor:
    """f(x, t) [B, *S] from a network's estimate, whatever the network predicts.

    F is read from the denoiser D by EDM's preconditioning, F = (D − σ_d²/(ρ²+σ_d²) x̄) /
    (ρσ_d/√(ρ²+σ_d²)), which makes f = c_skip x̄ + c_out F

        f = (1 − ρ_min/ρ) D + (c_skip − (1 − ρ_min/ρ) σ_d²/(ρ²+σ_d²)) x̄:

    nearly the denoiser itself, the better the larger ρ is. Finite without any signal (α = 0).
    """
    check_same_shape(x=x, data=estimate.data)
    alpha, sigma = process.alpha(t), process.sigma(t)
    data_sq = sigma_data**2
    lead = sigma - _least(process, t, t_min) * alpha
    kept = lead / sigma
    # Both skips are divided by α, for x = αx̄ is at hand where x̄ is infinite.
    skip = data_sq * alpha / (lead**2 + data_sq * alpha**2)
    denoiser_skip = data_sq * alpha / (sigma**2 + data_sq * alpha**2)
    return expand(kept, x) * estimate.data + expand(skip - kept * denoiser_skip, x) * x


def function(process: Process, field: Field, *, t_min: float, sigma_data: float = 0.5) -> Function:
    """The consistency function (x, t) -> x̄ at t_min of a field that was trained as one."""

    def jump(x: Tensor, t: Tensor) -> Tensor:
        return from_estimate(process, field(x, t), x, t, t_min=t_min, sigma_data=sigma_data)

    return jump


def exact_gaussian(
    process: Process, x: Tensor, t: Tensor, *, t_min: float, mean: float, variance: float
) -> Tensor:
    """f* for data N(m, s²) in each dimension, [B, *S]: x̄ at t_min of the exact path through x.

    f* = m + √(u_min/u_t) (x̄ − m) with u = s² + ρ²; α(t_min)·f* is the state there.
    """
    alpha, least = process.alpha(t), _least(process, t, t_min)
    slope = torch.sqrt((variance + least**2) / state_variance(process, t, variance))
    return mean + expand(slope, x) * (x - expand(alpha * mean, x))


def ode_step(
    process: Process, field: Field, x: Tensor, t: Tensor, t_next: Tensor, *, solver: Solver
) -> Tensor:
    """One step of dx̄/dρ = ε̂ from t to t_next, [B, *S]: EDM's Heun, or Euler, which is DDIM."""
    check_batch(x, t=t, t_next=t_next)
    estimate = field(x, t)
    ahead = ddim_step(process, x, estimate, t, t_next)
    if solver == "euler":
        return ahead
    half = (noise_ratio(process, t_next) - noise_ratio(process, t)) / 2
    bend = field(ahead, t_next).noise - estimate.noise
    return ahead + expand(process.alpha(t_next) * half, x) * bend


def grid(process: Process, points: int, t_min: float, *, rho: float = 7.0) -> Tensor:
    """`points` decreasing times with equal steps of ρ^{1/7}, float64; the last one is t_min.

    The first is the horizon, or the time of ρ = `most_ratio` where it lies beyond: next to
    nothing is left of the data there, and no step of finite length in ρ leads away from ρ = ∞.
    """
    if points < 2:
        raise ValueError(f"consistency needs at least 2 times, got {points}")
    if not 0 < t_min < process.horizon:
        raise ValueError(f"t_min must lie in (0, {process.horizon}), got {t_min}")
    ends = torch.tensor([process.horizon, t_min], dtype=torch.float64)
    last, least = noise_ratio(process, ends)
    if float(last) > grids.most_ratio(process):
        last = torch.tensor(grids.most_ratio(process), dtype=torch.float64)
        ends[0] = grids.time_of_ratio(process, last)
    fraction = torch.linspace(0, 1, points, dtype=torch.float64)
    root, root_least = last ** (1 / rho), least ** (1 / rho)
    times = grids.time_of_ratio(process, (root + fraction * (root_least - root)) ** rho)
    times[0], times[-1] = ends
    return times


# ------------------------------------------------------------------ what training is made of


def ct_points(update: int, updates: int, first: int = 2, last: int = 150) -> int:
    """N(k) = ⌈√(k/K ((s₁+1)² − s₀²) + s₀²) − 1⌉ + 1 grid times (arXiv 2303.01469 app. C)."""
    grown = update / updates * ((last + 1) ** 2 - first**2) + first**2
    return math.ceil(math.sqrt(grown) - 1) + 1


def ct_decay(points: int, first: int = 2, start: float = 0.9) -> float:
    """μ = exp(s₀ ln μ₀/N), the target's memory (arXiv 2303.01469 app. C)."""
    return math.exp(first * math.log(start) / points)


def ict_points(update: int, updates: int, first: int = 10, last: int = 1280) -> int:
    """N(k) = min(s₀2^{⌊k/K'⌋}, s₁) + 1, K' = ⌊K/(log₂⌊s₁/s₀⌋ + 1)⌋ (arXiv 2310.14189 Table 1)."""
    stage = max(1, math.floor(updates / (math.log2(last // first) + 1)))
    return int(min(first * 2 ** (update // stage), last)) + 1


def lognormal_pairs(ratios: Tensor, mean: float = -1.1, std: float = 2.0) -> Tensor:
    """How likely each pair (ρ_n, ρ_{n+1}) of a decreasing grid [N] is to be drawn, [N−1].

    The mass of ln ρ ~ N(mean, std²) between the two, scaled to sum 1 (arXiv 2310.14189 Table 1).
    """
    check_rank(1, 1, ratios=ratios)
    mass = torch.special.erf((torch.log(ratios) - mean) / (math.sqrt(2) * std))
    between: Tensor = mass[:-1] - mass[1:]
    return between / between.sum()


def pseudo_huber(difference: Tensor, c: float | None = None) -> Tensor:
    """√(‖d‖² + c²) − c, [B]; c = 0.00054√D unless given (arXiv 2310.14189 Table 1)."""
    squared = squared_norm(difference)
    c = 0.00054 * math.sqrt(difference[0].numel()) if c is None else c
    # ‖d‖²/(√(‖d‖² + c²) + c) is the same number without the cancellation near 0.
    distance: Tensor = squared / (torch.sqrt(squared + c**2) + c)
    return distance


# ----------------------------------------------------------------------------- sampling


def one_step(jump: Function, x: Tensor, t: float) -> Tensor:
    """Samples from noise x [B, *S] at time t by one call."""
    return jump(x, _all_at(t, x))


def multistep(
    process: Process,
    jump: Function,
    x: Tensor,
    times: Tensor,
    *,
    t_min: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Jump from each of the decreasing `times` [N], with fresh noise between (2303.01469 Alg. 1).

    x̄ ← x̄ + √(ρ² − ρ_min²) z brings a finished sample, which still holds ρ_min, back to time t.
    """
    check_rank(1, 1, times=times)
    done = one_step(jump, x, float(times[0]))
    for now in times[1:].tolist():
        t = _all_at(now, x)
        place = x.device if generator is None else generator.device
        noise = torch.randn(x.shape, generator=generator, device=place).to(done)
        alpha, sigma = process.alpha(t), process.sigma(t)
        fresh = torch.sqrt((sigma**2 - (alpha * _least(process, t, t_min)) ** 2).clamp(min=0))
        done = jump(expand(alpha, x) * done + expand(fresh, x) * noise, t)
    return done


def _all_at(t: float, x: Tensor) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    return torch.full((len(x),), t, dtype=wide, device=x.device)


def _least(process: Process, t: Tensor, t_min: float) -> Tensor:
    """ρ_min, a scalar like t."""
    return noise_ratio(process, torch.full_like(t.flatten()[0], t_min))
