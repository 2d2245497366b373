"""Score matching: four losses with one minimiser, and the likelihood that a score implies.

    explicit   E ‖ŝ − ∇ ln p‖²                                  needs the score it looks for
    implicit   E ‖ŝ‖² + 2∇·ŝ                = explicit − E ‖∇ ln p‖²   (Hyvärinen, JMLR 2005)
    sliced     E ‖ŝ‖² + 2 vᵀ(∇ŝ)v           = implicit, v random      (arXiv 1905.07088)
    denoising  E ‖ŝ(αx0 + σε) + ε/σ‖²       = explicit + const        (Vincent 2011)

(arXiv 2402.07487 sec. 3.) Each returns one number per sample, [B], summed over dimensions. A score
is a function x [B, *S] -> [B, *S] that treats samples separately. States are taken in float32 or
wider; derivatives with respect to x are differentiable in turn, wherever gradients are enabled.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from scoretune.diffusion.estimates import Field
from scoretune.diffusion.processes import Process, expand
from scoretune.diffusion.solvers import velocity_of
from scoretune.diffusion.transitions import squared_norm, wide
from scoretune.shapes import check_batch, check_rank, check_same_shape

Vector: TypeAlias = Callable[[Tensor], Tensor]
Directions: TypeAlias = Literal["rademacher", "gaussian"]


def explicit(predicted: Tensor, exact: Tensor) -> Tensor:
    """‖ŝ − ∇ ln p‖², [B]."""
    check_same_shape(predicted=predicted, exact=exact)
    return squared_norm(predicted - exact)


def denoising(predicted: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
    """‖ŝ + ε/σ‖², [B], for a score predicted at x = αx0 + σε; sigma [B].

    The explicit loss and a constant, which for Gaussian data is 1/σ² − 1/v in each dimension.
    """
    check_same_shape(predicted=predicted, eps=eps)
    check_batch(eps, sigma=sigma)
    return squared_norm(predicted + eps / expand(sigma, eps))


def implicit(score: Vector, x: Tensor) -> Tensor:
    """‖ŝ‖² + 2∇·ŝ, [B], with the exact divergence: one derivative for each dimension."""
    value, trace = divergence(score, x)
    return squared_norm(value) + 2 * trace


def sliced(
    score: Vector,
    x: Tensor,
    *,
    directions: Directions = "rademacher",
    reduced: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """2 vᵀ(∇ŝ)v + ‖ŝ‖², [B], with one random direction v for each sample.

    `reduced` is the variance-reduced form (SSM-VR of arXiv 1905.07088); without it the last term is
    (vᵀŝ)². Rademacher directions have no variance where the Jacobian is diagonal.
    """
    probe = random_directions(x, directions, generator)
    value, trace = divergence(score, x, probe)
    last = squared_norm(value) if reduced else (probe * value).flatten(1).sum(1) ** 2
    return last + 2 * trace


def divergence(vector: Vector, x: Tensor, probe: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """A vector field at x, [B, *S], and its divergence ∇·f, [B].

    Exact unless there is a `probe` v [B, *S] with E vvᵀ = 1: then Hutchinson's vᵀ(∇f)v.
    """
    check_same_shape(x=x, **({} if probe is None else {"probe": probe}))
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        x = wide(x)
        x = x if x.requires_grad else x.detach().requires_grad_()
        value = wide(vector(x))
        check_same_shape(x=x, vector=value)
        if probe is not None:
            total = (_slope(value, x, probe, keep) * probe).flatten(1).sum(1)
        else:
            total = torch.zeros_like(value.flatten(1)[:, 0])
            for index in range(value[0].numel()):
                unit = torch.zeros_like(value).flatten(1)
                unit[:, index] = 1
                total = total + _slope(value, x, unit.view_as(value), keep).flatten(1)[:, index]
    return (value, total) if keep else (value.detach(), total.detach())


def random_directions(
    x: Tensor, kind: Directions = "rademacher", generator: torch.Generator | None = None
) -> Tensor:
    """One direction for each sample with E vvᵀ = 1, like x; a CPU generator serves any device."""
    place = x.device if generator is None else generator.device
    wide = torch.promote_types(x.dtype, torch.float32)
    if kind == "gaussian":
        return torch.randn(x.shape, dtype=wide, device=place, generator=generator).to(x.device)
    if kind == "rademacher":
        coins = torch.randint(0, 2, x.shape, device=place, generator=generator)
        return (2 * coins - 1).to(device=x.device, dtype=wide)
    raise ValueError(f"unknown directions {kind!r}: choose rademacher or gaussian")


@torch.no_grad()
def log_likelihood(
    process: Process, field: Field, x: Tensor, times: Tensor, *, probe: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """ln p(x) [B] at times[-1] by the probability-flow ODE, and where it led, [B, *S].

        ln p_s(x_s) = ln π(x_T) + ∫_s^T ∇·u dt,   u = fx − ½g²ŝ      (arXiv 2011.13456 eq. 39)

    `times` decrease, as a sampler's do, and are walked backwards by Heun: order 2. The trace is
    exact unless a `probe` of random directions makes it Hutchinson's, unbiased to that order.
    """
    check_rank(1, 1, times=times)
    state, gain = wide(x), torch.zeros(len(x), dtype=wide(x).dtype, device=x.device)

    def flow(at: Tensor, now: Tensor) -> tuple[Tensor, Tensor]:
        t = now.expand(len(at))
        return divergence(lambda y: velocity_of(process, field(y, t), t), at, probe)

    for now, after in pairwise(times.to(x.device).flip(0)):
        step = expand(after - now, gain)
        slope, trace = flow(state, now)
        ahead, trace_ahead = flow(state + step * slope, after)
        state = state + step / 2 * (slope + ahead)
        gain = gain + step / 2 * (trace + trace_ahead)
    return _log_prior(process, state) + gain, state


def _log_prior(process: Process, x: Tensor) -> Tensor:
    """ln N(x; 0, π²) summed over dimensions, [B]."""
    std = process.prior_std
    each = -(x**2) / (2 * std**2) - math.log(std) - math.log(2 * math.pi) / 2
    return each.flatten(1).sum(1)


def _slope(value: Tensor, x: Tensor, direction: Tensor, keep: bool) -> Tensor:
    """vᵀ∂f/∂x, [B, *S], differentiable if `keep`; 0 where the field does not depend on x."""
    if not value.requires_grad:
        return torch.zeros_like(x)
    (slope,) = torch.autograd.grad(
        value, x, direction, create_graph=keep, retain_graph=True, materialize_grads=True
    )
    return slope
