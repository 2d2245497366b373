"""Predictor and corrector: a step down in time, and Langevin steps that stay at one time."""

import torch
from torch import Tensor

from scoretune.diffusion import transitions
from scoretune.diffusion.estimates import Estimate, Field
from scoretune.diffusion.kernels import EulerMaruyama, Kernel, Memoryless
from scoretune.diffusion.processes import Process
from scoretune.diffusion.scales import check_level
from scoretune.diffusion.solvers.base import check_count, node_times, on_grid
from scoretune.shapes import check_rank, check_same_shape

REVERSE_SDE = EulerMaruyama(Memoryless())


def predictor_corrector(
    process: Process,
    field: Field,
    x: Tensor,
    times: Tensor,
    *,
    snr: float = 0.16,
    corrections: int = 1,
    predictor: Kernel = REVERSE_SDE,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Langevin steps at each node, then the predictor to the next (arXiv 2011.13456 Alg. 2 and 3).

    The last step's noise is left out. Order 0: a correction has the stationary variance
    v/(1 − snr²) on Gaussian data whose law at a node has variance v, so that N → ∞ leaves
    W2 = s(1/√(1 − snr²) − 1) for data of std s. The reference code's factor 1 − β_i of the step
    size, close to 1, is left out too. Network calls a step: 1 + corrections.
    """
    check_level("predictor_corrector snr", snr)
    check_count("predictor_corrector corrections", corrections)
    nodes, x = on_grid(process, x, times), transitions.wide(x)
    steps = predictor.weights(process, nodes[:-1], nodes[1:]).over(x)
    noises = [*steps.noisy()[:-1], False]
    sigmas = transitions.broadcast(process.sigma(nodes[:-1]), x)
    grid = zip(steps.each(), noises, sigmas, node_times(nodes[:-1], x), strict=True)
    for step, noisy, sigma, t in grid:
        for _ in range(corrections):
            x = langevin_step(x, field(x, t), sigma, snr, transitions.fresh(x, generator))
        x = step.mean(x, field(x, t))
        if noisy:
            x = torch.addcmul(x, step.std, transitions.fresh(x, generator))
    return x


def langevin_step(x: Tensor, estimate: Estimate, sigma: Tensor, snr: float, xi: Tensor) -> Tensor:
    """x + δ s + √(2δ) ξ with s = −ε̂/σ: `sigma` broadcasts to x and ξ [B, *S]."""
    check_same_shape(x=x, noise=estimate.noise, xi=xi)
    size = langevin_size(estimate.noise, sigma, snr, xi)
    pulled = torch.addcmul(x, -size / sigma, estimate.noise)
    return torch.addcmul(pulled, torch.sqrt(2 * size), xi)


def langevin_size(noise: Tensor, sigma: Tensor, snr: float, xi: Tensor) -> Tensor:
    """δ = 2 (snr ‖ξ‖/‖s‖)², a scalar: norms per sample, averaged over the batch; 0 where s = 0."""
    check_same_shape(noise=noise, xi=xi)
    check_rank(noise.dim(), noise.dim(), sigma=sigma)
    scores = _norms(noise) / sigma.flatten()
    size = 2 * torch.square(snr * _norms(xi).mean() / scores.mean())
    return torch.where(torch.isfinite(size), size, torch.zeros_like(size))


def _norms(x: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return norms
