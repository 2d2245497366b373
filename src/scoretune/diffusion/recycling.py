"""A network trained under one process, run under another without retraining.

In the coordinates x/α and ρ = σ/α every process is the same one (arXiv 2401.13115 Thm 4 for
VE → contractive sub-VP). With ρ_A(τ) = ρ_B(t) and c = α_B(t)/α_A(τ),

    p_B(t, x) = c^{−d} p_A(τ, x/c),   x̂_B(x, t) = x̂_A(x/c, τ),   ε̂_B(x, t) = ε̂_A(x/c, τ),

and so s_B(x, t) = s_A(x/c, τ)/c: `processes.score` has the 1/c, by −ε̂/σ_B.
"""

import torch
from torch import Tensor

from scoretune.diffusion.estimates import Field
from scoretune.diffusion.grids import default_end
from scoretune.diffusion.processes import Process, expand, noise_ratio, time_of_ratio

EDGE = 1 + 1e-6
"""How far beyond the trained noise a horizon may lie: rounding."""


def matched(base: Process, process: Process, t: Tensor) -> tuple[Tensor, Tensor]:
    """(τ, c), each [B], of the state of `base` that a state of `process` at t [B] is c times."""
    wide = t.to(torch.float64)
    tau = time_of_ratio(base, noise_ratio(process, wide))
    return tau.to(t.dtype), (process.alpha(wide) / base.alpha(tau)).to(t.dtype)


def at_base(base: Process, process: Process, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The input of a network of `base` that stands for (x [B, *S], t [B]): (x/c, τ).

    Below the noise that networks of `base` are trained on they are called at the least noise of
    their training, at the same x/c.
    """
    tau, c = matched(base, process, t)
    return x / expand(c, x), tau.clamp(min=default_end(base))


def recycled(field: Field, base: Process, process: Process) -> Field:
    """The field of a network of `base`, as a solver under `process` asks for it.

    Raises ValueError where `process` needs more noise than `base` has: see `check_recyclable`.
    """
    check_recyclable(base, process)
    return lambda x, t: field(*at_base(base, process, x, t))


def check_recyclable(base: Process, process: Process) -> None:
    """Refuse a process whose noise goes beyond what a network of `base` has seen."""
    horizons = (torch.tensor(p.horizon, dtype=torch.float64) for p in (base, process))
    trained, needed = (
        float(noise_ratio(p, t)) for p, t in zip((base, process), horizons, strict=True)
    )
    if needed > trained * EDGE:
        raise ValueError(
            f"a network of {base} knows noise up to σ/α = {trained:.6g} and {process} starts from "
            f"{needed:.6g}: choose constants (sigma_max, beta_max or horizon) that start from less"
        )
