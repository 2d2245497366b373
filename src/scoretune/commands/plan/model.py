"""What a model weighs, and what using it costs, measured without its weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scoretune.commands.plan.hollow import META, hollow_policy, weights_of
from scoretune.commands.plan.ledger import NOTHING, Curve, curve
from scoretune.core.config import Run
from scoretune.core.errors import UserError
from scoretune.models import catalog
from scoretune.models.recycled import inner
from scoretune.policy import Policy
from scoretune.training import from_data
from scoretune.training.objectives import KINDS
from scoretune.training.overrides import of_data


@dataclass(frozen=True)
class Model:
    """What a model weighs and what using it costs: bytes, and curves over rows of a batch.

    `trained` counts numbers, `sizes` those of each tensor; `state`, `picture` and `token` are bytes
    of one state, of one picture and of what the network is told of one prompt. `looking` is the
    network without gradient, `learning` with it, and `again` with activations that are computed
    again; `drawing` and `sloping` decode without and with gradient (measured where a method follows
    a reward's gradient); `reading` encodes texts.
    """

    parts: dict[str, int]
    trained: int
    trained_bytes: int
    total: int
    state: int
    picture: int
    token: int
    looking: Curve
    learning: Curve
    again: Curve | None
    drawing: Curve
    sloping: Curve
    reading: Curve
    encoders: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()


def model_of(run: Run, texts: Iterable[str] = ()) -> tuple[Policy, Model]:
    """A run's model without weights, and what it costs. Raises UserError where it cannot tell."""
    if of_data(run):
        policy = from_data.build(run).policy  # small, and made from the data
        catalog.move(policy.backbone, META)
    else:
        policy = hollow_policy(run)
    try:
        sloped = KINDS[run.objective.kind].follows_reward
        return policy, _measured(policy, next(iter(texts), ""), sloped)
    except (NotImplementedError, RuntimeError) as error:  # it asks for the numbers in a tensor
        first = str(error).strip().splitlines()[0]
        raise UserError(
            f"cannot tell the memory of {run.model.source!r} without its weights ({first})"
        ) from error


def _measured(policy: Policy, text: str, sloped: bool) -> Model:
    backbone, network = policy.backbone, policy.backbone.network
    own: Any = inner(backbone)
    told = _told(policy, text)
    trained = policy.parameters()
    if policy.autocast is not None:  # what it computes in; the weights themselves are in float32
        network.to(policy.autocast)
    known = [*network.parameters(), *network.buffers(), told]

    def look(rows: int) -> None:
        _predicted(policy, rows, told)

    def learn(rows: int) -> None:
        said = _predicted(policy, rows, told)
        torch.autograd.backward([said.float().square().sum()])

    with torch.no_grad():
        look(1)  # tables that are made once
        looking = curve(look, known)
    learning, again = _with_gradients(network, trained, lambda: curve(learn, known))
    picture, drawing, sloping = _pictures(policy, sloped)
    encoders = tuple(getattr(own, "encoders", ()))
    return Model(
        parts=weights_of(policy),
        trained=sum(p.numel() for p in trained),
        trained_bytes=4 * sum(p.numel() for p in trained),
        total=sum(p.numel() for p in network.parameters()),
        state=4 * math.prod(backbone.shape),
        picture=picture,
        token=told.element_size() * told[0].numel(),
        looking=looking,
        learning=learning,
        again=again,
        drawing=drawing,
        sloping=sloping,
        reading=_reading(policy, text) if encoders else NOTHING,
        encoders=encoders,
        sizes=tuple(p.numel() for p in trained),
    )


def _pictures(policy: Policy, sloped: bool) -> tuple[int, Curve, Curve]:
    """Bytes of a picture, and the costs of decoding without and with gradient."""
    decode, shape = policy.backbone.decode, policy.backbone.shape
    if len(shape) != 3:  # a point or a series is what it is
        return 4 * math.prod(shape), NOTHING, NOTHING
    with torch.no_grad():
        picture = decode(_states(policy, 1))
        drawing = curve(lambda rows: decode(_states(policy, rows)))
    sloping = curve(lambda rows: _sloped(policy, rows)) if sloped else NOTHING
    return 4 * picture.numel(), drawing, sloping


def _states(policy: Policy, rows: int) -> Tensor:
    return torch.empty(rows, *policy.backbone.shape, device=META)


def _predicted(policy: Policy, rows: int, told: Tensor) -> Tensor:
    times = torch.full((rows,), policy.backbone.process.horizon / 2, device=META)
    tokens = told.repeat(rows, *(1,) * (told.dim() - 1))
    return policy.backbone.predict(_states(policy, rows), times, tokens)


def _sloped(policy: Policy, rows: int) -> None:
    place = _states(policy, rows).requires_grad_()
    torch.autograd.backward([policy.backbone.decode(place).sum()])


@torch.no_grad()
def _told(policy: Policy, text: str) -> Tensor:
    """What the network is told of one prompt; with numbers where it looks at them."""
    told = policy.backbone.encode([text]).tokens
    try:
        _predicted(policy, 1, told)
    except (NotImplementedError, RuntimeError):
        told = torch.ones(told.shape, dtype=told.dtype)
    return told


def _reading(policy: Policy, text: str) -> Curve:
    with torch.no_grad():
        return curve(lambda rows: policy.backbone.encode([text] * (rows - 1)))


def _with_gradients(
    network: Any, trained: list[nn.Parameter], measure: Callable[[], Curve]
) -> tuple[Curve, Curve | None]:
    """Costs of learning beside the gradients themselves: as it is, and computed again."""
    for parameter in trained:
        parameter.grad = torch.empty_like(parameter)
    on = bool(getattr(network, "is_gradient_checkpointing", False))
    switch = getattr(network, "disable_gradient_checkpointing", None)
    if switch is None or not getattr(network, "_supports_gradient_checkpointing", False):
        return measure(), None
    switch()
    plain = measure()
    network.enable_gradient_checkpointing()
    again = measure()
    if not on:
        switch()
    return plain, again
