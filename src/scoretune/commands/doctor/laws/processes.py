"""Laws of noising processes: how α, σ, f and g² hang together, and their constants."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from scoretune.commands.doctor.laws.base import Law, Measured, measurement
from scoretune.diffusion import grids
from scoretune.diffusion.processes import (
    VP,
    ContractiveOU,
    ContractiveSubVP,
    ContractiveVP,
    Process,
    Tabulated,
    diffusion_sq,
    drift_rate,
    every_process,
    noise_ratio,
    time_of_ratio,
)

F64 = torch.float64

CONTRACTIVE = ContractiveSubVP(0.01, 8.0)
_REGULAR = {"RectifiedFlow": 0.9, "Cosine": 0.95}
EVERY: tuple[tuple[Process, float], ...] = tuple(
    (process, _REGULAR.get(type(process).__name__, 1.0)) for process in every_process()
)
"""Each process, and until which part of its horizon its SDE is not singular."""


@measurement
def integrates(device: torch.device, process: Process, until: float) -> float:
    """Largest error of ln α = ∫f, and relative error of ρ² = ∫g²/α², by Simpson's rule."""
    t = process.horizon * torch.linspace(0.01, until, 1981, dtype=F64, device=device)
    alpha, ratio_sq = process.alpha(t), noise_ratio(process, t) ** 2
    grown = _integral(drift_rate(process, t), t)
    added = _integral(diffusion_sq(process, t) / alpha**2, t)
    first = (torch.log(alpha[2::2] / alpha[0]) - grown).abs()
    second = (ratio_sq[2::2] - ratio_sq[0] - added).abs() / ratio_sq[2::2]
    return float(torch.maximum(first, second).max())


def _integral(values: Tensor, t: Tensor) -> Tensor:
    """∫ from t[0] to each second of the equidistant t."""
    thirds = values[:-2:2] + 4 * values[1:-1:2] + values[2::2]
    return torch.cumsum(thirds, 0) * (t[1] - t[0]) / 3


def at_horizon(function: Callable[[Tensor], Tensor], process: Process) -> Measured:
    """A function of time at the horizon of a process."""
    return lambda device: float(function(torch.tensor(process.horizon, dtype=F64, device=device)))


def ratio_at_horizon(process: Process) -> Measured:
    """ρ(T)."""
    return at_horizon(lambda t: noise_ratio(process, t), process)


def times_are_inverse(device: torch.device) -> float:
    """Largest relative error of ρ(time_of_ratio(ρ)) over all processes."""
    errors = []
    for process, until in EVERY:
        t = process.horizon * torch.linspace(0.05, until, 40, dtype=F64, device=device)
        ratio = noise_ratio(process, t)
        again = noise_ratio(process, time_of_ratio(process, ratio))
        errors.append(float((again / ratio - 1).abs().max()))
    return max(errors)


def float32_is_enough(device: torch.device) -> float:
    """Largest relative error of α and σ in float32, down to 1/1000 of the horizon."""
    errors = []
    for process, until in EVERY:
        wide = process.horizon * torch.linspace(1e-3, until, 200, dtype=F64, device=device).float()
        for function in (process.alpha, process.sigma):
            errors.append(float((function(wide) / function(wide.double()) - 1).abs().max()))
    return max(errors)


def grids_decrease(device: torch.device) -> float:
    """How many steps of the named grids of all processes do not go down."""
    makers = (grids.uniform, lambda process, n: grids.shifted(process, n, 3.0))
    times = [make(process, 25).tolist() for process, _ in EVERY for make in makers]
    return float(sum(later >= earlier for grid in times for earlier, later in pairwise(grid)))


_SDE = "arXiv 2011.13456, arXiv 2401.13115"
SD, CVP = Tabulated.scaled_linear(), ContractiveVP(0.01, 8.0)
COU = ContractiveOU(1.0, math.sqrt(2), 3.0)

LAWS = (
    *(
        Law(f"{type(p).__name__}: α, σ from f, g²", 0, integrates(p, until), 1e-6, _SDE)
        for p, until in EVERY
    ),
    Law("VP(.1, 20): α at 1", 0.00657159, at_horizon(VP().alpha, VP()), 1e-8, _SDE),
    Law("VP(.1, 20): σ/α at 1", 152.167, ratio_at_horizon(VP()), 1e-3, _SDE),
    Law("Stable Diffusion: σ/α at step 999", 14.6146, ratio_at_horizon(SD), 1e-4, "its scheduler"),
    Law("Stable Diffusion: signal left", 0.068265, at_horizon(SD.alpha, SD), 1e-6, "its scheduler"),
    Law("ContractiveSubVP(.01, 8): σ/α at 1", 7.27255, ratio_at_horizon(CONTRACTIVE), 1e-5, _SDE),
    Law("ContractiveVP(.01, 8): σ/α at 1", 0.990846, ratio_at_horizon(CVP), 1e-6, _SDE),
    Law("ContractiveOU(1, √2, 3): σ(3)", 20.0606, at_horizon(COU.sigma, COU), 1e-4, _SDE),
    Law("all processes: time_of_ratio", 0, times_are_inverse, 1e-9, "definition"),
    Law("all processes: α, σ in float32", 0, float32_is_enough, 1e-4, "rounding"),
    Law("all processes: grids decrease", 0, grids_decrease, 0, "definition"),
)
