"""Which cells a matrix of reward gaps has: solvers, stochasticities and numbers of steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scoretune.core.errors import UserError, unknown
from scoretune.diffusion.solvers import ODE_SOLVERS, SOLVERS

NOISY = [name for name, solver in SOLVERS.items() if solver.takes_eta]
"""Samplers that take any η > 0."""
BASE, TUNED = "base", "fine-tuned"


@dataclass(frozen=True)
class Sampler:
    """A solver of `diffusion.solvers` and its stochasticity, 0 for a deterministic one."""

    solver: str
    eta: float = 0.0

    def __str__(self) -> str:
        return f"{self.solver} η={self.eta:g}" if self.eta else self.solver


ODE = Sampler("ddim")


@dataclass(frozen=True)
class Cell:
    """One entry of the matrix."""

    sampler: Sampler
    steps: int
    model: str = TUNED


@dataclass(frozen=True)
class Plan:
    """Which cells there are; `fine` is the number of steps that a bias refers to, 0 for none."""

    samplers: tuple[Sampler, ...]
    steps: tuple[int, ...]
    fine: int = 0
    models: tuple[str, ...] = (TUNED,)

    @property
    def cells(self) -> list[Cell]:
        """All that must be drawn, the ODE of each number of steps first."""
        numbers = dict.fromkeys([*self.steps, *([self.fine] if self.fine else [])])
        return [Cell(s, n, m) for m in self.models for n in numbers for s in self.samplers]

    @property
    def shown(self) -> list[Cell]:
        """The cells that get a row."""
        return [Cell(s, n, m) for m in self.models for s in self.samplers for n in self.steps]


def planned(
    steps: Sequence[int],
    etas: Sequence[float],
    names: Iterable[str] = ("gddim",),
    *,
    fine: int = 0,
    models: tuple[str, ...] = (TUNED,),
) -> Plan:
    """The matrix of these numbers: the ODE always, each noisy solver at every η > 0.

    Raises UserError for empty lists, numbers out of range and solvers that do not exist.
    """
    names = list(dict.fromkeys(names))
    for what, given in (("steps", steps), ("eta", etas), ("solver", names)):
        if not given:
            raise UserError(f"the list of {what} is empty: give at least one, as in 5,10,20")
    few = [n for n in (*steps, *([fine] if fine else [])) if n < 1]
    if few:
        raise UserError(f"{few[0]} steps are none: give numbers of at least 1")
    wild = [eta for eta in etas if not (math.isfinite(eta) and eta >= 0)]
    if wild:
        raise UserError(f"eta={wild[0]:g} is no stochasticity: give finite numbers of at least 0")
    for name in names:
        _check_solver(name)
    still = [Sampler(name) for name in names if name in ODE_SOLVERS]
    levels = sorted({float(eta) for eta in etas if eta > 0})
    noisy = [Sampler(name, eta) for name in names if name in NOISY for eta in levels]
    return Plan(tuple(dict.fromkeys([ODE, *still, *noisy])), _distinct(steps), fine, models)


def _check_solver(name: str) -> None:
    known = [*ODE_SOLVERS, *NOISY]
    if name in SOLVERS and name not in known:
        raise UserError(
            f"solver {name!r} has no η or no number of steps to vary: choose of {', '.join(known)}"
        )
    if name not in known:
        raise unknown("solver", name, known)


def _distinct(numbers: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted(set(numbers)))


def told_of(plan: Plan) -> str:
    """How gap and bias go together, in a sentence."""
    if not plan.fine:
        return "The gap includes what the number of steps does: --fine N states that apart."
    return (
        f"gap(N steps) = gap({plan.fine} steps) + bias(η) − bias(0), where the bias is the reward "
        f"in N steps less that of the same sampler in {plan.fine}."
    )
