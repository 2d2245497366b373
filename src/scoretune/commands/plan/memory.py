"""What memory a run will need, phase by phase.

Counted is what tensors hold: no workspaces of libraries, no fragments, and not the reward's model.
"""

from __future__ import annotations

import math

from scoretune.commands.plan.counts import Facts, costs_of, one_update
from scoretune.commands.plan.model import Model
from scoretune.core.config import Run
from scoretune.models.base import DECODED
from scoretune.training.engine import HALVES, READ
from scoretune.training.objectives import KINDS

EVALUATED = 64  # pictures that an evaluation draws at once
Phases = dict[str, dict[str, float]]
"""Bytes on the device by phase and by what they are for."""


def phases(run: Run, model: Model, facts: Facts, held_out: int) -> Phases:
    """What is on the device in each phase of an update; the worst one is the peak."""
    update, machine = one_update(run, facts), run.hardware
    by_phase = {"learning": _learning(run, model, facts), "stepping": _stepping(run, model, facts)}
    if not run.objective.on_data:
        paths, steps = _paths(run, model, facts, update.samples, update.states)
        kept = {"paths": 0 if machine.offload_paths else paths}
        rolled = min(machine.device_batch or update.samples, update.samples) * facts.guided
        drawn = min(_decoded_at_once(run, model), update.samples)
        prompts = READ if machine.cache_prompts else run.sizes.prompts
        texts = min(machine.device_batch or prompts, prompts) + 1
        by_phase |= {
            "encoding": {"activations": model.reading.at(texts).peak},
            "rolling": {**kept, "activations": model.looking.at(rolled).peak},
            "drawing": {
                **kept,
                "pictures": update.samples * model.picture,
                "activations": model.drawing.at(drawn).peak,
            },
            "crediting": {**kept, "activations": _credit(run, model, facts)},
            "dealing": {**kept, "states": 0 if machine.offload_paths else 2 * steps},
        }
    by_phase["evaluating"] = _evaluating(run, model, facts, held_out)
    return {name: _lasting(run, model, name) | parts for name, parts in by_phase.items()}


def _learning(run: Run, model: Model, facts: Facts) -> dict[str, float]:
    update, trains_halves = one_update(run, facts), run.model.precision in HALVES
    several = costs_of(run, facts.differentiable).at_once
    learned = min(run.sizes.minibatch, math.ceil(update.states)) * several
    if run.objective.on_data:
        learned = math.ceil(update.states)
    learned = min(run.hardware.device_batch or learned, learned) * facts.guided
    halves = model.trained_bytes / 2 if run.model.rank == 0 and trains_halves else 0
    graphs = model.graphs(run.hardware.checkpointing)
    activations = graphs.learning.at(learned).peak
    costs = costs_of(run, facts.differentiable)
    if costs.graph_steps:  # of all steps, and of decoding
        paths = _paths_at_once(run, facts)
        step = graphs.learning.at(paths * facts.guided).peak
        activations = costs.graph_steps * step + graphs.sloping.at(paths).peak
    return {
        "states": _states(run, model, facts),
        "gradients": model.trained_bytes,
        "activations": activations + halves,
    }


def _stepping(run: Run, model: Model, facts: Facts) -> dict[str, float]:
    return {
        "states": _states(run, model, facts),
        "gradients": model.trained_bytes,
        "temporaries": 0 if run.optimiser.kind == "fused" else model.trained_bytes,
    }


def decoder_graph(run: Run, model: Model, facts: Facts, phase: str) -> float:
    """Bytes of the activations of a phase that are the autoencoder's, through which a reward's
    gradient goes."""
    costs = costs_of(run, facts.differentiable)
    sloping = model.graphs(run.hardware.checkpointing).sloping
    if phase == "learning" and costs.graph_steps:
        return sloping.at(_paths_at_once(run, facts)).peak
    if phase != "crediting" or costs.credit_graph not in ("decoder", "both", "either"):
        return 0
    graph = sloping.at(costs.credit_batch).peak
    lower = costs.credit_graph == "either" and graph < _credit(run, model, facts)
    return 0 if lower else graph


def _paths_at_once(run: Run, facts: Facts) -> int:
    """Whole paths whose graphs wait for one gradient."""
    paths = min(run.sizes.minibatch, one_update(run, facts).samples)
    return min(run.hardware.device_batch or paths, paths)


def _states(run: Run, model: Model, facts: Facts) -> float:
    """Of the states that an update learns from, as they wait for their turn."""
    update = one_update(run, facts)
    if run.objective.on_data:
        return update.states * model.state + update.samples * model.token
    if run.hardware.offload_paths:
        return 0
    return _paths(run, model, facts, update.samples, update.states)[1]


def _evaluating(run: Run, model: Model, facts: Facts, held_out: int) -> dict[str, float]:
    machine = run.hardware
    looked = min(EVALUATED, held_out)
    looked = min(machine.device_batch or looked, looked) * facts.guided
    seen = min(_decoded_at_once(run, model), EVALUATED, held_out)
    drawing, looking = model.drawing.at(seen), model.looking.at(looked)
    return {
        "pictures": 3 * held_out * model.picture,
        "activations": max(looking.peak, drawing.peak),
    }


def _decoded_at_once(run: Run, model: Model) -> int:
    pixels = max(1, model.picture // 12)  # three channels of four bytes
    at_once = run.hardware.decode_batch or max(1, DECODED // pixels)
    return min(at_once, run.hardware.device_batch or at_once)


def peak(by_phase: Phases) -> tuple[str, float]:
    """The worst phase and its bytes."""
    sums = {name: sum(parts.values()) for name, parts in by_phase.items()}
    worst = max(sums, key=lambda name: sums[name])
    return worst, sums[worst]


def elsewhere(run: Run, model: Model, facts: Facts) -> float:
    """Bytes of paths and of offloaded parts that wait in the computer's memory."""
    update, machine = one_update(run, facts), run.hardware
    paths = _paths(run, model, facts, update.samples, update.states)
    read = model.encoders if machine.cache_prompts else ()
    parts = [size for name, size in model.parts.items() if name in set(model.waiting) - set(read)]
    return sum(paths) * machine.offload_paths + sum(parts) * machine.offload


def _lasting(run: Run, model: Model, phase: str) -> dict[str, float]:
    """What is there besides the work of a phase: weights, and what the optimiser remembers."""
    parts = {n: size for n, size in model.parts.items() if n not in _away(run, model, phase)}
    named = {f"weights of {name}": float(size) for name, size in parts.items()}
    if phase == "encoding" and run.hardware.cache_prompts:  # before there is an optimiser
        return named
    average = model.trained_bytes if run.optimiser.ema else 0
    return {**named, "optimiser": _moments(run, model), "average": average}


def _away(run: Run, model: Model, phase: str) -> set[str]:
    """Parts that are off the device in a phase: encoders that all prompts were read by, and those
    offloaded that are not in use. The autoencoder waits where it was used until the network is
    asked, and stays where a gradient passes through it."""
    machine, encoders = run.hardware, set(model.encoders)
    away = encoders if machine.cache_prompts and phase != "encoding" else set()
    if not machine.offload:
        return away
    decoding = ("drawing", "crediting", "dealing", "evaluating")
    used = encoders if phase == "encoding" else set()
    if phase in decoding or KINDS[run.objective.kind].follows_reward:
        used = used | {"vae"}
    if phase == "encoding" and machine.cache_prompts:
        return set(model.parts) - encoders
    return away | (set(model.waiting) - used)


def _moments(run: Run, model: Model) -> float:
    if run.optimiser.kind != "8bit":
        return 2 * model.trained_bytes
    # bitsandbytes keeps those of small tensors in float32.
    return float(sum(2 * size * (1 if size >= 4096 else 4) for size in model.sizes))


def _paths(
    run: Run, model: Model, facts: Facts, samples: int, states: float
) -> tuple[float, float]:
    """Bytes of whole paths, and of the states that are learned from with their token states."""
    steps, costs = run.sampling.steps, costs_of(run, facts.differentiable)
    kept = 2 * steps + 1 + costs.references * costs.on_paths
    whole = samples * (model.state * kept + model.token)
    return whole, costs.at_once * states * (
        model.state * (3 + (costs.references > 0) + (not costs.ratios)) + model.token
    )


def _credit(run: Run, model: Model, facts: Facts) -> float:
    """Slopes go through network and decoder; all of a batch waits for its gradient."""
    costs, graphs = costs_of(run, facts.differentiable), model.graphs(run.hardware.checkpointing)
    if not costs.credit_graph:
        return 0
    if costs.credit_graph == "both":
        return graphs.valuing.at(costs.credit_batch).peak
    network = graphs.learning.at(costs.credit_batch * facts.guided).peak
    decoder = graphs.sloping.at(costs.credit_batch).peak
    return {"network": network, "decoder": decoder, "either": max(network, decoder)}[
        costs.credit_graph
    ]
