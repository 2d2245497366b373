"""How often the evaluations of a run ask its network, and what its encoders read."""

from __future__ import annotations

import math

from scoretune.commands.plan.counts import Facts, costs_of, solver_calls
from scoretune.core.config import Run
from scoretune.data.prompts import Prompts
from scoretune.diffusion.named import grid
from scoretune.evaluate.gap import matrix_of
from scoretune.evaluate.guard import guard
from scoretune.evaluate.samples import times_of
from scoretune.training.overrides import of_data

BATCH = 64  # of prompts in an evaluation


def evaluations(run: Run) -> int:
    """How many there are, that of the base model among them; counted, never listed."""
    return _at_both_ends(run.evaluation.every, run.updates)


def _at_both_ends(every: int, updates: int) -> int:
    return 2 + ((updates - 1) // every if every else 0)


def evaluating(run: Run, facts: Facts, held_out: Prompts) -> float:
    """Network evaluations of all evaluations; they do not count as training."""
    if of_data(run):
        return run.evaluation.samples * run.evaluation.steps * evaluations(run)
    settings, count = run.evaluation, len(held_out)
    times = grid(facts.process, run.sampling)
    steps = len(times) - 1
    deployed = times_of(facts.process, facts.deployment, settings.steps)
    plain = solver_calls(settings.solver, facts.process, deployed)
    each = count * (plain + steps * (5 if facts.adapted else 2))
    if run.guard.action != "off":
        each += watched(held_out) * plain
    total = each * evaluations(run)
    if settings.gap.steps:
        cells = matrix_of(settings.gap.steps, settings.gap.etas).cells
        total += _matrices(run) * count * sum(_steps(run, facts, cell.steps) for cell in cells)
    return total * facts.guided


def _steps(run: Run, facts: Facts, steps: int) -> int:
    """How many steps of a matrix of the gap there are where so many are asked for."""
    own = facts.deployment
    return steps if own is None or run.sampling.grid != "auto" else len(own.times(steps)) - 1


def watched(held_out: Prompts) -> int:
    """Samples in which a guard looks for diversity."""
    return len(guard.diversity_prompts(held_out)) if held_out.texts else 0


def drawn(run: Run, held_out: Prompts) -> int:
    """Pictures that all evaluations decode."""
    each = 3 * len(held_out) + (watched(held_out) if run.guard.action != "off" else 0)
    return each * evaluations(run) + _samplers(run) * len(held_out)


def _matrices(run: Run) -> int:
    """The matrices of a gap over the whole run (`evaluate.gap.due`)."""
    settings = run.evaluation
    if not settings.gap.steps:
        return 0
    return _at_both_ends(settings.every * settings.gap.every, run.updates)


def _samplers(run: Run) -> int:
    """Samplers whose pictures the matrices of a gap show, over the whole run."""
    settings = run.evaluation.gap
    if not settings.steps:
        return 0
    return len(matrix_of(settings.steps, settings.etas).cells) * _matrices(run)


def encodings(run: Run, facts: Facts, prompts: Prompts, held_out: Prompts) -> int:
    """Texts that the encoders read in all, each once a batch, an empty one with every batch."""
    if of_data(run):
        return 0
    if run.hardware.cache_prompts:
        return len({*prompts.texts, *held_out.texts, ""})
    looks, whole = evaluations(run), len(held_out) + math.ceil(len(held_out) / BATCH)
    texts = (3 * looks + _samplers(run)) * whole
    if run.guard.action != "off":
        texts += looks * (watched(held_out) + 1)
    if run.objective.on_data:
        return texts
    rounds = run.updates + costs_of(run, facts.differentiable).warm_up
    return texts + rounds * (run.sizes.prompts + 1)
