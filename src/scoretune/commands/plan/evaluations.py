"""How often the evaluations of a run ask its network, and what its encoders read."""

from __future__ import annotations

import math

from scoretune.commands.plan.counts import Facts, costs_of, solver_calls
from scoretune.core.config import Run
from scoretune.data.prompts import Prompts
from scoretune.diffusion import grids
from scoretune.diffusion.named import grid
from scoretune.evaluate.gap import due, matrix_of
from scoretune.evaluate.guard import guard
from scoretune.training.overrides import of_data

BATCH = 64  # of prompts in an evaluation


def evaluations(run: Run) -> list[int]:
    """After which updates there is one, 0 for the base model."""
    every = run.evaluation.every
    between = range(every, run.updates, every) if every else ()
    return [0, *between, run.updates]


def evaluating(run: Run, facts: Facts, held_out: Prompts) -> float:
    """Network evaluations of all evaluations; they do not count as training."""
    if of_data(run):
        return run.evaluation.samples * run.evaluation.steps * len(evaluations(run))
    settings, count = run.evaluation, len(held_out)
    times = grid(facts.process, run.sampling)
    steps = len(times) - 1
    own = facts.deployment
    deployed = (
        grids.uniform(facts.process, settings.steps) if own is None else own.times(settings.steps)
    )
    plain = solver_calls(settings.solver, facts.process, deployed)
    each = count * (plain + steps * (4 if facts.adapted else 2))
    if run.guard.action != "off":
        each += watched(held_out) * plain
    total = each * len(evaluations(run))
    for update in evaluations(run):
        if due(settings, run.updates, update):
            cells = matrix_of(settings.gap.steps, settings.gap.etas).cells
            total += count * sum(cell.steps for cell in cells)
    return total * facts.guided


def watched(held_out: Prompts) -> int:
    """Samples in which a guard looks for diversity."""
    return len(guard.diversity_prompts(held_out)) if held_out.texts else 0


def drawn(run: Run, held_out: Prompts) -> int:
    """Pictures that all evaluations decode."""
    each = 3 * len(held_out) + (watched(held_out) if run.guard.action != "off" else 0)
    return each * len(evaluations(run)) + _matrices(run) * len(held_out)


def _matrices(run: Run) -> int:
    """Samplers whose pictures the matrices of a gap show, over the whole run."""
    settings = run.evaluation.gap
    if not settings.steps:
        return 0
    cells = len(matrix_of(settings.steps, settings.etas).cells)
    return cells * sum(due(run.evaluation, run.updates, update) for update in evaluations(run))


def encodings(run: Run, facts: Facts, prompts: Prompts, held_out: Prompts) -> int:
    """Texts that the encoders read in all, an empty one with every batch."""
    if of_data(run):
        return 0
    if run.hardware.cache_prompts:
        return len({*prompts.texts, *held_out.texts, ""})
    looks, whole = len(evaluations(run)), len(held_out) + math.ceil(len(held_out) / BATCH)
    texts = (3 * looks + _matrices(run)) * whole
    if run.guard.action != "off":
        texts += looks * (watched(held_out) + 1)
    if run.objective.on_data:
        return texts
    rounds = run.updates + costs_of(run, facts.differentiable).warm_up
    return texts + rounds * (run.sizes.prompts * run.sizes.group + 1)
