"""Every sampler by name: the table `SOLVERS`.

A sampler is a function `(process, field, x, times, *, …) -> x0`, with `field(x, t) -> Estimate`,
x [B, *S] at times[0] and the result at times[-1]. The deterministic ones are in `ode`,
`dpm_solver`, `edm` and `runge_kutta`, those with noise in `stochastic`, `dpm_solver` and
`predictor_corrector`. A new one is a function in a file here and its row in the table: the command
line, the reward gap, the contract tests and the doctor read it there. The choices of the
configuration, which imports nothing of ours, are compared with it by a test.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor

from scoretune.diffusion.estimates import Field
from scoretune.diffusion.kernels import Kernel
from scoretune.diffusion.lookup import lookup
from scoretune.diffusion.solvers.dpm_solver import FEW_STEPS, dpmpp_2m, dpmpp_2m_sde, dpmpp_2m_step
from scoretune.diffusion.solvers.edm import Churn, edm_heun
from scoretune.diffusion.solvers.ode import ddim, ddim_step, euler, euler_step, heun, velocity_of
from scoretune.diffusion.solvers.predictor_corrector import predictor_corrector
from scoretune.diffusion.solvers.runge_kutta import rk45
from scoretune.diffusion.solvers.stochastic import (
    OfEta,
    ddim_eta,
    euler_maruyama,
    exponential,
    gddim,
)

__all__ = [
    "FEW_STEPS",
    "Churn",
    "ODE_SOLVERS",
    "SOLVERS",
    "Field",
    "Solver",
    "ddim",
    "ddim_eta",
    "ddim_step",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2m_step",
    "edm_heun",
    "euler",
    "euler_maruyama",
    "euler_step",
    "exponential",
    "gddim",
    "heun",
    "predictor_corrector",
    "rk45",
    "solver_named",
    "velocity_of",
]


@dataclass(frozen=True)
class Solver:
    """A sampler and what to expect of it.

    `order` is that of its error in law on smooth data, 0 where an error stays however small the
    steps. `calls` are the network's calls a step, None where it chooses its own steps. A sampler
    that `takes_eta` has that option, and `kernel` makes of an η the kernel that it follows; None
    for one that remembers earlier steps.
    """

    function: Callable[..., Tensor]
    order: int
    calls: int | None
    deterministic: bool
    takes_eta: bool = False
    kernel: Callable[[float], Kernel] | None = None


def _ode(function: Callable[..., Tensor], order: int, calls: int | None) -> Solver:
    return Solver(function, order, calls, deterministic=True)


def _of_eta(function: OfEta) -> Solver:
    return Solver(function, 1, 1, deterministic=False, takes_eta=True, kernel=function.kernel)


SOLVERS: Mapping[str, Solver] = MappingProxyType(
    {
        "euler": _ode(euler, 1, 1),
        "heun": _ode(heun, 2, 2),
        "ddim": _ode(ddim, 1, 1),
        "dpmpp_2m": _ode(dpmpp_2m, 2, 1),
        "edm_heun": _ode(edm_heun, 2, 2),
        "rk45": _ode(rk45, 5, None),
        "euler_maruyama": _of_eta(euler_maruyama),
        "ddim_eta": _of_eta(ddim_eta),
        "gddim": _of_eta(gddim),
        "exponential": _of_eta(exponential),
        "dpmpp_2m_sde": Solver(dpmpp_2m_sde, 2, 1, deterministic=False, takes_eta=True),
        "predictor_corrector": Solver(predictor_corrector, 0, 2, deterministic=False),
    }
)
"""Every sampler with its default options; `deterministic` ones need no generator."""

ODE_SOLVERS: Mapping[str, Solver] = MappingProxyType(
    {name: row for name, row in SOLVERS.items() if row.deterministic and row.calls is not None}
)
"""Those without noise that call the network at the nodes of the grid alone."""


def solver_named(name: str, table: Mapping[str, Solver] = SOLVERS) -> Solver:
    """The sampler of that name in a table. Raises ValueError with the nearest one."""
    return lookup("solver", name, table)
