"""What a model weighs, and what using it costs, measured without its weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scoretune.commands.plan.meta_device import META, meta_policy, weights_of
from scoretune.commands.plan.profiler import NOTHING, Curve, curve
from scoretune.core.config import Run
from scoretune.core.errors import UserError, first_line
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
    of one state, of one picture and of the token states of one prompt. `looking` is the
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
        policy = meta_policy(run)
    try:
        sloped = KINDS[run.objective.kind].follows_reward
        return policy, _measured(policy, next(iter(texts), ""), sloped)
    except (NotImplementedError, RuntimeError) as error:  # it asks for the numbers in a tensor
        raise UserError(
            f"cannot tell the memory of {run.model.source!r} without its weights "
            f"({first_line(error)})"
        ) from error


def _measured(policy: Policy, text: str, sloped: bool) -> Model:
    backbone, network = policy.backbone, policy.backbone.network
    pipeline: Any = inner(backbone)
    token_states = _token_states(policy, text)
    trained = policy.parameters()
    if policy.autocast is not None:  # what it computes in; the weights themselves are in float32
        network.to(policy.autocast)
    resident = [*network.parameters(), *network.buffers(), token_states]

    def look(rows: int) -> None:
        _predicted(policy, rows, token_states)

    def learn(rows: int) -> None:
        output = _predicted(policy, rows, token_states)
        torch.autograd.backward([output.float().square().sum()])

    with torch.no_grad():
        look(1)  # tables that are made once
        looking = curve(look, resident)
    learning, again = _with_gradients(network, trained, lambda: curve(learn, resident))
    picture, drawing, sloping = _pictures(policy, sloped)
    encoders = tuple(getattr(pipeline, "encoders", ()))
    return Model(
        parts=weights_of(policy),
        trained=sum(p.numel() for p in trained),
        trained_bytes=4 * sum(p.numel() for p in trained),
        total=sum(p.numel() for p in network.parameters()),
        state=4 * math.prod(backbone.shape),
        picture=picture,
        token=token_states.element_size() * token_states[0].numel(),
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


def _predicted(policy: Policy, rows: int, token_states: Tensor) -> Tensor:
    times = torch.full((rows,), policy.backbone.process.horizon / 2, device=META)
    tokens = token_states.repeat(rows, *(1,) * (token_states.dim() - 1))
    return policy.backbone.predict(_states(policy, rows), times, tokens)


def _sloped(policy: Policy, rows: int) -> None:
    place = _states(policy, rows).requires_grad_()
    torch.autograd.backward([policy.backbone.decode(place).sum()])


@torch.no_grad()
def _token_states(policy: Policy, text: str) -> Tensor:
    """The token states of one prompt; with numbers where the network looks at them."""
    token_states = policy.backbone.encode([text]).tokens
    try:
        _predicted(policy, 1, token_states)
    except (NotImplementedError, RuntimeError):
        token_states = torch.ones(token_states.shape, dtype=token_states.dtype)
    return token_states


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
