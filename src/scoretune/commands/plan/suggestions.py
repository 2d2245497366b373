"""Which setting lowers the peak of a run's memory most."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from scoretune.commands.plan.counts import Facts, costs_of
from scoretune.commands.plan.memory import EVALUATED, peak, phases
from scoretune.commands.plan.model import Graphs, Model, calls_a_state, model_of
from scoretune.commands.plan.profiler import Curve
from scoretune.core.config import Run
from scoretune.core.errors import UserError
from scoretune.data.prompts import read_prompts
from scoretune.models import quantized
from scoretune.training import engine
from scoretune.training.build import context_of
from scoretune.training.objectives import KINDS
from scoretune.training.overrides import changed, unread

FALLBACK = "lower hardware.device_batch, or set hardware.checkpointing=true"
Choice = tuple[str, Run, Model]


def suggestions(run: Run, model: Model, facts: Facts, held_out: int) -> list[tuple[str, float]]:
    """Settings that lower the peak, with the bytes it would be, the best first."""
    before = peak(phases(run, model, facts, held_out))[1]
    savings = []
    for name, other, lighter in _choices(run, model, facts):
        after = peak(phases(other, lighter, facts, held_out))[1]
        if after < 0.99 * before:
            savings.append((name, after))
    return sorted(_gentlest(savings), key=lambda one: one[1])


def _gentlest(savings: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    """Of several values of one setting, the last that leaves hardly more than the best of them."""
    values: dict[str, list[tuple[str, float]]] = {}
    for name, after in savings:
        values.setdefault(name.partition("=")[0], []).append((name, after))
    return [
        [one for one in candidates if one[1] <= 1.1 * min(after for _, after in candidates)][-1]
        for candidates in values.values()
    ]


def _choices(run: Run, model: Model, facts: Facts) -> Iterator[Choice]:
    def of(setting: str) -> Choice:
        return setting, changed(run, [setting]), model

    machine = run.hardware
    if not machine.checkpointing and model.again is not None:
        yield of("hardware.checkpointing=true")
    least = costs_of(run, facts.differentiable).at_once if run.objective.on_data else 1
    for batch in (least, 4, 16):
        if not machine.device_batch or batch < machine.device_batch:
            yield of(f"hardware.device_batch={batch}")
        if not machine.decode_batch or batch < machine.decode_batch:
            yield of(f"hardware.decode_batch={batch}")
    cached = changed(run, ["hardware.cache_prompts=true"])
    if model.encoders and not machine.cache_prompts and suits(cached):
        yield of("hardware.cache_prompts=true")
    if not machine.offload_paths and suits(changed(run, ["hardware.offload_paths=true"])):
        yield of("hardware.offload_paths=true")
    if run.sizes.share > 0.5 and "sizes.share" not in unread(run):
        yield of("sizes.share=0.5")
    if model.shorter:
        name, shorter, _ = of(f"model.frames={model.shorter}")
        yield name, shorter, shortened(model)
    if run.model.rank > 4:
        name, lower, _ = of(f"model.rank={run.model.rank // 4}")
        yield name, lower, _lower_rank(model, run.model.rank, run.model.rank // 4)
    if run.model.precision == "fp32" and run.model.rank:
        # A likelihood ratio is near 1, where bfloat16 has steps of 1/128 and float16 of 1/1024.
        ratios = costs_of(run, facts.differentiable).ratios
        name, half, _ = of(f"model.precision={'fp16' if ratios else 'bf16'}")
        yield name, half, halved(model)


def suits(run: Run) -> bool:
    """Whether the objective, the shards, the offload and the weights' format of a run take its
    other settings."""
    try:
        engine.check_shard(run.model, run.hardware, run.optimiser.kind)
        engine.check_offload(run.hardware)
        quantized.check_settings(run.model, run.hardware)
        KINDS[run.objective.kind].check(run.objective, context_of(run))
    except UserError:
        return False
    return True


def _lower_rank(model: Model, before: int, after: int) -> Model:
    share, part = after / before, max(model.parts, key=lambda name: model.parts[name])
    kept = model.trained_bytes * share
    parts = model.parts | {part: model.parts[part] - round(model.trained_bytes - kept)}
    sizes = tuple(round(size * share) for size in model.sizes)
    return replace(model, parts=parts, trained_bytes=round(kept), sizes=sizes)


def halved(model: Model) -> Model:
    """Roughly what half precision makes of a model: weights and activations take half."""

    def half(one: Curve) -> Curve:
        return one.changed(lambda cost: replace(cost, peak=cost.peak / 2))

    parts = {name: size // 2 for name, size in model.parts.items()}
    lighter = _of_states(model, half)
    return replace(lighter, parts=parts, token=model.token // 2, reading=half(model.reading))


def shortened(model: Model) -> Model:
    """Roughly what `shorter` videos make of a model: all that is of a state takes as much less."""
    share = model.shorter / model.frames
    lighter = _of_states(model, lambda one: one.changed(lambda cost: cost * share))
    sizes = {"state": round(model.state * share), "picture": round(model.picture * share)}
    return replace(lighter, **sizes)  # type: ignore[arg-type]


def _of_states(model: Model, change: Callable[[Curve], Curve]) -> Model:
    """A model with what depends on states changed."""

    def graphs(before: Graphs) -> Graphs:
        return Graphs(change(before.learning), change(before.sloping), change(before.valuing))

    return replace(
        model,
        looking=change(model.looking),
        plain=graphs(model.plain),
        again=None if model.again is None else graphs(model.again),
        drawing=change(model.drawing),
    )


def best_suggestion(run: Run) -> str:
    """One line on what to set where the memory did not suffice. Never raises."""
    try:
        texts = read_prompts(run.prompts, run.prompts_per_task).texts
        policy, model = model_of(run, texts)
        guided = calls_a_state(policy)
        facts = Facts(policy.backbone.process, guided, run.model.rank > 0, True)
        before = peak(phases(run, model, facts, EVALUATED))[1]
        (name, after), *_ = suggestions(run, model, facts, EVALUATED)
    except Exception:  # an advice must not hide the error that it comes with
        return FALLBACK
    return f"set {name}: of about {before / 2**30:.3g} GiB it leaves {after / 2**30:.3g}"
