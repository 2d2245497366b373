"""Laws of samplers on Gaussian data, where an exact score makes every sampler affine.

Data are N(1, ¼). A step's mean is a·x + b: its values at x = 0 and x = 1 in float64 give (a, b),
and means and variances are then carried along without any random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from scoretune.commands.doctor.laws.base import Law, Measured, measurement
from scoretune.diffusion import grids, solvers
from scoretune.diffusion.estimates import Estimate
from scoretune.diffusion.kernels import (
    CPS,
    GDDIM,
    Constant,
    DanceSDE,
    EulerMaruyama,
    Exponential,
    FlowSDE,
    Kernel,
    Memoryless,
    Posterior,
    Renoise,
)
from scoretune.diffusion.processes import (
    EDM,
    VE,
    VP,
    ContractiveSubVP,
    Process,
    RectifiedFlow,
    SubVP,
    Tabulated,
    time_of_ratio,
)
from scoretune.diffusion.theory import gaussian

F64 = torch.float64
Moments = tuple[float, float]
Solver = Callable[[Process, solvers.Field, Tensor, Tensor], Tensor]

SECOND_ORDER: Solver = partial(solvers.dpmpp_2m, lower_order_final=False)


def exact_field(process: Process) -> solvers.Field:
    """The exact estimate for N(1, ¼)."""
    return gaussian.exact(process, mean=1.0, variance=0.25)


def moments_at(process: Process, t: Tensor) -> Moments:
    """Mean and variance of x_t."""
    return float(process.alpha(t)), float(gaussian.state_variance(process, t, 0.25))


def carried(
    sampler: Solver | Kernel,
    process: Process,
    times: Tensor,
    device: torch.device,
    start: Moments | None = None,
) -> Moments:
    """Mean and variance at times[-1], from the exact law at times[0] unless there is a `start`."""
    times = times.to(device)
    mean, variance = start or moments_at(process, times[0])
    through = _kernel_steps if isinstance(sampler, Kernel) else _solver_steps
    for low, high, std in through(sampler, process, times):
        mean, variance = (high - low) * mean + low, (high - low) ** 2 * variance + std**2
    return mean, variance


def _solver_steps(solver: Any, process: Process, times: Tensor) -> list[tuple[float, ...]]:
    """Where a solver leads from 0 and from 1, as one step without noise."""
    ends = torch.tensor([[0.0], [1.0]], dtype=F64, device=times.device)
    low, high = solver(process, exact_field(process), ends, times)[:, 0].tolist()
    return [(low, high, 0.0)]


def _kernel_steps(kernel: Any, process: Process, times: Tensor) -> list[tuple[float, ...]]:
    """Where each step leads from 0 and from 1, and its std; all at once, for none waits."""
    n = len(times) - 1
    t, t_next = times[:-1].repeat(2), times[1:].repeat(2)
    x = torch.tensor([[0.0], [1.0]], dtype=F64, device=times.device).repeat_interleave(n, 0)
    step = kernel(process, x, exact_field(process)(x, t), t, t_next)
    lows, highs = step.mean[:, 0].view(2, n).tolist()
    return list(zip(lows, highs, step.std.flatten()[:n].tolist(), strict=True))


@measurement
def distance(device: torch.device, sampler: Solver | Kernel, grid: str, n: int) -> float:
    """W2 to the exact law of VP at t = 1/1000."""
    process, make = VP(), grids.karras if grid == "karras" else grids.uniform
    times = make(process, n, t_end=1e-3, dtype=F64)
    moments = carried(sampler, process, times, device)
    return gaussian.wasserstein(moments, moments_at(process, times[-1]))


def order(sampler: Solver | Kernel) -> Measured:
    """log₂ of how much nearer 320 steps come than 160."""
    coarse, fine = distance(sampler, "karras", 160), distance(sampler, "karras", 320)
    return lambda device: math.log2(coarse(device) / fine(device))


@measurement
def same_in_ratio(device: torch.device, sampler: Solver | Kernel) -> float:
    """Largest difference in the mean and deviation of x/α between processes, from σ/α 7 to .01."""
    laws = torch.tensor([_in_ratio(sampler, p, device) for p in _PROCESSES], dtype=F64)
    return float((laws.amax(0) - laws.amin(0)).max())


def _in_ratio(sampler: Solver | Kernel, process: Process, device: torch.device) -> Moments:
    ratios = torch.linspace(7 ** (1 / 7), 0.01 ** (1 / 7), 21, dtype=F64) ** 7
    times = time_of_ratio(process, ratios)
    first, last = float(process.alpha(times[0])), float(process.alpha(times[-1]))
    mean, variance = carried(sampler, process, times, device, (0.0, (7 * first) ** 2))
    return mean / last, math.sqrt(variance) / last


@measurement
def flow_std(device: torch.device, sampler: Solver | Kernel, n: int) -> float:
    """Standard deviation of rectified flow's samples from N(0, 1) with n steps, shift 3."""
    times = grids.shifted(RectifiedFlow(), n, 3.0, dtype=F64)
    return math.sqrt(carried(sampler, RectifiedFlow(), times, device, (0.0, 1.0))[1])


def sd_steps(n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The times (t, t_next) of diffusers' n steps of Stable Diffusion."""
    times = grids.diffusers_times(SD, n, dtype=F64).to(device)
    return times[:-1], times[1:]


def largest_eta(device: torch.device) -> float:
    """The largest η with which every one of 50 steps of DDIM exists."""
    return float(Posterior.limit(SD, *sd_steps(50, device)).min())


def gddim_is_ddim(device: torch.device) -> float:
    """Largest difference between the laws of a step of gDDIM(1) and DDIM(1)."""
    t, t_next = sd_steps(50, device)
    x = torch.linspace(-2, 2, len(t), dtype=F64, device=device)[:, None]
    estimate = exact_field(SD)(x, t)
    one, other = (k(SD, x, estimate, t, t_next) for k in (GDDIM(1.0), Renoise(Posterior(1.0))))
    return max(float((one.mean - other.mean).abs().max()), float((one.std - other.std).abs().max()))


@measurement
def gddim_std(device: torch.device, eta: float, *, relative: bool = False) -> float:
    """The standard deviation of the first of 50 steps of Stable Diffusion, or it over σ'."""
    t, t_next = (part[:1] for part in sd_steps(50, device))
    x = torch.zeros(1, 1, dtype=F64, device=device)
    std = GDDIM(eta)(SD, x, Estimate(x, x), t, t_next).std
    return float(std / SD.sigma(t_next) if relative else std)


def point_in_one_step(device: torch.device) -> float:
    """Where one step of gDDIM(1.3) leads if all data are one point, minus the exact law there."""
    process, point = VP(), torch.full((3, 1), 0.7, dtype=F64, device=device)
    eps = torch.tensor([[-1.0], [0.0], [2.0]], dtype=F64, device=device)
    t, t_next = (torch.full((3,), at, dtype=F64, device=device) for at in (0.9, 0.2))
    x = process.alpha(t)[:, None] * point + process.sigma(t)[:, None] * eps
    step = GDDIM(1.3)(process, x, Estimate(point, eps), t, t_next)
    slope, middle = float(step.mean[2] - step.mean[1]) / 2, float(step.mean[1])
    variance = slope**2 + float(step.std[0]) ** 2  # of α'x0 + σ'ε for ε ~ N(0, 1)
    alpha, sigma = float(process.alpha(t_next[0])), float(process.sigma(t_next[0]))
    return abs(variance / sigma**2 - 1) + abs(middle - 0.7 * alpha)


SD = Tabulated.scaled_linear()
_PROCESSES = (VP(), SubVP(), VE(), EDM(), RectifiedFlow(), ContractiveSubVP(), SD)
_W2 = "closed form of an affine sampler"
_RATIO = "arXiv 2401.13115 Thm 4"
_GDDIM = "arXiv 2206.05564 Thm 1"


def _golden(name: str, sampler: Solver | Kernel, grid: str, expected: float) -> Law:
    measured = distance(sampler, grid, 80)
    return Law(f"{name}, 80 {grid} steps: W2", expected, measured, 1e-3 * expected, _W2)


def _flow(name: str, kernel: Kernel, expected: float, source: str) -> Law:
    return Law(f"{name}, 50 steps: std", expected, flow_std(kernel, 50), 6e-5, source)


LAWS = (
    _golden("Euler", solvers.euler, "uniform", 4.746e-3),
    _golden("Heun", solvers.heun, "uniform", 2.866e-4),
    _golden("DDIM", solvers.ddim, "uniform", 1.734e-2),
    _golden("DPM++ 2M", SECOND_ORDER, "karras", 1.272e-3),
    _golden("Euler–Maruyama", EulerMaruyama(Memoryless()), "uniform", 8.827e-3),
    _golden("gDDIM(1)", GDDIM(1.0), "uniform", 3.816e-2),
    _golden("gDDIM(2)", GDDIM(2.0), "karras", 8.239e-2),
    _golden("EDM's Heun", solvers.edm_heun, "uniform", 5.666e-4),
    _golden("exponential", Exponential(Constant(1.0)), "uniform", 1.652e-2),
    *(
        Law(f"order of {name}", solver.order, order(solver.function), 0.1, "its definition")
        for name, solver in solvers.ODE_SOLVERS.items()
    ),
    Law("order of gDDIM(½)", 1, order(GDDIM(0.5)), 0.1, "arXiv 2206.05564"),
    Law("rk45: W2", 0, distance(solvers.rk45, "karras", 2), 1e-4, "its tolerances of 1e-5"),
    Law("DDIM: x/α on all processes", 0, same_in_ratio(solvers.ddim), 1e-9, _RATIO),
    Law("DPM++ 2M: x/α on all processes", 0, same_in_ratio(solvers.dpmpp_2m), 1e-9, _RATIO),
    Law("gDDIM(1.5): x/α on all processes", 0, same_in_ratio(GDDIM(1.5)), 1e-9, _RATIO),
    _flow("Flow-SDE a = .7", EulerMaruyama(FlowSDE(0.7)), 0.4836, "arXiv 2505.05470"),
    _flow("Dance-SDE .3", EulerMaruyama(DanceSDE(0.3)), 0.4747, "arXiv 2505.07818"),
    _flow("CPS(.7)", Renoise(CPS(0.7)), 0.3969, "arXiv 2509.05952"),
    Law("DDIM's largest η, 50 steps", 1.0456, largest_eta, 5e-5, "arXiv 2010.02502 eq. 16"),
    Law("gDDIM(1) = DDIM(1)", 0, gddim_is_ddim, 1e-12, _GDDIM),
    Law("gDDIM(2): std of step 1 of 50", 0.7760, gddim_std(2.0), 5e-5, _GDDIM),
    Law("gDDIM(10) re-noises: std over σ'", 1, gddim_std(10.0, relative=True), 1e-9, _GDDIM),
    Law("gDDIM on one point is exact", 0, point_in_one_step, 1e-12, _GDDIM),
)
