"""The reward gap: every sampler, stochasticity and number of steps on the same prompts and noise.

The gap is what a stochastic sampler earns beyond the ODE from the same noise,

    gap_N(η) = E r(η, N steps) − E r(ODE, N steps)                        (arXiv 2510.10767)

with DDIM as the ODE. At a finite N it mixes what noise does in continuous time, where the ODE
remembers that its prior is not the law it was trained from, with what N steps do to each sampler.
So `bias` is stated apart, bias_N(η) = E r(η, N) − E r(η, fine), and by their definitions

    gap_N(η) = gap_fine(η) + bias_N(η) − bias_N(0).

All differences are paired over prompts. `gaussian_w2` is the discretisation error of a sampler on
Gaussian data, where it is known exactly. Here η is the stochasticity: 0 the ODE, 1 the reverse SDE.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from scoretune.core import distributed
from scoretune.core.conditions import Condition
from scoretune.core.config import Evaluation, Gap, Sampling
from scoretune.core.errors import UserError, unknown
from scoretune.data.prompts import Prompts
from scoretune.diffusion.named import grid
from scoretune.diffusion.processes import Process
from scoretune.diffusion.solvers import ODE_SOLVERS, SOLVERS
from scoretune.diffusion.theory import gaussian
from scoretune.diffusion.theory.reward_gap import sampler_bias
from scoretune.evaluate.mixed_sizes import by_size, in_place
from scoretune.evaluate.samples import Walk, pictures
from scoretune.evaluate.scores import score, verdicts
from scoretune.models.sizes import sized
from scoretune.policy import Backbone, Deployment, Policy, deployment_of
from scoretune.rewards.base import Reward

MEAN, VARIANCE = 1.0, 0.25  # of the data for which `gaussian_w2` is worked out
UNSTABLE = "the samples are not finite: unstable at this η and number of steps"

# ------------------------------------------------------------------------------ which cells

STOCHASTIC = {name: row.kernel for name, row in SOLVERS.items() if row.takes_eta}
"""Samplers that take any η > 0, and the kernel that each follows; None for one with a memory."""
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
class Matrix:
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


def matrix_of(
    steps: Sequence[int],
    etas: Sequence[float],
    names: Iterable[str] = ("gddim",),
    *,
    fine: int = 0,
    models: tuple[str, ...] = (TUNED,),
) -> Matrix:
    """The ODE, and each noisy solver at every η > 0. Raises UserError for what makes no matrix."""
    names = list(dict.fromkeys(names))
    for option, values in (("steps", steps), ("eta", etas), ("solver", names)):
        if not values:
            raise UserError(f"the list of {option} is empty: give at least one, as in 5,10,20")
    for number in (*steps, *([fine] if fine else [])):
        if number < 1:
            raise UserError(f"{number} steps are none: give numbers of at least 1")
    for eta in etas:
        if not (math.isfinite(eta) and eta >= 0):
            raise UserError(f"eta={eta:g} is no stochasticity: give finite numbers of at least 0")
    for name in names:
        _check_solver(name)
    deterministic = [Sampler(name) for name in names if name in ODE_SOLVERS]
    levels = sorted({float(eta) for eta in etas if eta > 0})
    stochastic = [Sampler(name, eta) for name in names if name in STOCHASTIC for eta in levels]
    samplers = tuple(dict.fromkeys([ODE, *deterministic, *stochastic]))
    return Matrix(samplers, tuple(sorted(set(steps))), fine, models)


def _check_solver(name: str) -> None:
    names = [*ODE_SOLVERS, *STOCHASTIC]
    if name in SOLVERS and name not in names:
        raise UserError(
            f"solver {name!r} has no η or no number of steps to vary: choose of {', '.join(names)}"
        )
    if name not in names:
        raise unknown("solver", name, names)


def explanation(matrix: Matrix) -> str:
    """How gap and bias go together, in a sentence."""
    fine = matrix.fine
    if not fine:
        return "The gap includes what the number of steps does: --fine N states that apart."
    return (
        f"gap(N steps) = gap({fine} steps) + bias(η) − bias(0), where the bias is the reward "
        f"in N steps less that of the same sampler in {fine}."
    )


# ------------------------------------------------------------------------------ their rewards

CellRewards: TypeAlias = Tensor | str
"""The rewards of a cell, one a prompt [B], or why it has none."""
Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """What all cells have in common: what is drawn, from which noise, along which kind of grid.

    `deployment` is the model's own way of sampling, where it has one.
    """

    prompts: Prompts
    reward: Reward
    reward_name: str
    sampling: Sampling
    seed: int
    deployment: Deployment | None = None

    @property
    def grid(self) -> str:
        """The kind of grid: what the run names, or "deployed", the model's own."""
        own = self.sampling.grid == "auto" and self.deployment is not None
        return "deployed" if own else self.sampling.grid

    def on(self, backbone: Backbone, prompts: Prompts) -> Comparison:
        """The same on some of the prompts, which ask for one size."""
        model, own = sized(backbone, prompts.texts), self.deployment
        if own is not None and model is not backbone:
            own = deployment_of(model)
        return replace(self, prompts=prompts, deployment=own)

    def times(self, process: Process, steps: int) -> Tensor:
        """The grid that a run names at another number of steps; where it names none the model's
        own, else the run's. gDDIM can step along any grid."""
        if self.grid == "deployed" and self.deployment is not None:
            return self.deployment.times(steps)
        plain = {"kernel": "gddim", "noise": "constant", "eta": 1.0, "steps": steps}
        return grid(process, self.sampling.model_copy(update=plain))


def rewards_of(policy: Policy, cell: Cell, comparison: Comparison) -> CellRewards:
    """Every prompt's reward [B], not counted as training, or why not; prompts of several sizes size
    by size. Raises UserError for ODE."""
    each = []
    for places, prompts in by_size(policy.backbone, comparison.prompts):
        rewards = _rewards(policy, cell, comparison.on(policy.backbone, prompts))
        if isinstance(rewards, str):
            return rewards
        each.append((places, rewards))
    return in_place(each)


def _rewards(policy: Policy, cell: Cell, comparison: Comparison) -> CellRewards:
    """`rewards_of` prompts of one size."""
    times = comparison.times(policy.backbone.process, cell.steps)
    of_base = cell.model == BASE and policy.has_reference
    try:
        with policy.uncounted(), policy.reference() if of_base else nullcontext():
            walk = _walk(policy, cell.sampler, times)
            images = pictures(policy, comparison.prompts, walk=walk, seed=comparison.seed)
    except ValueError as error:
        return _refused(cell, str(error))
    if not bool(torch.isfinite(images).all()):
        return _refused(cell, UNSTABLE)
    name = comparison.reward_name
    metrics = {name: comparison.reward}
    return verdicts(images, comparison.prompts, metrics, policy.at_most(64))[name]


def _walk(policy: Policy, sampler: Sampler, times: Tensor) -> Walk:
    solve = SOLVERS[sampler.solver].function

    def walk(condition: Condition, x: Tensor, generator: torch.Generator) -> Tensor:
        x = x.to(condition.device)
        stochastic = sampler.solver in STOCHASTIC
        noise = {"eta": sampler.eta, "generator": generator} if stochastic else {}
        final: Tensor = solve(policy.backbone.process, policy.field(condition), x, times, **noise)
        return final

    return walk


def _refused(cell: Cell, reason: str) -> str:
    if cell.sampler == ODE:
        raise UserError(f"the ODE in {cell.steps} steps does not suit this model: {reason}")
    return reason


def rows(
    matrix: Matrix, rewards: Mapping[Cell, CellRewards], comparison: Comparison, process: Process
) -> list[Row]:
    """A row a drawn cell: reward, gap, bias with 95 % intervals over prompts; None: not known."""
    return [
        _row(matrix, cell, rewards, comparison, process) for cell in matrix.shown if cell in rewards
    ]


def _row(
    matrix: Matrix,
    cell: Cell,
    rewards: Mapping[Cell, CellRewards],
    comparison: Comparison,
    process: Process,
) -> Row:
    values, sampler, tasks = rewards[cell], cell.sampler, comparison.prompts.tasks
    fine = Cell(sampler, matrix.fine, cell.model)
    ode, fine_ode = (Cell(ODE, c.steps, c.model) for c in (cell, fine))
    refused = isinstance(values, str)
    times = comparison.times(process, cell.steps)
    return {
        "model": cell.model,
        "solver": sampler.solver,
        "eta": sampler.eta,
        "steps": cell.steps,
        **_level(values, tasks),
        **_difference("gap", values, rewards.get(ode), tasks),
        **_difference("bias", values, rewards.get(fine), tasks),
        **_difference("gap_fine", rewards.get(fine), rewards.get(fine_ode), tasks),
        "gaussian_w2": None if refused else gaussian_w2(process, sampler, times),
        "reason": values if refused else None,
    }


def _level(values: CellRewards, tasks: tuple[str, ...]) -> Row:
    if isinstance(values, str):
        return dict.fromkeys(("reward", "ci_low", "ci_high"))
    mean = score(values.double(), tasks)
    return _rounded({"reward": mean.overall, "ci_low": mean.low, "ci_high": mean.high})


def _difference(
    name: str, values: CellRewards | None, others: CellRewards | None, tasks: tuple[str, ...]
) -> Row:
    keys = (name, f"{name}_low", f"{name}_high")
    if not isinstance(values, Tensor) or not isinstance(others, Tensor):
        return dict.fromkeys(keys)
    paired = score(values.double() - others.double(), tasks)
    return _rounded(dict(zip(keys, (paired.overall, paired.low, paired.high), strict=True)))


def _rounded(numbers: Mapping[str, float]) -> Row:
    return {name: round(value, 6) for name, value in numbers.items()}


def gaussian_w2(process: Process, sampler: Sampler, times: Tensor) -> float | None:
    """W2 at times[-1] that the steps alone cost on data N(1, 0.25), with their exact score.

    Begun in the law of x at times[0]: the prior does not count. None for noise with a memory.
    """
    times = times.double()
    start, end = (gaussian.law(process, t, mean=MEAN, variance=VARIANCE) for t in times[[0, -1]])
    if sampler.solver in ODE_SOLVERS:
        solve = ODE_SOLVERS[sampler.solver].function
        law = gaussian.after_solver(
            process, solve, times, mean=MEAN, variance=VARIANCE, start=start
        )
        return round(gaussian.wasserstein(law, end), 6)
    kernel = STOCHASTIC[sampler.solver]
    if kernel is None:
        return None
    error = sampler_bias(process, kernel(sampler.eta), times, VARIANCE, mean=MEAN, start=start)
    return round(error, 6)


# ------------------------------------------------------------------------------ while training


def due(evaluation: Evaluation, updates: int, update: int) -> bool:
    """Whether the evaluation after this of all `updates` has a matrix: always at both ends."""
    every = evaluation.every * evaluation.gap.every
    if not evaluation.gap.steps:
        return False
    return update in (0, updates) or (every > 0 and update % every == 0)


def line(policy: Policy, gap: Gap, comparison: Comparison, update: int) -> Row:
    """The matrix of a run's evaluation, as a line of `gap.jsonl`."""
    matrix = matrix_of(gap.steps, gap.etas)
    rewards = {cell: rewards_of(policy, cell, comparison) for cell in matrix.cells}
    return {
        "update": update,
        "network_evaluations": distributed.count(policy.calls),
        "rows": rows(matrix, rewards, comparison, policy.backbone.process),
    }
