"""What a model weighs, and what using it costs, measured without its weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from scoretune.commands.plan.meta_device import (
    META,
    SLOPES,
    Linear,
    linears_of,
    meta_policy,
    texts_with_numbers,
    weights_of,
)
from scoretune.commands.plan.profiler import BATCHES, NOTHING, Cost, Curve, cost, curve
from scoretune.core.conditions import Condition, Named
from scoretune.core.config import Run
from scoretune.core.errors import UserError, first_line
from scoretune.data.prompts import size_of
from scoretune.models import catalog
from scoretune.models.base import Pipelined
from scoretune.models.observed import MASK, Observed
from scoretune.models.recycled import inner
from scoretune.models.sizes import largest, name_of
from scoretune.models.videos import half_as_long
from scoretune.policy import Backbone, Policy
from scoretune.training import from_data
from scoretune.training.activation_checkpointing import can_recompute, recompute
from scoretune.training.objectives import KINDS
from scoretune.training.overrides import of_data


@dataclass(frozen=True)
class Graphs:
    """Costs of what is passed back through: `learning` the network, to its weights; `sloping` the
    decoder, to a state; `valuing` the network and then the decoder, to a state. The last two where
    a method follows a reward's gradient."""

    learning: Curve
    sloping: Curve = NOTHING
    valuing: Curve = NOTHING


@dataclass(frozen=True)
class Model:
    """What a model weighs and what using it costs: bytes, and curves over rows of a batch.

    `trained` counts numbers, `sizes` those of each tensor; `state`, `picture` and `token` are bytes
    of one state, of one picture and of the token states of one prompt. `looking` is the network
    without gradient and `drawing` the decoder; `plain` are those with one, and `again` with
    activations that are computed again. `reading` encodes texts. Rows of the network are its own:
    of a guided state two; `valuing` counts states. `waiting` may be offloaded; `linears` are, by
    part, the weights that quantisation makes smaller. Videos have `frames`, and `shorter` is about
    half as many. `size` is that of the pictures where prompts ask for sizes: the largest.
    """

    parts: dict[str, int]
    trained: int
    trained_bytes: int
    total: int
    state: int
    picture: int
    token: int
    looking: Curve
    plain: Graphs
    again: Graphs | None
    drawing: Curve
    reading: Curve
    encoders: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()
    waiting: tuple[str, ...] = ()
    denoiser: str = "network"
    frames: int = 0
    shorter: int = 0
    linears: Mapping[str, tuple[Linear, ...]] = field(default_factory=dict)
    size: str = ""

    def graphs(self, checkpointing: bool) -> Graphs:
        """With activations kept, or computed again where the network can."""
        return self.again if checkpointing and self.again else self.plain


class MemoryUnknown(UserError):
    """A model without weights does not tell what it costs; the rest of a plan stands."""


def model_of(run: Run, texts: Sequence[str] = ()) -> tuple[Policy, Model]:
    """A run's model without weights, in the largest size that prompts ask for, and what it costs.
    Raises MemoryUnknown where it cannot tell, another UserError for a size that it cannot draw."""
    policy = _without_weights(run)
    own, greatest = policy.backbone, largest(policy.backbone, texts)
    asked = not run.objective.on_data and any(map(size_of, texts))
    policy.backbone = greatest if asked else own
    try:
        sloped = KINDS[run.objective.kind].follows_reward
        model = _measured(policy, next(iter(texts), ""), sloped)
    except (NotImplementedError, RuntimeError) as error:
        _check_asks_for_numbers(error)
        raise MemoryUnknown(
            f"cannot tell the memory of {run.model.source!r} without its weights "
            f"({first_line(error)})"
        ) from error
    except UserError as error:
        raise MemoryUnknown(str(error)) from error
    return policy, replace(model, size=name_of(own, greatest.shape) if asked else "")


def _without_weights(run: Run) -> Policy:
    """Raises MemoryUnknown for a model that is not there."""
    try:
        if not of_data(run):
            return meta_policy(run)
        policy = from_data.build(run).policy  # small, and made from the data
    except UserError as error:
        raise MemoryUnknown(str(error)) from error
    catalog.move(policy.backbone, META)
    return policy


def _check_asks_for_numbers(error: Exception) -> None:
    """Raise an error again unless torch raised it since a tensor without numbers was asked for
    them, of which it says "meta" in each of its kinds."""
    if "meta" not in str(error).lower():
        raise error


def _measured(policy: Policy, text: str, sloped: bool) -> Model:
    backbone, network = policy.backbone, policy.backbone.network
    pipeline = inner(backbone)
    condition = _condition(policy, text)
    trained = policy.parameters()
    if policy.autocast is not None:  # what it computes in; the weights themselves are in float32
        network.to(policy.autocast)
    resident = [*network.parameters(), *network.buffers(), *condition.tensors]

    def look(rows: int) -> None:
        _predicted(policy, _states(policy, rows), condition)

    with torch.no_grad():
        cost(lambda: look(1))  # tables that are made once
        looking = curve(look, resident)
    picture, drawing = _pictures(policy)
    plain, again = _graphs(policy, condition, resident, sloped and drawing is not NOTHING)
    encoders: tuple[str, ...] = ()
    reading, parts = NOTHING, weights_of(policy)
    waiting: tuple[str, ...] = ()
    denoiser, frames, shorter = "network", 0, 0
    if isinstance(pipeline, Pipelined):
        denoiser, frames, shorter = pipeline.part, pipeline.frames, half_as_long(pipeline)
        waiting = tuple(name for name in parts if name not in (denoiser, SLOPES))
        if pipeline.encoders:
            encoders, reading = pipeline.encoders, _reading(pipeline, text)
    return Model(
        parts=parts,
        trained=sum(p.numel() for p in trained),
        trained_bytes=4 * sum(p.numel() for p in trained),
        total=sum(p.numel() for p in network.parameters()),
        state=4 * math.prod(backbone.shape),
        picture=picture,
        token=sum(each.element_size() * each[0].numel() for each in condition.tensors),
        looking=looking,
        plain=plain,
        again=again,
        drawing=drawing,
        reading=reading,
        encoders=encoders,
        sizes=tuple(p.numel() for p in trained),
        waiting=waiting,
        denoiser=denoiser,
        frames=frames,
        shorter=shorter,
        linears=linears_of(policy),
    )


def _pictures(policy: Policy) -> tuple[int, Curve]:
    """Bytes of a picture, and the costs of decoding without gradient."""
    decode, shape = policy.backbone.decode, policy.backbone.shape
    if len(shape) < 3:  # a point or a series is what it is
        return 4 * math.prod(shape), NOTHING
    base, sizes = inner(policy.backbone), list[int]()

    def draw(rows: int) -> None:
        sizes.append(decode(_states(policy, rows)).numel() // rows)

    with torch.no_grad(), _at_once(base):
        drawing = curve(draw)
    return 4 * sizes[0], drawing


@contextmanager
def _at_once(backbone: Backbone) -> Iterator[None]:
    """Within this context a pipeline decodes a whole batch: how many pictures that is in a run, its
    settings say."""
    if not isinstance(backbone, Pipelined):
        yield
        return
    before, backbone.decode_batch = backbone.decode_batch, max(BATCHES)
    try:
        yield
    finally:
        backbone.decode_batch = before


def _states(policy: Policy, rows: int) -> Tensor:
    return torch.empty(rows, *policy.backbone.shape, device=META)


def _predicted(policy: Policy, x: Tensor, condition: Condition) -> Tensor:
    times = torch.full((len(x),), policy.backbone.process.horizon / 2, device=META)
    first = torch.zeros(len(x), dtype=torch.long)  # on the CPU, as masks are
    return policy.backbone.predict(x, times, condition.take(first).tokens)


@torch.no_grad()
def _condition(policy: Policy, text: str) -> Condition:
    """The condition of one prompt; with numbers where the network looks at them."""
    pipeline = inner(policy.backbone)
    if isinstance(pipeline, Observed):
        with texts_with_numbers(pipeline.pipeline):
            tokens = pipeline.text_states([text])
        return Condition(_without_numbers(tokens))
    condition = policy.backbone.encode([text])
    try:
        _predicted(policy, _states(policy, 1), condition)
    except (NotImplementedError, RuntimeError) as error:
        _check_asks_for_numbers(error)
        shown = condition.summary
        condition = Condition(torch.ones(shown.shape, dtype=shown.dtype))
    return condition


def _without_numbers(tokens: Named) -> Named:
    """All but the masks that a list of texts is made by."""
    masks = {name: rows for name, rows in tokens.rows.items() if name.endswith(MASK)}
    moved = tokens.to(META)
    return replace(moved, rows={**moved.rows, **masks})


@torch.no_grad()
def _reading(pipeline: Pipelined, text: str) -> Curve:
    parts = [getattr(pipeline.pipeline, name) for name in pipeline.encoders]
    weights = [w for part in parts if part is not None for w in part.parameters()]
    if not isinstance(pipeline, Observed):
        return curve(lambda rows: pipeline.text_states([text] * rows), weights)
    with texts_with_numbers(pipeline.pipeline):
        return curve(lambda rows: pipeline.text_states([text] * rows), weights)


def calls_a_state(policy: Policy) -> int:
    """Evaluations of the network that a state takes: guidance adds one, and by the picture too
    another."""
    base = inner(policy.backbone)
    if policy.guidance == 1:
        return 1
    by_picture = isinstance(base, Observed) and base.guided_by_picture
    return 3 if by_picture else 2


def _graphs(
    policy: Policy, condition: Condition, resident: list[Tensor], sloped: bool
) -> tuple[Graphs, Graphs | None]:
    """Costs of passing back beside the gradients themselves: as it is, and computed again."""
    network, pipeline = policy.backbone.network, inner(policy.backbone)
    for parameter in policy.parameters():
        parameter.grad = torch.empty_like(parameter)
    decoder = pipeline.followed_decoder if isinstance(pipeline, Pipelined) else None
    modules: list[Any] = [part for part in (network, decoder) if part is not None]
    able = [module for module in modules if can_recompute(module)]
    on = [module for module in able if module.is_gradient_checkpointing]
    for module in on:
        module.disable_gradient_checkpointing()
    plain, again = _passed_back(policy, condition, resident, sloped), None
    if network in able:
        for module in able:
            recompute(module)
        known = None if decoder in able else plain.sloping
        again = _passed_back(policy, condition, resident, sloped, sloping=known)
        for module in able:
            if module not in on:
                module.disable_gradient_checkpointing()
    return plain, again


def _passed_back(
    policy: Policy,
    condition: Condition,
    resident: list[Tensor],
    sloped: bool,
    *,
    sloping: Curve | None = None,
) -> Graphs:
    """Costs of gradients, that through the decoder unless it is known."""
    backbone, guided = policy.backbone, calls_a_state(policy)

    def learn(rows: int) -> None:
        output = _predicted(policy, _states(policy, rows), condition)
        torch.autograd.backward([output.float().square().sum()])

    def slope(rows: int) -> None:
        place = _states(policy, rows).requires_grad_()
        torch.autograd.backward([backbone.decode(place).sum()])

    def estimate(rows: int) -> tuple[Tensor, ...]:
        place = _states(policy, rows).requires_grad_()
        output = _predicted(policy, place.repeat(guided, *[1] * (place.dim() - 1)), condition)
        return place, output, torch.stack(output.float().chunk(guided)).sum(0)

    def to_state(estimated: tuple[Tensor, ...]) -> None:
        place, _, data = estimated
        torch.autograd.grad(data.sum(), place)

    learning = curve(learn, resident)
    if not sloped:
        return Graphs(learning)
    base = inner(backbone)
    singly = isinstance(base, Pipelined) and base.decoded_at_once(base.shape) == 1
    if sloping is None:  # decoded singly, each video costs as much as the one before
        sloping = curve(slope, batches=(1, 2) if singly else BATCHES)
    return Graphs(learning, sloping, _behind(curve(estimate, resident, then=to_state), sloping))


def _behind(estimating: Curve, sloping: Curve) -> Curve:
    """Costs of passing back through the decoder and then the network: the network's graph waits
    while the decoder's is made and gone through."""

    def both(network: Cost, decoder: Cost) -> Cost:
        peak = max(network.peak, network.held + decoder.peak)
        return Cost(peak, network.flops + decoder.flops)

    batches = estimating.batches
    few, many = (both(estimating.at(n), sloping.at(n)) for n in batches)
    return Curve(few, many, batches)
