"""Laws of the reverse dynamics: what an exact score makes of noise, for data N(1, ¼)."""

from __future__ import annotations

import math
from itertools import pairwise

import torch

from scoretune.commands.doctor.laws.base import Law, Measured, measurement
from scoretune.commands.doctor.laws.processes import CONTRACTIVE, EVERY
from scoretune.diffusion import grids
from scoretune.diffusion.matching import consistency
from scoretune.diffusion.processes import (
    EDM,
    VE,
    VP,
    ContractiveSubVP,
    ContractiveVP,
    GeometricVE,
    Process,
    RectifiedFlow,
    SubVP,
    diffusion_sq,
    drift_rate,
)
from scoretune.diffusion.recycling import matched, recycled
from scoretune.diffusion.theory import contraction, gaussian, reward_gap

F64 = torch.float64
EXACT = {"mean": 1.0, "variance": 0.25}


def integrated(process: Process, eta: float, device: torch.device) -> tuple[float, float]:
    """Mean and variance of what the family of scale η makes of N(0, π²), by trapezoids.

    With κ = f + (1+η²)/2·g²/v, v = α²/4 + σ², a difference of two paths that share their noise
    shrinks by Φ = exp(−∫κ), so that the mean is 1 − α_TΦ_T and the variance π²Φ_T² + ∫η²g²Φ².
    """
    t = grids.karras(process, 20_000, t_end=0.0, dtype=F64).to(device).flip(0)
    alpha, g_sq = process.alpha(t), diffusion_sq(process, t)
    rate = drift_rate(process, t) + (1 + eta**2) / 2 * g_sq / (alpha**2 / 4 + process.sigma(t) ** 2)
    kept = torch.exp(-torch.cumulative_trapezoid(rate, t))
    kept = torch.cat([kept.new_ones(1), kept])
    noise = torch.trapezoid(eta**2 * g_sq * kept**2, t)
    return float(1 - alpha[-1] * kept[-1]), float((process.prior_std * kept[-1]) ** 2 + noise)


def mean_of(process: Process, eta: float) -> Measured:
    """Of the samples."""
    return lambda device: integrated(process, eta, device)[0]


def std_of(process: Process, eta: float) -> Measured:
    """Of the samples."""
    return lambda device: math.sqrt(integrated(process, eta, device)[1])


def arrivals(device: torch.device) -> float:
    """Largest difference of these integrals from the closed form, nearly all processes, three η.

    Rectified flow's SDE begins with an infinite g², and GeometricVE ends with noise of σ_min.
    """
    errors = []
    for process, _ in EVERY:
        if isinstance(process, RectifiedFlow | GeometricVE):
            continue
        for eta in (0.0, 0.5, 1.0):
            closed = gaussian.arrival(process, eta=eta, **EXACT)
            numeric = integrated(process, eta, device)
            errors += [abs(a - b) for a, b in zip(closed, numeric, strict=True)]
    return max(errors)


def exact_steps(device: torch.device) -> float:
    """W2 to the data after seven exact steps of η = 1.5 from the law at the horizon of VP."""
    process, x = VP(), torch.tensor([[0.0], [1.0]], dtype=F64, device=device)
    times = grids.karras(process, 7, t_end=1e-3, dtype=F64).to(device)
    means = process.alpha(times).tolist()
    variances = gaussian.state_variance(process, times, 0.25).tolist()
    mean, variance = means[0], variances[0]
    for t, t_next in pairwise(times[:, None].expand(-1, 2)):
        step = gaussian.transition(process, x, t, t_next, eta=1.5, **EXACT)
        low, high = step.mean[:, 0].tolist()
        mean = (high - low) * mean + low
        variance = (high - low) ** 2 * variance + float(step.std[0]) ** 2
    return gaussian.wasserstein((mean, variance), (means[-1], variances[-1]))


def one_call(device: torch.device) -> float:
    """Mean of N(0, 80²) after one call of the exact consistency function for N(.7, ¼)."""
    t = torch.full((1,), 80.0, dtype=F64, device=device)
    x = torch.zeros(1, 1, dtype=F64, device=device)
    mean = consistency.exact_gaussian(EDM(), x, t, t_min=0.002, mean=0.7, variance=0.25)
    return float(mean)


def recycled_time(device: torch.device) -> float:
    """The time of VE at which its noise is that of the contractive sub-VP at ½."""
    return float(matched(VE(), CONTRACTIVE, torch.tensor([0.5], dtype=F64, device=device))[0])


def recycled_estimate(device: torch.device) -> float:
    """Largest difference of a VE network run as contractive sub-VP from the network made for it."""
    t = torch.linspace(0.1, 1, 30, dtype=F64, device=device)
    x = torch.linspace(-9, 9, 30, dtype=F64, device=device)[:, None]
    trained, wanted = (gaussian.exact(process, **EXACT) for process in (VE(), CONTRACTIVE))
    moved, exact = recycled(trained, VE(), CONTRACTIVE)(x, t), wanted(x, t)
    return float(torch.stack([moved.data - exact.data, moved.noise - exact.noise]).abs().max())


def amplified(device: torch.device) -> float:
    """The shift of VP's samples of N(·, 1) by a constant error 1 of the noise estimate, η = 1."""
    return contraction.amplification(VP(), variance=1.0, eta=1.0, of="noise")


@measurement
def gap_of(device: torch.device, process: Process, eta: float) -> float:
    """What the SDE earns beyond the ODE, by these integrals, for the reward −(x − 2)²."""
    by_sde, by_ode = (integrated(process, level, device) for level in (eta, 0.0))
    return reward_gap.expected(by_sde, 2.0) - reward_gap.expected(by_ode, 2.0)


_FAMILY = "arXiv 2206.05564 eq. 6"
_GAP = "arXiv 2510.10767 Thm 3.2"
_RECYCLING = "arXiv 2401.13115 Thm 4"

LAWS = (
    Law("VP, η = 0: mean of samples", 0.996714, mean_of(VP(), 0), 2e-6, _FAMILY),
    Law("VP, η = 1: std of samples", 0.5, std_of(VP(), 1), 2e-6, _FAMILY),
    Law("SubVP, η = 0: std of samples", 0.500019, std_of(SubVP(), 0), 2e-6, _FAMILY),
    Law("VE, η = 0: mean of samples", 0.99, mean_of(VE(), 0), 2e-6, _FAMILY),
    Law("EDM, η = ½: mean of samples", 0.998243, mean_of(EDM(), 0.5), 2e-6, _FAMILY),
    Law("ContractiveVP, η = 0: std", 0.446386, std_of(ContractiveVP(), 0), 2e-6, _FAMILY),
    Law("ContractiveSubVP, η = 1: mean", 0.995295, mean_of(ContractiveSubVP(), 1), 2e-6, _FAMILY),
    Law("all processes: samples, closed form", 0, arrivals, 2e-5, _FAMILY),
    Law("exact steps of Gaussian data: W2", 0, exact_steps, 1e-12, _FAMILY),
    Law("VP, η = 1: amplified error", 2 * math.atan(152.167), amplified, 1e-4, "2 atan ρ"),
    Law("VE to σ = 10: reward gap, η = 1", 0.096753, gap_of(VE(sigma_max=10), 1), 2e-6, _GAP),
    Law("VP: reward gap, η = 2", 0.006591, gap_of(VP(), 2), 2e-6, _GAP),
    Law("consistency: one call from σ = 80", 0.695625, one_call, 1e-6, "arXiv 2303.01469"),
    Law("VE → ContractiveSubVP: time of ½", 0.546024, recycled_time, 1e-6, _RECYCLING),
    Law("VE → ContractiveSubVP: estimate", 0, recycled_estimate, 1e-9, _RECYCLING),
)
