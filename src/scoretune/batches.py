"""The records that travel between floors. Each is made once, read by the next stage and dropped.

Prompts -> Condition -> Trajectory -> rewards -> Steps -> Loss. Times are decreasing; B samples,
N steps, M = transitions in a minibatch, *S the shape of one state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Condition:
    """Encoded prompts: `tokens` [B, L, D] and what "no prompt" looks like, [L, D] (or None)."""

    tokens: Tensor
    null: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, index: Tensor | slice) -> Condition:
        """The condition of some of the samples."""
        return Condition(self.tokens[index], self.null)

    @staticmethod
    def none(batch: int) -> Condition:
        """The condition of an unconditional model."""
        return Condition(torch.zeros(batch, 0, 0))


@dataclass(frozen=True)
class Trajectory:
    """What a rollout saw: `states` [N+1, B, *S], `data` (the network's x̂0) [N, B, *S],
    `log_probs` [N, B] and `times` [N+1]. With a reference, also where the pretrained policy would
    have gone, `reference_means` [N, B, *S], and each step's KL to it, `kls` [N, B]."""

    states: Tensor
    data: Tensor
    log_probs: Tensor
    times: Tensor
    condition: Condition
    reference_means: Tensor | None = None
    kls: Tensor | None = None

    @property
    def final(self) -> Tensor:
        """The finished samples [B, *S]."""
        return self.states[-1]


@dataclass(frozen=True)
class Steps:
    """Transitions to learn from: x at t went to x_next at t_next under the acting policy.

    `advantage` [M] says how much better than expected that was; `value_slope` [M, *S], where a
    critic gives it, is the gradient of the value at x_next; `reference_mean` [M, *S] is where the
    pretrained policy would have gone on average.
    """

    x: Tensor
    x_next: Tensor
    t: Tensor
    t_next: Tensor
    condition: Condition
    log_prob: Tensor
    advantage: Tensor
    value_slope: Tensor | None = None
    reference_mean: Tensor | None = None
    path_steps: int = 1  # of a whole path: a mean over transitions times this is a sum over a path

    def __len__(self) -> int:
        return len(self.x)

    def take(self, index: Tensor | slice) -> Steps:
        """Some of the transitions."""
        changes: dict[str, Any] = {"condition": self.condition.take(index)}
        for part in fields(self):
            value = getattr(self, part.name)
            if isinstance(value, Tensor):
                changes[part.name] = value[index]
        return replace(self, **changes)


@dataclass(frozen=True)
class Examples:
    """Data to match: clean states x0 [B, *S], their conditions, and a weight each [B]."""

    x0: Tensor
    condition: Condition
    weight: Tensor


@dataclass(frozen=True)
class Loss:
    """A scalar to minimise, and numbers worth logging."""

    value: Tensor
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Round:
    """One update's worth of learning: minibatches, and numbers about how they came about."""

    minibatches: list[Any]
    metrics: Mapping[str, float]


class Source(Protocol):
    """Where batches come from. Called with the number of the update, so it can be resumed."""

    def __call__(self, update: int) -> Round: ...
    def state(self) -> dict[str, Any]: ...
    def restore(self, state: dict[str, Any]) -> None: ...


Objective = Callable[[Any], Loss]
Hook = Callable[[int, Mapping[str, float]], None]


def spans(total: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover range(total) in order."""
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))
