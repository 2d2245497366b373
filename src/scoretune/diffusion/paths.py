"""KLs of paths, and sums along a path that mean the same on any grid.

Two numbers say how far a policy has moved from another, and each has its own name:

* `chain_kl`: the exact KL of the sampler's Gaussian chain, a sum of closed-form KLs of its steps.
  It is of the kernel and the grid that act, and bounds the KL of what the chain draws.
* `girsanov_kl`: the KL of the continuous-time paths, an integral. It is of no grid, so it compares
  runs of different numbers of steps, and bounds nothing that a few coarse steps draw. The two
  agree in the limit of many steps.

An integral over a path is a sum over the N states at which the network was called. Each interior
state stands for a stratum of the path: from half-way to the node before it to half-way to the node
after it, measured by the angle φ = atan(σ/α), which is finite for every process and in which the
usual integrands are tame. With `jittered` nodes, uniform in φ within their strata and independent
from sample to sample, such a sum is unbiased for the integral however few the steps. The first
node, pure noise, stands for nothing.

Noise levels enter by the log-SNR ℓ = log(α²/σ²), for which −dℓ = (g²/σ²) dt.
"""

import torch
from torch import Tensor

from scoretune.diffusion.grids import time_of_ratio
from scoretune.diffusion.kernels import Kernel, response
from scoretune.diffusion.noise import rand
from scoretune.diffusion.processes import Process
from scoretune.shapes import check_rank, check_same_shape, check_shape

MARGIN = 1e-3
"""Share of a stratum left empty at its ends, so that no step has length 0."""
INTEGRAL_END = 1e-3
"""Share of the horizon at which time integrals end where a grid goes on to data without noise.
There (α/σ)² dℓ = ∞: of a velocity that changed by any constant, the continuous-time KL grows like
ln(1/t), so a number without its end would mean nothing."""


def angle(process: Process, t: Tensor) -> Tensor:
    """φ(t) = atan(σ/α) in [0, π/2], increasing in t; same shape as t, float64."""
    wide = t.to(torch.float64)
    return torch.atan2(process.sigma(wide), process.alpha(wide))


def jittered(
    process: Process,
    times: Tensor,
    batch: int,
    generator: torch.Generator | None = None,
    *,
    end: float = INTEGRAL_END,
) -> Tensor:
    """Times [N+1, B], decreasing: the ends of the grid `times` [N+1], and between them each node
    uniform in φ within its stratum, for each sample anew. `end` as in `log_snr_steps`."""
    check_rank(1, 1, times=times)
    edges = _edges(process, times, end)
    device = times.device if generator is None else generator.device
    shape = (max(len(times) - 2, 0), batch)
    u = rand(shape, generator, dim=1, device=device, dtype=torch.float64).to(times.device)
    u = MARGIN + (1 - 2 * MARGIN) * u
    inner = edges[:-1, None] + u * edges.diff()[:, None]
    nodes = time_of_ratio(process, torch.tan(inner)).to(times.dtype)
    ends = times[:, None].expand(-1, batch)
    return torch.cat([ends[:1], nodes, ends[-1:]])


def log_snr_steps(
    process: Process, times: Tensor, nodes: Tensor, *, end: float = INTEGRAL_END
) -> Tensor:
    """How much of ℓ each visited node stands for: [N, B], ≥ 0, for nodes [N+1, B] of a grid [N+1].

    The width of the node's stratum in φ times |dℓ/dφ| = 2/(sin φ cos φ) at the node. A grid that
    goes on to data without noise is followed to `end`, a share of the horizon.
    """
    check_rank(1, 1, times=times)
    check_rank(2, 2, nodes=nodes)
    check_shape((len(times), nodes.shape[1]), nodes=nodes)
    widths = -_edges(process, times, end).diff()[:, None]
    phi = angle(process, nodes[1:-1])
    steps = widths * 2 / (torch.sin(phi) * torch.cos(phi))
    return torch.cat([steps.new_zeros(1, nodes.shape[1]), steps]).to(nodes.dtype)


def kl_factor(eta: Tensor) -> Tensor:
    """((1+η²)/(2η))², same shape: how much dearer a change of the score is under scale η.

    The sampler of scale η has the drift −f x + (1+η²)/2 g² s and the noise η g, so Girsanov's path
    KL is ½∫ factor · g² ‖Δs‖² dt (arXiv 2409.08400). 1 at η = 1 and ∞ at η → 0: the ODE has no path
    KL. For η = 0 this returns 1, the KL of the reverse SDE with the same scores.
    """
    factor = ((1 + eta**2) / (2 * eta)) ** 2
    return torch.where(eta == 0, torch.ones_like(eta), factor)


def girsanov_weights(
    process: Process,
    t: Tensor,
    eta: Tensor,
    log_snr_step: Tensor,
    t_next: Tensor | None = None,
) -> Tensor:
    """w such that w‖Δx̂‖² is a node's share of `girsanov_kl`: ½ factor (α/σ)² Δℓ; all shapes alike.

    A change Δx̂ of the data estimate changes the score by (α/σ²) Δx̂, so a sum over nodes is
    Girsanov's ½∫((1+η²)/2η)² g²‖Δs‖²dt (arXiv 2409.08400). A step that forgets the state (η = ∞),
    x' = α' x̂ + σ' ξ at `t_next`, has no limit in continuous time: the step's own KL counts,
    ½ (α'/σ')² ‖Δx̂‖².
    """
    check_same_shape(t=t, eta=eta, log_snr_step=log_snr_step)
    check_shape(t.shape, t_next=t_next)
    cotangent = process.alpha(t) / process.sigma(t)
    weights = kl_factor(eta) * cotangent**2 * log_snr_step / 2
    if t_next is None:
        return weights
    of_step = (process.alpha(t_next) / process.sigma(t_next)) ** 2 / 2
    return torch.where(torch.isinf(eta), of_step, weights)


def chain_weights(kernel: Kernel, process: Process, t: Tensor, t_next: Tensor) -> Tensor:
    """w such that w‖Δx̂‖² is the KL of a step of the chain, r²/(2c²); same shape as the times.

    A step is N(μ, c²) with a std c that no policy changes and a mean that follows the estimate by
    the kernel's `response` r, so its KL is ‖rΔx̂‖²/(2c²) exactly. By the chain rule the sum over a
    path is the KL of the whole chain, and by the data-processing inequality at least the KL of what
    it draws. A step without noise weighs 0: it is no part of the chain, which is followed
    to the last state that noise led to.
    """
    check_same_shape(t=t, t_next=t_next)
    flat, flat_next = t.flatten(), t_next.flatten()
    along = response(kernel, process, flat, flat_next).view_as(t)
    std = kernel.weights(process, flat, flat_next).std.view_as(t)
    noisy = std > 0
    return torch.where(
        noisy, along**2 / (2 * torch.where(noisy, std, torch.ones_like(std)) ** 2), 0.0
    )


def _edges(process: Process, times: Tensor, last: float) -> Tensor:
    """The N edges of the N−1 strata in φ, decreasing: [N]."""
    phi = angle(process, times)
    inner = (phi[1:-2] + phi[2:-1]) / 2
    near = angle(process, torch.full_like(times[-1:], last * process.horizon, dtype=torch.float64))
    end = torch.where(phi[-1:] > 0, phi[-1:], torch.minimum(near, phi[-2:-1] / 2))
    return torch.cat([phi[:1], inner, end])
