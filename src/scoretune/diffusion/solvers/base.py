"""What samplers share: their loop, and the checks and the form of the grid that they step along.

`times` is a decreasing tensor [N+1], or [N+1, B] with a column for each sample. Numbers that depend
on time alone are worked out for the whole grid before the first step.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from scoretune.diffusion import transitions
from scoretune.diffusion.estimates import Estimate, Field
from scoretune.diffusion.kernels import Kernel
from scoretune.diffusion.processes import Process, Schedule
from scoretune.shapes import check_shape

Visit: TypeAlias = Callable[[int, Tensor, Estimate], None]
"""Told of each node that a sampler goes on from: its number, the state and the estimate there."""

SLACK = 1e-6
"""How far past the horizon, as a share of it, the rounding of a grid may lead."""


def on_grid(process: Schedule, x: Tensor, times: Tensor) -> Tensor:
    """The nodes as [N+1, 1], or [N+1, B] where each sample has its own, on their device.

    Raises ValueError unless they fall from within the horizon to no less than 0 and fit x.
    """
    if not (times.dim() in (1, 2) and len(times) >= 2 and bool((times.diff(dim=0) < 0).all())):
        raise ValueError("times must decrease strictly, in at least two entries: [N+1] or [N+1, B]")
    if not (times[-1].min() >= 0 and times[0].max() <= process.horizon * (1 + SLACK)):
        raise ValueError(
            f"times must lie in [0, {process.horizon}], the horizon of {process}, but they run "
            f"from {float(times[0].max()):.6g} to {float(times[-1].min()):.6g}"
        )
    if x.dim() == 0 or (times.dim() == 2 and times.shape[1] != len(x)):
        raise ValueError(
            f"times {list(times.shape)} do not fit x {list(x.shape)}: x is [B, *S], and times are "
            "[N+1] or have a column for each of the B samples"
        )
    return times if times.dim() == 2 else times[:, None]


def node_times(nodes: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """The times of the nodes as a field takes them, each [B] on x's device."""
    if nodes.shape[1] != 1:
        check_shape((len(nodes), len(x)), nodes=nodes)
    return nodes.to(x.device).expand(-1, len(x)).unbind()


@dataclass(frozen=True)
class KernelSampler:
    """The sampler that follows a kernel: x ← mean(x, x̂, ε̂) + std·ξ at each step of the grid."""

    kernel: Kernel

    def __call__(
        self,
        process: Process,
        field: Field,
        x: Tensor,
        times: Tensor,
        *,
        generator: torch.Generator | None = None,
        visit: Visit | None = None,
    ) -> Tensor:
        nodes, x = on_grid(process, x, times), transitions.wide(x)
        steps = self.kernel.weights(process, nodes[:-1], nodes[1:]).over(x)
        grid = zip(steps.each(), steps.noisy(), node_times(nodes[:-1], x), strict=True)
        for k, (step, noisy, t) in enumerate(grid):
            estimate = field(x, t)
            if visit is not None:
                visit(k, x, estimate)
            x = step.mean(x, estimate)
            if noisy:
                x = torch.addcmul(x, step.std, transitions.fresh(x, generator))
        return x


def check_count(name: str, value: int) -> None:
    """Refuse a number of repetitions that is no whole number >= 0."""
    if not (isinstance(value, int) and value >= 0):
        raise ValueError(f"{name} must be a whole number >= 0, got {value}")


def where_finite(values: Tensor) -> Tensor:
    """The values, and 0 where they are infinite or NaN."""
    return torch.where(torch.isfinite(values), values, torch.zeros_like(values))
