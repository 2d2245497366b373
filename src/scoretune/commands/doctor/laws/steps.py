"""Laws of estimates and of the Gaussian that a step is."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from scoretune.commands.doctor.laws.base import Law, measurement
from scoretune.diffusion import estimates, grids, solvers
from scoretune.diffusion.estimates import Estimate, Prediction
from scoretune.diffusion.kernels import GDDIM, Transition
from scoretune.diffusion.paths import kl_factor
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
)
