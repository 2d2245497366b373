"""Settings with which a run fits a device's memory, and what each of them costs.

None of them changes what is learned beyond rounding. They are tried in the order of `ladder`, the
cheapest first, until the peak fits; then those that turn out not to be needed are taken back, the
costliest first, and as many states go through the network at once as there is room for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from scoretune.commands.plan.counts import Facts, costs_of, one_update
from scoretune.commands.plan.memory import decoder_graph, peak, phases
from scoretune.commands.plan.model import Model
from scoretune.commands.plan.profiler import Curve
from scoretune.commands.plan.suggestions import halved, suits
from scoretune.core.config import Run
from scoretune.core.errors import UserError
from scoretune.models.quantized import bytes_of
from scoretune.training.overrides import changed

FREE = 0.9
"""The share of a device's memory that tensors may take: the rest is for the libraries' workspaces,
fragments and the CUDA context, which are not counted."""
LINK = 12e9
"""Bytes a second between a computer and its device, as PCIe 3.0 × 16 carries."""
ERRORS = {"int8": 0.01, "float8": 0.04, "nf4": 0.13}
"""How far a miniature FLUX.1's output moves when it is stored so (docs/models.md), as a share."""


@dataclass(frozen=True)
class Fit:
    """The settings that fit, each with what it costs; the run and the model with them."""

    settings: dict[str, str]
    run: Run
    model: Model
    fits: bool


@dataclass(frozen=True)
class Device:
    """What a run is fitted to: bytes that tensors may take, and what is known of the run."""

    room: float
    facts: Facts
    held_out: int

    def peak(self, run: Run, model: Model) -> float:
        """Bytes of a run with a model as `changed` settings make it."""
        return peak(phases(run, model, self.facts, self.held_out))[1]


def fitted(run: Run, model: Model, facts: Facts, held_out: int) -> Fit:
    """Settings with which the run fits `hardware.memory`, the cheapest that do."""
    assert run.hardware.memory is not None
    device = Device(FREE * run.hardware.memory * 1e9, facts, held_out)
    rungs = ladder(run, model, facts)
    taken: list[str] = []
    while device.peak(*with_settings(run, model, taken)) > device.room and rungs:
        rung = rungs.pop(0)
        if _accepted(run, [*taken, rung]):
            taken.append(rung)
    enough = device.peak(*with_settings(run, model, taken)) <= device.room
    for setting in reversed(taken.copy()) if enough else ():
        fewer = [one for one in taken if one != setting]
        if _accepted(run, fewer) and device.peak(*with_settings(run, model, fewer)) <= device.room:
            taken = fewer
    taken = _latest(taken)
    other, lighter = with_settings(run, model, taken)
    costs = {one: cost_of(one, run, other, lighter, facts) for one in taken}
    return Fit(costs, other, lighter, enough)


def _latest(settings: Sequence[str]) -> list[str]:
    """Of several values of one setting the last."""
    return list({one.partition("=")[0]: one for one in settings}.values())


def ladder(run: Run, model: Model, facts: Facts) -> list[str]:
    """Settings that lower the memory, the cheapest first."""
    machine, ratios = run.hardware, costs_of(run, facts.differentiable).ratios
    rungs = [
        ("hardware.cache_prompts=true", bool(model.encoders) and not machine.cache_prompts),
        ("hardware.decode_batch=1", machine.decode_batch != 1),
        ("hardware.offload=true", bool(model.waiting) and not machine.offload),
        *((f"hardware.device_batch={batch}", True) for batch in _smaller(run)),
        ("hardware.offload_paths=true", not machine.offload_paths),
        ("hardware.checkpointing=true", model.again is not None and not machine.checkpointing),
        (
            f"model.precision={'fp16' if ratios else 'bf16'}",
            run.model.precision == "fp32" and run.model.rank > 0,
        ),
        *((setting, run.model.rank > 0) for setting in _quantised(run, model)),
    ]
    return [setting for setting, useful in rungs if useful]


def _accepted(run: Run, settings: Sequence[str]) -> bool:
    """Whether a run takes these settings together."""
    try:
        return suits(changed(run, _latest(settings)))
    except UserError:
        return False


def _smaller(run: Run) -> Iterator[int]:
    """Half as many states at once, a quarter, …, one."""
    states = run.hardware.device_batch or run.sizes.minibatch
    while states > 1:
        states //= 2
        yield states


def _quantised(run: Run, model: Model) -> Iterator[str]:
    if run.model.quantize or not model.linears:
        return
    yield "model.quantize=int8"
    yield "model.quantize=nf4"
    if model.encoders and not run.hardware.cache_prompts:
        yield "model.quantize_encoders=true"


def with_settings(run: Run, model: Model, settings: Sequence[str]) -> tuple[Run, Model]:
    """A run with settings of the ladder, and its model as they make it."""
    order = sorted(_latest(settings), key=lambda one: "encoders" in one)
    other = changed(run, order) if order else run
    if other.model.precision != run.model.precision:
        model = halved(model)
    if other.model.quantize != run.model.quantize:
        assert other.model.quantize is not None
        model = packed(model, other.model.quantize, encoders=other.model.quantize_encoders)
    return other, model


def packed(model: Model, format: str, *, encoders: bool) -> Model:
    """A model with its linear layers' weights stored in a format: each call of the network makes
    one after the other of them wide again."""
    parts, widest = dict(model.parts), 0
    for name, layers in model.linears.items():
        if name in model.encoders and not encoders:
            continue
        sizes = [outputs * inputs * _size(dtype) for outputs, inputs, dtype in layers]
        parts[name] -= sum(sizes) - sum(bytes_of(format, *layer) for layer in layers)
        if name == model.denoiser:
            widest = max(sizes, default=0)

    def wider(one: Curve) -> Curve:
        return one.changed(lambda cost: replace(cost, peak=cost.peak + widest))

    return replace(
        model,
        parts=parts,
        looking=wider(model.looking),
        plain=replace(model.plain, learning=wider(model.plain.learning)),
        again=model.again and replace(model.again, learning=wider(model.again.learning)),
    )


def _size(dtype: torch.dtype) -> int:
    return torch.empty((), dtype=dtype).element_size()


# ---------------------------------------------------------------------------- what it costs


def work_of(run: Run, model: Model, facts: Facts) -> float:
    """FLOPs of an update's network evaluations and decoded pictures."""
    update = one_update(run, facts)
    calls = update.calls
    learning = model.graphs(run.hardware.checkpointing).learning.at(1).flops
    work = model.looking.at(1).flops * (calls.rollouts + calls.references)
    work += learning * (calls.learning + calls.credit)
    return work + model.drawing.at(1).flops * update.decodes


def cost_of(setting: str, before: Run, after: Run, model: Model, facts: Facts) -> str:
    """What a setting costs, in words: a ratio of work, seconds an update, or an error."""
    name, _, value = setting.partition("=")
    update = one_update(after, facts)
    said: dict[str, Callable[[], str]] = {
        "hardware.cache_prompts": lambda: "nothing: every prompt is read once, at the start",
        "hardware.decode_batch": lambda: "the same work, one picture at a time",
        "hardware.device_batch": lambda: (
            f"the same work in calls of {value} instead of "
            f"{before.hardware.device_batch or before.sizes.minibatch} states"
        ),
        "hardware.offload": lambda: (
            f"about {_moved(after, model) / LINK:.2g} s an update to move parts there and back"
        ),
        "hardware.offload_paths": lambda: "a copy of each path there and back",
        "hardware.checkpointing": lambda: (
            f"{_again(after, model, facts):.2f} times the work of an update"
        ),
        "model.precision": lambda: "rounding of the frozen weights and the activations",
        "model.quantize": lambda: (
            f"rounding (a miniature's output moved by {ERRORS[value]:.0%}) and "
            f"{_widening(model, update.calls.total, after):.2f} times the work, to widen weights"
        ),
        "model.quantize_encoders": lambda: "rounding of what prompts are read as",
    }
    return said[name]()


def _again(run: Run, model: Model, facts: Facts) -> float:
    kept = changed(run, ["hardware.checkpointing=false"])
    return work_of(run, model, facts) / work_of(kept, model, facts)


def _moved(run: Run, model: Model) -> float:
    """Bytes that offloaded parts move in an update: there and back, once a phase."""
    gone = model.encoders if run.hardware.cache_prompts else ()
    return 2.0 * sum(model.parts[name] for name in set(model.waiting) - set(gone))


def _widening(model: Model, calls: float, run: Run) -> float:
    """Work with weights made wide at every call over that without: a product and a cast a weight,
    for as many states as go through the network at once."""
    numbers = sum(outputs * inputs for outputs, inputs, _ in model.linears.get(model.denoiser, ()))
    at_once = run.hardware.device_batch or run.sizes.minibatch
    return 1 + 2 * numbers / (at_once * model.looking.at(1).flops)


def as_numbers(fit: Fit, facts: Facts, held_out: int) -> dict[str, Any]:
    """A fit as plain data."""
    worst, most = peak(phases(fit.run, fit.model, facts, held_out))
    memory = (fit.run.hardware.memory or 0) * 1e9
    return {
        "memory": memory,
        "missing": max(0.0, most - FREE * memory),
        "fits": fit.fits,
        "settings": fit.settings,
        "peak": most,
        "phase": worst,
        "decoder_graph": decoder_graph(fit.run, fit.model, facts, worst),
    }
