"""What a run will do and cost, worked out before anything of it is loaded."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from scoretune.commands.plan.counts import Facts, costs_of, one_update, training, warm_up
from scoretune.commands.plan.evaluations import drawn, encodings, evaluating, evaluations
from scoretune.commands.plan.fitting import as_numbers, fitted
from scoretune.commands.plan.memory import decoder_graph, elsewhere, peak, phases
from scoretune.commands.plan.model import MemoryUnknown, Model, calls_a_state, model_of
from scoretune.commands.plan.suggestions import suggestions
from scoretune.core import distributed
from scoretune.core.config import Run
from scoretune.core.errors import UserError
from scoretune.data.prompts import Prompts, read_prompts
from scoretune.diffusion.processes import VP, Process, RectifiedFlow
from scoretune.models import quantized
from scoretune.models.base import PRECISIONS
from scoretune.policy import Deployment, deployment_of
from scoretune.rewards.base import has_gradient
from scoretune.rewards.catalog import named_reward
from scoretune.training import overrides
from scoretune.training.build import follows_reward, held_out_prompts
from scoretune.training.objectives.method import batch_size, check_divisible
from scoretune.training.overrides import of_data

Numbers = dict[str, Any]
NOTHING = Prompts((), ())
TRIALS = 8
"""Of the speed of a machine: others that use it too may slow down some of them."""


def planned(run: Run, processes: int = 1, *, seconds: float = 1.0) -> Numbers:
    """What a run costs, as plain data; bytes, seconds and network evaluations.

    `seconds` are spent on measuring this machine, 0 for no estimate of time. Raises UserError for
    prompts that cannot be read or drawn in their size, for settings that quantised weights refuse,
    and for a number of processes that does not divide the prompts.
    """
    quantized.check_settings(run.model, run.hardware)
    if run.objective.on_data:
        check_divisible("sizes.batch", batch_size(run.sizes), processes)
    else:
        check_divisible("sizes.prompts", run.sizes.prompts, processes)
    prompts, held_out = _prompts(run)
    facts, model, why = _facts(run, prompts, held_out)
    numbers: Numbers = {"run": run.recipe, "model": run.model.source, "prompts": len(prompts)}
    numbers |= {"held_out": len(held_out), "updates": run.updates}
    numbers["unusual"] = overrides.unusual(run)
    numbers |= _work(run, facts, prompts, held_out)
    numbers["processes"] = _shared(run, facts, processes)
    if model is None:
        return numbers | {"memory": {"unknown": why}}
    numbers["frames"] = {"model": model.frames, "shorter": model.shorter}
    numbers["size"] = model.size
    numbers["parameters"] = {"total": model.total, "trained": model.trained}
    numbers["memory"] = _memory(run, model, facts, len(held_out), processes)
    if seconds > 0:
        numbers["time"] = _time(run, model, numbers, seconds)
    return numbers


def calls_of_training(run: Run) -> tuple[float, float]:
    """Network evaluations of a run's updates, and of its critic's warm-up before them.

    Raises UserError as `planned` does.
    """
    facts, _, _ = _facts(run, *_prompts(run))
    return training(run, facts).total, warm_up(run, facts).total


def _prompts(run: Run) -> tuple[Prompts, Prompts]:
    """Those of training and those held out."""
    if of_data(run):
        return NOTHING, NOTHING
    return read_prompts(run.prompts, run.prompts_per_task), held_out_prompts(run)


def _facts(run: Run, prompts: Prompts, held_out: Prompts) -> tuple[Facts, Model | None, str]:
    """What counts must know; the model's costs, or why they are unknown."""
    model, why, process, guided, deployment = _model(run, (*prompts.texts, *held_out.texts))
    followed = _differentiable(run, prompts)
    return Facts(process, guided, run.model.rank > 0, followed, deployment), model, why


def _model(
    run: Run, texts: Sequence[str]
) -> tuple[Model | None, str, Process, int, Deployment | None]:
    """The model's costs, or why they are unknown; its process, evaluations a state, and how it is
    sampled from unless told otherwise. Raises UserError for prompts of a size that it cannot draw.
    """
    try:
        policy, model = model_of(run, texts)
    except MemoryUnknown as error:
        flows = run.sampling.noise in ("flow", "dance")
        stand_in: Process = RectifiedFlow() if flows else VP()
        return None, str(error), stand_in, 1 if run.model.guidance in (None, 1) else 2, None
    guided, backbone = calls_a_state(policy), policy.backbone
    return model, "", backbone.process, guided, deployment_of(backbone)


def _differentiable(run: Run, prompts: Prompts) -> bool:
    """Whether the reward has a gradient, asked only where it decides what an update costs."""
    if costs_of(run, True) == costs_of(run, False):
        return True
    try:
        grey = torch.full((3, 32, 32), 0.5, device=distributed.device())
        return has_gradient(named_reward(run.reward), run.reward, grey, prompts.texts[0])
    except UserError:
        return False


def _work(run: Run, facts: Facts, prompts: Prompts, held_out: Prompts) -> Numbers:
    update = one_update(run, facts)
    calls, first = training(run, facts), warm_up(run, facts)
    return {
        "update": {
            "samples": update.samples,
            "steps": update.steps,
            "trained_steps": update.trained,
            "states": update.states,
            "minibatches": update.minibatches,
            "optimiser_steps": update.optimiser_steps,
            "network_evaluations": asdict(update.calls),
            "backwards": update.backwards,
            "decodes": update.decodes,
        },
        "network_evaluations": {
            **asdict(calls),
            "warm_up": first.total,
            "training": calls.total + first.total,
            "evaluations": evaluating(run, facts, held_out),
        },
        "evaluations": evaluations(run),
        "pictures": {
            "training": 0 if run.objective.on_data else update.samples * run.updates,
            "evaluations": drawn(run, held_out),
        },
        "text_encodings": encodings(run, facts, prompts, held_out),
    }


def _shared(run: Run, facts: Facts, processes: int) -> Numbers:
    """How a minibatch is cut up; its gradient is the same however that is."""
    states = max(1, round(one_update(run, facts).states))
    if not run.objective.on_data:
        states = min(run.sizes.minibatch, states)
    each = -(-states // processes)
    at_once = min(run.hardware.device_batch or each, each)
    return {
        "processes": processes,
        "minibatch": states,
        "passes": -(-each // at_once),
        "at_once": at_once,
        "prompts_each": 0 if run.objective.on_data else run.sizes.prompts // processes,
    }


def _memory(run: Run, model: Model, facts: Facts, held_out: int, processes: int) -> Numbers:
    """Of one process, which has its share of the prompts and of every minibatch."""
    sizes = run.sizes.model_copy(
        update={
            "prompts": run.sizes.prompts // processes,
            "batch": run.sizes.batch // processes,
            "minibatch": -(-run.sizes.minibatch // processes),
        }
    )
    one = run.model_copy(update={"sizes": sizes})
    drawn_each = -(-held_out // processes)
    by_phase = phases(one, model, facts, drawn_each)
    worst, most = peak(by_phase)
    fit = {}
    if run.hardware.memory is not None:
        fit = {"fit": as_numbers(fitted(one, model, facts, drawn_each), facts, drawn_each)}
    return {
        **fit,
        "peak": most,
        "phase": worst,
        "phases": by_phase,
        "decoder_graph": decoder_graph(one, model, facts, worst),
        "slope_decoder": _takes_slope_decoder(one, model, facts),
        "elsewhere": elsewhere(one, model, facts),
        "knobs": dict(suggestions(one, model, facts, drawn_each)),
    }


def _takes_slope_decoder(run: Run, model: Model, facts: Facts) -> bool:
    """Whether `model.slope_decoder` could be set, and is not."""
    open_to = run.model.slope_decoder is None and "vae" in model.parts
    return open_to and follows_reward(run, facts.differentiable)


# ----------------------------------------------------------------------------------- time


def _time(run: Run, model: Model, numbers: Numbers, seconds: float) -> Numbers:
    """A lower bound: arithmetic alone, at the speed of large matrix products on this machine."""
    calls, pictures = numbers["network_evaluations"], numbers["pictures"]
    looking, drawing = model.looking.at(1).flops, model.drawing.at(1).flops
    learning = model.graphs(run.hardware.checkpointing).learning.at(1).flops
    work = looking * (calls["rollouts"] + calls["references"] + calls["warm_up"])
    work += learning * (calls["learning"] + calls["credit"])
    work += drawing * pictures["training"] + model.reading.at(1).flops * numbers["text_encodings"]
    judging = looking * calls["evaluations"] + drawing * pictures["evaluations"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rate = speed(device, PRECISIONS[run.model.precision], seconds)
    return {
        "training_flops": work,
        "evaluation_flops": judging,
        "flops_per_second": rate,
        "device": device,
        "seconds_at_least": (work + judging) / rate / numbers["processes"]["processes"],
    }


def speed(device: str, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """FLOPs a second of matrix products on a device: the best of `TRIALS` short trials, which take
    about so many seconds together."""
    size, best = 4096 if device == "cuda" else 512, 0.0
    left = torch.ones(size, size, device=device, dtype=dtype)
    right = left.clone()
    for _ in range(TRIALS):
        times, took, start = 0, 0.0, time.perf_counter()
        while took < seconds / TRIALS or times == 0:
            right = (left @ right).clamp_(max=1)
            if device == "cuda":
                torch.cuda.synchronize()
            times, took = times + 1, time.perf_counter() - start
        best = max(best, 2 * size**3 * times / took)
    return float(best)
