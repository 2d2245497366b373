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

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from scoretune.core import distributed
from scoretune.core.config import Run, Sampling
from scoretune.core.errors import UserError
from scoretune.core.records import Condition
from scoretune.data.prompts import Prompts
from scoretune.diffusion.named import grid
from scoretune.diffusion.processes import Process
from scoretune.diffusion.solvers import ODE_SOLVERS, SOLVERS
from scoretune.diffusion.theory import gaussian
from scoretune.diffusion.theory.reward_gap import sampler_bias
from scoretune.evaluate import scores
from scoretune.evaluate.gap_plan import BASE, NOISY, ODE, Cell, Plan, Sampler, planned
from scoretune.policy import Policy
from scoretune.rewards.base import Reward

MEAN, VARIANCE = 1.0, 0.25  # of the data for which `gaussian_w2` is worked out
UNSTABLE = "the samples are not finite: unstable at this η and number of steps"

Found: TypeAlias = Tensor | str
"""The rewards of a cell, one a prompt [B], or why it has none."""
Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Ground:
    """What all cells have in common: what is drawn, from which noise, along which kind of grid."""

    prompts: Prompts
    reward: Reward
    name: str
    sampling: Sampling
    seed: int

    def times(self, process: Process, steps: int) -> Tensor:
        """The grid of a run at another number of steps; gDDIM can step along any grid."""
        plain = {"kernel": "gddim", "noise": "constant", "eta": 1.0, "steps": steps}
        return grid(process, self.sampling.model_copy(update=plain))


def rewards_of(policy: Policy, cell: Cell, ground: Ground) -> Found:
    """The reward of every prompt's sample, [B]; a sentence where this sampler cannot do it.

    Costs no network evaluations of training. Raises UserError where not even the ODE can.
    """
    times = ground.times(policy.backbone.process, cell.steps)
    calls, asks_base = policy.calls, cell.model == BASE and policy.has_reference
    try:
        with policy.reference() if asks_base else nullcontext():
            images = scores.pictures(
                policy, ground.prompts, ground.seed, _walk(policy, cell.sampler, times)
            )
    except ValueError as error:
        return _refused(cell, str(error))
    finally:
        policy.calls = calls
    if not bool(torch.isfinite(images).all()):
        return _refused(cell, UNSTABLE)
    return scores.verdicts(images, ground.prompts, {ground.name: ground.reward})[ground.name]


def _walk(policy: Policy, sampler: Sampler, times: Tensor) -> scores.Walk:
    solve = SOLVERS[sampler.solver].function

    def walk(condition: Condition, x: Tensor, generator: torch.Generator) -> Tensor:
        x = x.to(condition.tokens.device)
        noise = {"eta": sampler.eta, "generator": generator} if sampler.solver in NOISY else {}
        found: Tensor = solve(policy.backbone.process, policy.field(condition), x, times, **noise)
        return found

    return walk


def _refused(cell: Cell, reason: str) -> str:
    if cell.sampler == ODE:
        raise UserError(f"the ODE in {cell.steps} steps does not suit this model: {reason}")
    return reason


def rows(plan: Plan, found: Mapping[Cell, Found], ground: Ground, process: Process) -> list[Row]:
    """A row a cell with its reward, gap and bias; of cells that were not found yet there are none.

    Intervals are of 95 % over prompts. What is not known is None, and `reason` may say why.
    """
    told = []
    for cell in plan.shown:
        if cell not in found:
            continue
        own, sampler = found[cell], cell.sampler
        fine = Cell(sampler, plan.fine, cell.model)
        ode, fine_ode = (Cell(ODE, c.steps, c.model) for c in (cell, fine))
        row: Row = {
            "model": cell.model,
            "solver": sampler.solver,
            "eta": sampler.eta,
            "steps": cell.steps,
            **_level(own, ground.prompts.tasks),
            **_difference("gap", own, found.get(ode), ground.prompts.tasks),
            **_difference("bias", own, found.get(fine), ground.prompts.tasks),
            **_difference("gap_fine", found.get(fine), found.get(fine_ode), ground.prompts.tasks),
            "gaussian_w2": None,
            "reason": own if isinstance(own, str) else None,
        }
        if row["reason"] is None:
            row["gaussian_w2"] = gaussian_w2(process, sampler, ground.times(process, cell.steps))
        told.append(row)
    return told


def _level(own: Found, tasks: tuple[str, ...]) -> Row:
    if isinstance(own, str):
        return dict.fromkeys(("reward", "ci_low", "ci_high"))
    mean = scores.score(own.double(), tasks)
    return _rounded({"reward": mean.overall, "ci_low": mean.low, "ci_high": mean.high})


def _difference(name: str, own: Found | None, other: Found | None, tasks: tuple[str, ...]) -> Row:
    keys = (name, f"{name}_low", f"{name}_high")
    if not isinstance(own, Tensor) or not isinstance(other, Tensor):
        return dict.fromkeys(keys)
    paired = scores.score(own.double() - other.double(), tasks)
    return _rounded(dict(zip(keys, (paired.overall, paired.low, paired.high), strict=True)))


def _rounded(numbers: Mapping[str, float]) -> Row:
    return {name: round(value, 6) for name, value in numbers.items()}


def gaussian_w2(process: Process, sampler: Sampler, times: Tensor) -> float | None:
    """W2 at times[-1] that the steps alone cost on data N(1, 0.25), with their exact score.

    Begun in the law of x at times[0], so that what the prior does wrong, which is part of the gap,
    does not count. None for a sampler with noise and a memory.
    """
    times = times.double()
    start, end = (gaussian.law(process, t, mean=MEAN, variance=VARIANCE) for t in times[[0, -1]])
    solver = SOLVERS[sampler.solver]
    if sampler.solver in ODE_SOLVERS:
        found = gaussian.after_solver(
            process, solver.function, times, mean=MEAN, variance=VARIANCE, start=start
        )
        return round(gaussian.wasserstein(found, end), 6)
    if solver.kernel is None:
        return None
    kernel = solver.kernel(sampler.eta)
    return round(sampler_bias(process, kernel, times, VARIANCE, mean=MEAN, start=start), 6)


# ------------------------------------------------------------------------------ while training


def due(run: Run, update: int) -> bool:
    """Whether the evaluation after this update comes with a matrix: always at both ends."""
    chosen, every = run.evaluation.gap, run.evaluation.every * run.evaluation.gap.every
    if not chosen.steps:
        return False
    return update in (0, run.updates) or (every > 0 and update % every == 0)


def line(policy: Policy, run: Run, prompts: Prompts, reward: Reward, update: int) -> Row:
    """The matrix of a run's evaluation, as a line of `gap.jsonl`."""
    chosen = run.evaluation.gap
    plan = planned(chosen.steps, chosen.etas)
    ground = Ground(prompts, reward, run.reward, run.sampling, run.evaluation.seed)
    found = dict(_each(policy, plan, ground))
    return {
        "update": update,
        "network_evaluations": distributed.count(policy.calls),
        "rows": rows(plan, found, ground, policy.backbone.process),
    }


def _each(policy: Policy, plan: Plan, ground: Ground) -> Iterator[tuple[Cell, Found]]:
    for cell in plan.cells:
        yield cell, rewards_of(policy, cell, ground)
