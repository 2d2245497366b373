"""Laws of estimates and of the Gaussian that a step is."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from scoretune.commands.doctor.laws.base import Law, measurement
from scoretune.diffusion import estimates, grids, solvers
from scoretune.diffusion.estimates import Estimate, Prediction
from scoretune.diffusion.kernels import (
    GDDIM,
    EulerMaruyama,
    Kernel,
    Memoryless,
    Posterior,
    Renoise,
    Transition,
    stochasticity,
)
from scoretune.diffusion.paths import chain_weights, girsanov_weights, kl_factor, log_snr_steps
from scoretune.diffusion.processes import (
    VP,
    ContractiveSubVP,
    RectifiedFlow,
    diffusion_sq,
    drift_rate,
    score,
)

F64 = torch.float64


def normals(device: torch.device, *shape: int, seed: int = 0) -> Tensor:
    """The same numbers on any device."""
    drawn = torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))
    return drawn.to(device)


@measurement
def inverts(device: torch.device, prediction: Prediction) -> float:
    """Largest error of `read` applied to `target`, over three processes."""
    x0, eps = normals(device, 40, 3), normals(device, 40, 3, seed=1)
    errors = []
    for process in (VP(), RectifiedFlow(), ContractiveSubVP()):
        t = torch.linspace(0.1, 0.9, 40, dtype=F64, device=device)
        x = estimates.perturb(process, t, x0, eps)
        output = estimates.target(process, prediction, t, x0, eps)
        estimate = estimates.read(process, prediction, t, x, output)
        errors += [estimate.data - x0, estimate.noise - eps]
    return float(torch.stack(errors).abs().max())


def velocity_is_the_flow(device: torch.device) -> float:
    """Largest difference between α'x̂ + σ'ε̂ and f x − ½g²s."""
    process, t = ContractiveSubVP(), torch.linspace(0.1, 0.9, 20, dtype=F64, device=device)
    estimate = Estimate(normals(device, 20, 2), normals(device, 20, 2, seed=1))
    x = estimates.perturb(process, t, estimate.data, estimate.noise)
    f, g_sq = drift_rate(process, t)[:, None], diffusion_sq(process, t)[:, None]
    flow = f * x - g_sq / 2 * score(process, estimate, t)
    return float((solvers.velocity_of(process, estimate, t) - flow).abs().max())


def _pair(device: torch.device) -> tuple[Transition, Transition]:
    std = torch.tensor([0.1, 1.0, 2.0], dtype=F64, device=device).view(3, 1, 1)
    one, other = normals(device, 2, 3, 4, 5)
    return Transition(one, std), Transition(other, 1.7 * std)


def log_prob_is_a_sum(device: torch.device) -> float:
    """Largest difference from torch's own Normal, summed over twenty dimensions."""
    step, other = _pair(device)
    theirs = Normal(step.mean, step.std.expand_as(step.mean)).log_prob(other.mean)
    return float((step.log_prob(other.mean) - theirs.sum((1, 2))).abs().max())


def kl_is_a_sum(device: torch.device) -> float:
    """Largest difference from torch's own divergence, summed over twenty dimensions."""
    step, other = _pair(device)
    laws = [Normal(s.mean, s.std.expand_as(s.mean)) for s in (step, other)]
    return float((step.kl(other) - kl_divergence(*laws).sum((1, 2))).abs().max())


def log_prob_at_the_mean(device: torch.device) -> float:
    """Of a standard normal in eight dimensions."""
    zero = torch.zeros(1, 8, device=device)
    return float(Transition(zero, torch.ones(1, 1, device=device)).log_prob(zero))


def half_precision_scores_in_float32(device: torch.device) -> float:
    """Relative error of the log-probability of 4096 bfloat16 numbers."""
    mean, std = normals(device, 1, 4096).bfloat16(), torch.full((1, 1), 0.5, device=device)
    x = (mean + 0.5 * normals(device, 1, 4096, seed=1)).bfloat16()
    exact = float(Transition(mean.double(), std.double()).log_prob(x.double()))
    return abs(float(Transition(mean, std.bfloat16()).log_prob(x)) / exact - 1)


def draws_repeat(device: torch.device) -> float:
    """Largest difference between two draws with the same seed, from the CPU's generator."""
    step = _pair(device)[0]
    one, other = (step.draw(torch.Generator().manual_seed(3)) for _ in range(2))
    return float((one - other).abs().max())


@measurement
def path_kl(device: torch.device, eta: float) -> float:
    """Σ KL of gDDIM's 8000 steps between noise estimates that differ by 0.1, from 1 to 1/1000."""
    process = VP()
    times = grids.karras(process, 8000, t_end=1e-3, dtype=F64).to(device)
    t, t_next = times[:-1], times[1:]
    x = torch.zeros_like(t)[:, None]
    ratio = (process.sigma(t) / process.alpha(t))[:, None]
    one, other = (
        GDDIM(eta)(process, x, Estimate(-ratio * eps, torch.full_like(x, eps)), t, t_next)
        for eps in (0.0, 0.1)
    )
    return float(one.kl(other).sum())


_KERNELS = (GDDIM(1.0), GDDIM(0.5), EulerMaruyama(Memoryless()), Renoise(Posterior(0.7)))
_COUNTS = (1, 3, 10, 40)


def _shifted(device: torch.device, kernel: Kernel, count: int) -> tuple[float, float, float]:
    """Data N(0, ½), and the exact policy for N(.4, ½), in `count` steps: the KL of the chain by its
    weights, that of what it draws, and that in continuous time at the nodes."""
    process = VP()
    times = grids.karras(process, count, t_end=0.02, dtype=F64).to(device)
    t, t_next = times[:-1], times[1:]
    alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
    variance = alpha**2 / 2 + sigma**2

    def step(x: Tensor, mean: float) -> tuple[Tensor, Transition]:
        data = mean + alpha / 2 / variance * (x - alpha * mean)
        estimate = Estimate(data, (x - alpha * data) / sigma)
        return data[:, 0], kernel(process, x, estimate, t, t_next)

    zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)
    (data, low), (moved, other), (_, high) = step(zero, 0.0), step(zero, 0.4), step(one, 0.0)
    change = (moved - data) ** 2
    rows = (high.mean - low.mean, other.mean - low.mean, low.std.expand_as(low.mean))
    away, spread = 0.0, 1.0
    for slope, push, std in torch.cat(rows, 1).tolist():
        away, spread = slope * away + push, slope**2 * spread + std**2
    chain = float((chain_weights(kernel, process, t, t_next) * change).sum())
    steps = log_snr_steps(process, times, times[:, None])[:, 0]
    eta = stochasticity(kernel, process, t, t_next)
    girsanov = float((girsanov_weights(process, t, eta, steps) * change).sum())
    return chain, away**2 / (2 * spread), girsanov


def data_processing(device: torch.device) -> float:
    """By how much the KL of what is drawn exceeds that of the chain, at most; at least 0."""
    pairs = [_shifted(device, kernel, count)[:2] for kernel in _KERNELS for count in _COUNTS]
    return max(0.0, *(drawn - chain for chain, drawn in pairs))


def chain_over_time(device: torch.device) -> float:
    """The KL of a chain of 4000 steps over that of continuous time, farthest from 1."""
    ratios = [chain / time for chain, _, time in (_shifted(device, k, 4000) for k in _KERNELS)]
    return max(ratios, key=lambda ratio: abs(ratio - 1))


def cheapest_eta(device: torch.device) -> float:
    """Where the path KL of a change of the score is least, on a grid of 1/1000."""
    etas = torch.arange(1, 3001, dtype=F64, device=device) / 1000
    return float(etas[kl_factor(etas).argmin()])


_AT_MEAN = -4 * math.log(2 * math.pi)
_GIRSANOV = "Girsanov: ((1+η²)/2η)² ln(ρ_T/ρ_ε) ‖Δε‖²"

LAWS = (
    *(
        Law(f"reading {p.name}", 0, inverts(p), 1e-9, "x = αx0 + σε")
        for p in (estimates.noise, estimates.data, estimates.v, estimates.velocity)
    ),
    Law("velocity = f x − ½g²s", 0, velocity_is_the_flow, 1e-9, "arXiv 2011.13456 eq. 13"),
    Law("log-probability of a step", 0, log_prob_is_a_sum, 1e-9, "torch.distributions"),
    Law("KL of two steps", 0, kl_is_a_sum, 1e-9, "torch.distributions"),
    Law("log N(0; 0, 1) in 8 dimensions", _AT_MEAN, log_prob_at_the_mean, 1e-5, "definition"),
    Law("bfloat16 log-probability", 0, half_precision_scores_in_float32, 1e-5, "summed in float32"),
    Law("same seed, same draw", 0, draws_repeat, 0, "one CPU generator serves any device"),
    Law("path KL of Δε = .1, η = 1", 0.09583, path_kl(1.0), 3e-4, _GIRSANOV),
    Law("path KL of Δε = .1, η = ½", 0.14973, path_kl(0.5), 5e-4, _GIRSANOV),
    Law("path KL of Δε = .1, η = 2", 0.14973, path_kl(2.0), 5e-4, _GIRSANOV),
    Law("path KL is least at η", 1.0, cheapest_eta, 1e-9, _GIRSANOV),
    Law("samples move no further than the chain", 0, data_processing, 1e-12, "data processing"),
    Law("chain KL over Girsanov's", 1.0, chain_over_time, 0.02, "many steps: Girsanov"),
)
