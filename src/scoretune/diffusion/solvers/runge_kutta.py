"""The probability flow with steps of its own choice: a Runge–Kutta pair of orders 5 and 4."""

import math
from typing import Any

import torch
from torch import Tensor

from scoretune.diffusion.estimates import Field
from scoretune.diffusion.processes import Process, time_of_ratio
from scoretune.diffusion.solvers.base import on_grid
from scoretune.diffusion.transitions import wide


@torch.no_grad()
def rk45(
    process: Process,
    field: Field,
    x: Tensor,
    times: Tensor,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> Tensor:
    """Dormand–Prince on the probability flow from times[0] to times[-1]: order 5, adaptive.

    In the angle φ = atan(σ/α) and y = x/√(α² + σ²) the flow is dy/dφ = cos φ ε̂ − sin φ x̂, which is
    finite at both ends of every process: at α = 0 and at σ = 0. The batch is one system in float64
    on the CPU, with one error norm; the field is called in x's dtype. No gradients.
    """
    from scipy.integrate import solve_ivp

    if not (0 < rtol < 1 and 0 < atol < math.inf):
        raise ValueError(f"rk45 needs 0 < rtol < 1 and finite atol > 0, got {rtol} and {atol}")
    nodes, x = on_grid(process, x, times), wide(x)
    ends = nodes[[0, -1]].to("cpu", torch.float64)
    if not torch.equal(ends, ends[:, :1].expand_as(ends)):
        raise ValueError("rk45 takes its own steps for the whole batch: give it times [N+1]")
    start, end = ends[:, 0]
    angles = [math.atan2(float(process.sigma(t)), float(process.alpha(t))) for t in (start, end)]

    def slope(angle: float, y: Any) -> Any:
        cos, sin = math.cos(angle), math.sin(angle)
        t = time_of_ratio(process, torch.tensor(math.tan(angle), dtype=torch.float64))
        t = t.clamp(end, start)
        state = torch.from_numpy(y * _length(process, t)).to(x).reshape(x.shape)
        estimate = field(state, t.to(x.device, times.dtype).expand(len(x)))
        rate = estimate.noise * cos - estimate.data * sin
        return rate.to("cpu", torch.float64).flatten().numpy()

    begin = (x.to("cpu", torch.float64) / _length(process, start)).flatten().numpy()
    solution = solve_ivp(slope, angles, begin, method="RK45", rtol=rtol, atol=atol)
    if not solution.success:
        raise ValueError(
            f"rk45 gave up between times {start:.6g} and {end:.6g}: {solution.message}"
        )
    return torch.from_numpy(solution.y[:, -1] * _length(process, end)).to(x).reshape(x.shape)


def _length(process: Process, t: Tensor) -> float:
    """√(α² + σ²) at one time."""
    return math.hypot(float(process.alpha(t)), float(process.sigma(t)))
