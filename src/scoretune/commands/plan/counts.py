"""How often a run asks its network, and for what, worked out from its settings alone.

The numbers are those of `Policy.calls`: one a state that the network sees, two under
classifier-free guidance. Where a method draws how many steps it learns from, they are what is to be
expected.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from scoretune.core.config import (
    NEW_NETWORKS,
    Adjoint,
    Consistency,
    Direct,
    Matching,
    PolicyGradient,
    Run,
    ScoreAction,
)
from scoretune.core.errors import user_errors
from scoretune.diffusion import solvers
from scoretune.diffusion.estimates import Estimate
from scoretune.diffusion.kernels import noisy_steps
from scoretune.diffusion.named import grid, kernel, window
from scoretune.diffusion.processes import Process
from scoretune.diffusion.windows import Window
from scoretune.training.methods import keeps_graph


@dataclass(frozen=True)
class Facts:
    """What a count must know besides the settings: the process, how many evaluations a state costs
    (`guided`), whether there is a pretrained policy beside the trained one, and whether the reward
    has a gradient."""

    process: Process
    guided: int = 1
    adapted: bool = True
    differentiable: bool = False


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
    so many states, minibatches and steps of the optimiser."""

    samples: int
    steps: int
    trained: float
    minibatches: int
    optimiser_steps: int
    calls: Calls

    @property
    def states(self) -> float:
        return self.samples * self.trained


def one_update(run: Run, facts: Facts, number: int = 0) -> Update:
    """The update of that number; a window lies elsewhere in another."""
    chosen = run.objective
    if isinstance(chosen, Matching | Consistency):
        return _on_data(run, chosen)
    samples, steps = run.sizes.prompts * run.sizes.group, run.sampling.steps
    times = grid(facts.process, run.sampling)
    noisy = noisy_steps(kernel(run.sampling), facts.process, times)
    at = window(run.sampling, times, facts.process, run.seed)
    place = None if at is None else at(number)
    trained = _trained(run, facts, noisy, place)
    rolled, learned = _rollouts(run, facts, place), samples * trained
    kept = isinstance(chosen, Direct) and keeps_graph(run, chosen)
    if kept:  # the last steps are taken with their gradient, and only then
        rolled -= samples * trained
        learned = samples
    minibatches = math.ceil(learned / run.sizes.minibatch)
    calls = Calls(
        rollouts=rolled,
        references=samples * (steps if place is None else run.sampling.window.size)
        if chosen.kl_weight > 0
        else 0,
        credit=0 if kept else _credit(run, facts, trained),
        learning=samples * trained,
    )
    return Update(
        samples=samples,
        steps=steps,
        trained=trained,
        minibatches=minibatches,
        optimiser_steps=_optimiser_steps(run, minibatches),
        calls=calls * facts.guided,
    )


def training(run: Run, facts: Facts) -> Calls:
    """All updates."""
    if not run.sampling.window.size:
        return one_update(run, facts).calls * run.updates
    with user_errors():
        times = grid(facts.process, run.sampling)
        places = window(run.sampling, times, facts.process, run.seed)
    assert places is not None
    first = {places(number): number for number in reversed(range(run.updates))}
    cost = {place: one_update(run, facts, number).calls for place, number in first.items()}
    return sum((cost[places(number)] for number in range(run.updates)), Calls())


def warm_up(run: Run, facts: Facts) -> Calls:
    """Rounds that only fit a critic, before update 1."""
    calls, rounds = one_update(run, facts).calls, warm_up_rounds(run)
    return Calls(calls.rollouts, calls.references, calls.credit) * rounds


def warm_up_rounds(run: Run) -> int:
    """How many there are."""
    chosen = run.objective
    if isinstance(chosen, ScoreAction):
        return chosen.critic.warmup
    if isinstance(chosen, PolicyGradient) and chosen.baseline == "critic":
        return chosen.critic.warmup
    return 0


def _on_data(run: Run, chosen: Matching | Consistency) -> Update:
    batch = run.sizes.batch or run.sizes.prompts * run.sizes.group
    asked = 1
    if isinstance(chosen, Consistency):
        rule = chosen.rule
        if rule == "auto":
            rule = "ict" if run.model.source in NEW_NETWORKS else "distillation"
        asked = 2 + (rule == "distillation") * (2 if chosen.solver == "heun" else 1)
    return Update(batch, 1, 1.0, 1, 1, Calls(learning=batch * asked))


def _optimiser_steps(run: Run, minibatches: int) -> int:
    return math.ceil(minibatches / run.sizes.accumulate) if run.sizes.accumulate else 1


# ------------------------------------------------------------------------- one update's parts


def _rollouts(run: Run, facts: Facts, place: Window | None) -> float:
    sampling, samples = run.sampling, run.sizes.prompts * run.sizes.group
    if place is None:
        if sampling.solver is None:
            return samples * sampling.steps
        return samples * asked(sampling.solver, facts.process, grid(facts.process, sampling))
    times = grid(facts.process, sampling)
    alone = run.sizes.prompts if sampling.shared_noise else samples
    after = times[place.nodes_after(len(times) - 1)]
    lead = asked(place.solver, facts.process, times[: place.start + 1]) * alone
    return lead + samples * (place.stop - place.start + asked(place.solver, facts.process, after))


def _trained(run: Run, facts: Facts, noisy: Tensor, place: Window | None) -> float:
    """How many steps of a path are learned from."""
    chosen, share, steps = run.objective, run.sizes.share, run.sampling.steps
    if isinstance(chosen, Direct):
        most = min(chosen.last, steps)
        if chosen.through == "estimate":
            return 1
        return (1 + most) / 2 if chosen.random else most
    ratios = isinstance(chosen, PolicyGradient) or form(run, facts) == "ratio"
    known = int(noisy.sum()) if ratios and run.sampling.solver is None else steps
    if place is not None:
        known = int(noisy[place.start : place.stop].sum())
    return max(1, round(share * known))


def form(run: Run, facts: Facts) -> str | None:
    """Of score as action: what the gradient is made of."""
    chosen = run.objective
    if not isinstance(chosen, ScoreAction):
        return None
    if chosen.form == "auto":
        return "rate" if facts.differentiable else "ratio"
    return chosen.form


def _credit(run: Run, facts: Facts, trained: float) -> float:
    chosen, steps = run.objective, run.sampling.steps
    samples = run.sizes.prompts * run.sizes.group
    if form(run, facts) in ("slope", "rate", "explicit"):
        return samples * trained
    if isinstance(chosen, Adjoint):
        kept = int(trained)
        later = [math.comb(steps - j, kept) / math.comb(steps, kept) for j in range(1, steps)]
        return samples * (steps - 1 - sum(p**samples for p in later))
    if isinstance(chosen, Direct) and chosen.through == "steps":
        most = min(chosen.last, steps)
        reached: float = most
        if chosen.random:  # by the longest of all samples
            reached -= sum((v / most) ** samples for v in range(1, most))
        return samples * (reached - 1) * (2 if chosen.kl_weight else 1)
    return 0


def asked(solver: str, process: Process, times: Tensor) -> int:
    """How often a solver asks the network about each state, on a grid [N+1]."""
    if len(times) < 2:
        return 0
    found = 0

    def listen(x: Tensor, t: Tensor) -> Estimate:
        nonlocal found
        found += 1
        return Estimate(x, x)

    solve: Callable[..., Tensor] = solvers.SOLVERS[solver].function
    solve(process, listen, torch.ones(1, 1), times[:, None] if solver != "edm_heun" else times)
    return found
