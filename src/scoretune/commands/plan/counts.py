"""How often a run asks its network, and for what, worked out from its settings alone.

The numbers are those of `Policy.calls`: one a state that the network sees, two under
classifier-free guidance. Where a method draws how many steps it learns from, they are what is to be
expected.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from scoretune.core.config import Run
from scoretune.core.errors import user_errors
from scoretune.diffusion import solvers
from scoretune.diffusion.estimates import Estimate
from scoretune.diffusion.kernels import noisy_steps
from scoretune.diffusion.named import grid, kernel, window
from scoretune.diffusion.processes import Process
from scoretune.diffusion.windows import Window
from scoretune.policy import Deployment
from scoretune.training.build import context_of
from scoretune.training.objectives import KINDS
from scoretune.training.objectives.method import Costs, Paths, batch_size

LISTED = 1000
"""Updates whose windows are looked at one by one."""


@dataclass(frozen=True)
class Facts:
    """What a count must know besides the settings: the process, how many evaluations a state costs
    (`guided`), whether there is a pretrained policy beside the trained one, whether the reward has
    a gradient, and how the model is sampled from unless told otherwise."""

    process: Process
    guided: int = 1
    adapted: bool = True
    differentiable: bool = False
    deployment: Deployment | None = None


@dataclass(frozen=True)
class Calls:
    """Network evaluations, by what they are for."""

    rollouts: float = 0.0
    references: float = 0.0
    credit: float = 0.0
    learning: float = 0.0

    def __add__(self, other: Calls) -> Calls:
        return Calls(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __mul__(self, number: float) -> Calls:
        return Calls(*(getattr(self, f.name) * number for f in fields(self)))

    @property
    def total(self) -> float:
        return self.rollouts + self.references + self.credit + self.learning


@dataclass(frozen=True)
class Update:
    """What one update does: `trained` steps of each of its `samples` are learned from, which makes
    so many states, minibatches and steps of the optimiser. `backwards` of the calls are followed
    back with a gradient; `decodes` states are decoded and rewarded."""

    samples: int
    steps: int
    trained: float
    minibatches: int
    optimiser_steps: int
    calls: Calls
    backwards: float
    decodes: float

    @property
    def states(self) -> float:
        return self.samples * self.trained


def costs_of(run: Run, differentiable: bool, noisy: int | None = None) -> Costs:
    """What the run's objective says an update costs, with so many noisy steps (None: all)."""
    sizes, steps = run.sizes, run.sampling.steps
    paths = Paths(sizes.prompts * sizes.group, steps, steps if noisy is None else noisy)
    context = context_of(run, differentiable)
    return KINDS[run.objective.kind].costs(run.objective, context, paths)


def one_update(run: Run, facts: Facts, number: int = 0) -> Update:
    """The update of that number; a window lies elsewhere in another."""
    if run.objective.on_data:
        batch = batch_size(run.sizes)
        costs = costs_of(run, facts.differentiable)
        calls = Calls(references=batch * costs.references, learning=batch * costs.calls)
        backwards = batch * (costs.calls - costs.frozen)
        return Update(batch, 1, costs.at_once, 1, 1, calls, backwards, 0)
    samples, steps = run.sizes.prompts * run.sizes.group, run.sampling.steps
    with user_errors():
        times = grid(facts.process, run.sampling)
        window_at = window(run.sampling, times, facts.process, run.seed)
        noisy = noisy_steps(kernel(run.sampling), facts.process, times)
    place = None if window_at is None else window_at(number)
    if place is not None:
        noisy = noisy[place.start : place.stop]
    costs = costs_of(run, facts.differentiable, int(noisy.sum()))
    rolled, learned = _rollouts(run, facts, place), samples * costs.trained
    if costs.graph_steps:  # the last steps are taken with their gradient, and only then
        rolled -= learned
        learned = samples
    epochs, each = run.sizes.epochs, math.ceil(learned / run.sizes.minibatch)
    learning = samples * costs.trained * costs.calls * epochs
    calls = Calls(
        rollouts=rolled,
        references=samples * costs.references,
        credit=costs.credit_calls,
        learning=learning + costs.measured,
    )
    sloped = costs.credit_calls if costs.credit_graph in ("network", "both", "either") else 0
    return Update(
        samples=samples,
        steps=steps,
        trained=costs.trained,
        minibatches=each * epochs,
        optimiser_steps=_optimiser_steps(run, each) * epochs,
        calls=calls * facts.guided,
        backwards=(learning + sloped) * facts.guided,
        decodes=samples + costs.decodes,
    )


def training(run: Run, facts: Facts) -> Calls:
    """All updates; with a window of more than `LISTED` of them as many, drawn, stand for all."""
    if not run.sampling.window.size:
        return one_update(run, facts).calls * run.updates
    with user_errors():
        times = grid(facts.process, run.sampling)
        places = window(run.sampling, times, facts.process, run.seed)
    assert places is not None
    numbers: Sequence[int] = range(run.updates)
    if len(numbers) > LISTED:  # any rule has a rhythm, with which an even choice may fall in step
        numbers = random.Random(run.seed).choices(numbers, k=LISTED)
    at = {number: places(number) for number in numbers}
    first = {place: number for number, place in at.items()}
    cost = {place: one_update(run, facts, number).calls for place, number in first.items()}
    each = run.updates / len(numbers)
    return sum((cost[at[number]] for number in numbers), Calls()) * each


def warm_up(run: Run, facts: Facts) -> Calls:
    """Rounds that only fit a critic, before update 1."""
    calls, rounds = one_update(run, facts).calls, costs_of(run, facts.differentiable).warm_up
    return Calls(calls.rollouts, calls.references, calls.credit) * rounds


def _optimiser_steps(run: Run, minibatches: int) -> int:
    return math.ceil(minibatches / run.sizes.accumulate) if run.sizes.accumulate else 1


# ------------------------------------------------------------------------- one update's parts


def _rollouts(run: Run, facts: Facts, place: Window | None) -> float:
    sampling, samples = run.sampling, run.sizes.prompts * run.sizes.group
    if place is None:
        if sampling.solver is None:
            return samples * sampling.steps
        return samples * solver_calls(sampling.solver, facts.process, grid(facts.process, sampling))
    times = grid(facts.process, sampling)
    alone = run.sizes.prompts if sampling.shared_noise else samples
    after = times[place.nodes_after(len(times) - 1)]
    lead = solver_calls(place.solver, facts.process, times[: place.start + 1]) * alone
    inside, tail = place.stop - place.start, solver_calls(place.solver, facts.process, after)
    return lead + samples * (inside + tail)


def solver_calls(solver: str, process: Process, times: Tensor) -> int:
    """How often a solver asks the network about each state, on a grid [N+1].

    It is counted on short grids, where each further step asks as often as the one before it.
    """
    steps = len(times) - 1
    if steps <= 4:
        return _counted(solver, process, times)
    three, four = (
        _counted(solver, process, torch.cat([times[:count], times[-1:]])) for count in (3, 4)
    )
    return four + (steps - 4) * (four - three)


def _counted(solver: str, process: Process, times: Tensor) -> int:
    if len(times) < 2:
        return 0
    calls = 0

    def listen(x: Tensor, t: Tensor) -> Estimate:
        nonlocal calls
        calls += 1
        return Estimate(x, x)

    solve: Callable[..., Tensor] = solvers.SOLVERS[solver].function
    solve(process, listen, torch.ones(1, 1), times[:, None] if solver != "edm_heun" else times)
    return calls
