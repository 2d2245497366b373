"""When to step: decreasing 1-D tensors of n+1 times, from the horizon to t_end.

`t_end` defaults to where networks of the process stop being trained: 1/n for a table of n entries
(its first node), 0 for rectified flow, 1e-3 of the horizon otherwise. Grids are computed in
float64 and returned as `dtype`, float32 by default since not every device has more.
"""

import math
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from scoretune.diffusion.processes import (
    Process,
    RectifiedFlow,
    Tabulated,
    noise_ratio,
    time_of_ratio,
)

__all__ = [
    "MOST_RATIO",
    "default_end",
    "diffusers_times",
    "karras",
    "most_ratio",
    "shifted",
    "time_of_ratio",
    "uniform",
]

Spacing: TypeAlias = Literal["leading", "trailing", "linspace"]

MOST_RATIO = 80.0
"""σ/α beyond which fading signal is worth no more than a first step: σ_max of arXiv 2206.00364."""


def default_end(process: Process) -> float:
    """Where a grid ends unless `t_end` says otherwise."""
    if isinstance(process, Tabulated):
        return 1 / process.n
    if isinstance(process, RectifiedFlow):
        return 0.0
    return 1e-3 * process.horizon


def most_ratio(process: Process) -> float:
    """The σ/α from which equal steps of it begin: `MOST_RATIO`, or the process's own noise if its
    constants ask for more."""
    return max(MOST_RATIO, process.prior_std)


def uniform(
    process: Process, n: int, t_end: float | None = None, *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """n equal steps in native time."""
    end = _checked(process, n, t_end)
    return torch.linspace(process.horizon, end, n + 1, dtype=torch.float64).to(dtype)


def karras(
    process: Process,
    n: int,
    rho: float = 7.0,
    t_end: float | None = None,
    *,
    most: float = math.inf,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Equal steps of (σ/α)^{1/rho} (arXiv 2206.00364 eq. 5), short near the data.

    They are equal from σ/α = `most` on, where the horizon lies beyond: the first step then leads
    from the horizon to where the second of them would begin. A table without terminal signal would
    else spend most of its steps where nothing is decided yet.
    """
    end = _checked(process, n, t_end)
    if not (math.isfinite(rho) and rho > 0):
        raise ValueError(f"karras rho must be finite and > 0, got {rho}")
    ends = torch.tensor([process.horizon, end], dtype=torch.float64)
    roots = noise_ratio(process, ends).clamp(max=most) ** (1 / rho)
    if not bool(torch.isfinite(roots).all()):
        raise ValueError(
            f"karras needs a finite σ/α at the horizon and {process} has none: use shifted"
        )
    fraction = torch.linspace(0, 1, n + 1, dtype=torch.float64)
    times = time_of_ratio(process, (roots[0] + fraction * (roots[1] - roots[0])) ** rho)
    times[0], times[-1] = ends[0], ends[1]
    return times.to(dtype)


def shifted(
    process: Process,
    n: int,
    shift: float,
    t_end: float | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Uniform times u ↦ shift·u/(1 + (shift−1)u), dense near the noise for shift > 1.

    For rectified flow this is ρ ↦ shift·ρ (arXiv 2403.03206 eq. 23), applied once; SD3's own
    scheduler applies it twice. Other processes: u is the share of [t_end, horizon].
    """
    end = _checked(process, n, t_end)
    if not (math.isfinite(shift) and shift > 0):
        raise ValueError(f"shift must be finite and > 0, got {shift}")
    u = torch.linspace(1, 0, n + 1, dtype=torch.float64)
    moved = shift * u / (1 + (shift - 1) * u)
    return (end + (process.horizon - end) * moved).to(dtype)


def diffusers_times(
    process: Tabulated,
    n: int,
    *,
    spacing: Spacing = "leading",
    steps_offset: int = 1,
    set_alpha_to_one: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The times of diffusers' DDIMScheduler: nodes (index+1)/table, then the final ᾱ.

    The final time is the first node (ᾱ_0) or 0 when `set_alpha_to_one`. A last step from the first
    node to itself (steps_offset 0 without set_alpha_to_one) is the identity and is dropped: the
    grid then has n−1 steps and no step of std 0/0. diffusers always subtracts table//n to find the
    next index, which leaves gaps for linspace, and for trailing when n does not divide the table;
    here each step begins where the last one ended.
    """
    table = process.n
    if not 1 <= n <= table:
        raise ValueError(f"need between 1 and {table} steps for a table of {table}, got {n}")
    indices = _indices(table, n, spacing, steps_offset)
    if indices[0] >= table or indices[-1] < 0:
        raise ValueError(
            f"{n} steps with steps_offset {steps_offset} leave the table of {table} entries"
        )
    nodes = [(index + 1) / table for index in indices]
    final = 0.0 if set_alpha_to_one else 1 / table
    if nodes[-1] != final:
        nodes.append(final)
    if len(nodes) < 2:
        raise ValueError(f"{n} {spacing} step from the first node to itself is no step: use more")
    return torch.tensor(nodes, dtype=torch.float64).to(dtype)


def _indices(table: int, n: int, spacing: str, steps_offset: int) -> list[int]:
    if spacing == "leading":
        return [k * (table // n) + steps_offset for k in reversed(range(n))]
    if spacing == "trailing":
        return [round(table - k * table / n) - 1 for k in range(n)]
    if spacing == "linspace":
        return [round(k * (table - 1) / max(n - 1, 1)) for k in reversed(range(n))]
    raise ValueError(f"unknown spacing {spacing!r}: choose leading, trailing or linspace")


def _checked(process: Process, n: int, t_end: float | None) -> float:
    if not n >= 1:  # so that NaN is refused too
        raise ValueError(f"a grid needs at least 1 step, got {n}")
    end = default_end(process) if t_end is None else t_end
    if not 0 <= end < process.horizon:
        raise ValueError(f"t_end must lie in [0, {process.horizon}), got {end}")
    return end
