"""The records that travel between floors. Each is made once, read by the next stage and dropped.

Prompts -> Condition -> Trajectory -> rewards -> Steps -> Loss. Times are decreasing; B samples,
N steps, M = states in a minibatch, *S the shape of one state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor


@dataclass(frozen=True)
class Condition:
    """Encoded prompts: `tokens` [B, L, D] and what "no prompt" looks like, [L, D] (or None)."""

    tokens: Tensor
    null: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def to(self, device: torch.device | None) -> Condition:
        """The same on another device; None for where it is."""
        null = None if self.null is None else self.null.to(device)
        return Condition(self.tokens.to(device), null)

    def take(self, index: Tensor | slice) -> Condition:
        """The condition of some of the samples."""
        return Condition(self.tokens[index], self.null)

    @staticmethod
    def none(batch: int) -> Condition:
        """The condition of an unconditional model."""
        return Condition(torch.zeros(batch, 0, 0))


@dataclass(frozen=True)
class Trajectory:
    """What a rollout saw: `states` [N+1, B, *S] at `times` [N+1, B], and the network's estimate of
    the data, `data` [N, B, *S], at all but the last.

    Each asked state stands for a part of the path, `log_snr_steps` [N, B], travelled under the
    noise scale `etas` [N, B] (`diffusion.paths`). A stochastic path has `log_probs` [N, B]. With a
    reference also: the pretrained policy's `reference_data` [N, B, *S], and each state's share of
    the path KL to it, `kls` [N, B]. `features` [N, B, F] are what a critic may share. `noisy` [N]
    says which steps had noise, None that all or none had; only those have a log-probability and,
    where a window chose them, a path KL.
    """

    states: Tensor
    data: Tensor
    times: Tensor
    condition: Condition
    log_snr_steps: Tensor
    etas: Tensor
    kl_weights: Tensor
    log_probs: Tensor | None = None
    reference_data: Tensor | None = None
    kls: Tensor | None = None
    features: Tensor | None = None
    noisy: Tensor | None = None

    def to(self, device: torch.device | None) -> Trajectory:
        """The same on another device; None for where it is."""
        return cast(Trajectory, _moved(self, device))

    @property
    def noisy_steps(self) -> Tensor:
        """The numbers of the steps that have a log-probability, increasing."""
        if self.noisy is None:
            return torch.arange(len(self.data))
        return self.noisy.nonzero().flatten()

    @property
    def final(self) -> Tensor:
        """The finished samples [B, *S]."""
        return self.states[-1]


@dataclass(frozen=True)
class Steps:
    """States to learn from: at x and time t the acting policy's estimate of the data was `data`.

    A unit of the path KL is `kl_weight` [M] times a squared change of that estimate, [M, *S];
    `reference_data` is the pretrained policy's. Where the policy then went by a stochastic step,
    `x_next` at `t_next` and its `log_prob` [M]. What a credit rule says is one of: `advantage` [M],
    how much better than expected the step was; `data_slope` [M, *S], what a unit of the estimate is
    worth; `action` [M, *S], a noise estimate that was tried, with the advantage of it.
    """

    x: Tensor
    t: Tensor
    t_next: Tensor
    condition: Condition
    data: Tensor
    kl_weight: Tensor
    x_next: Tensor | None = None
    log_prob: Tensor | None = None
    advantage: Tensor | None = None
    data_slope: Tensor | None = None
    action: Tensor | None = None
    reference_data: Tensor | None = None
    path_steps: float = 1.0  # a mean over states times this is a sum over (that part of) a path

    def __len__(self) -> int:
        return len(self.x)

    def to(self, device: torch.device | None) -> Steps:
        """The same on another device; None for where it is."""
        return cast(Steps, _moved(self, device))

    def take(self, index: Tensor | slice) -> Steps:
        """Some of the transitions."""
        changes: dict[str, Any] = {"condition": self.condition.take(index)}
        for part in fields(self):
            value = getattr(self, part.name)
            if isinstance(value, Tensor):
                changes[part.name] = value[index]
        return replace(self, **changes)


@dataclass(frozen=True)
class Scores:
    """What a round's samples are worth: `total` [B], for `prompts` (of B texts).

    With several rewards, `parts` are the values [B] of each by its name, weighted and not yet
    added up: their sum is the total.
    """

    total: Tensor
    prompts: tuple[str, ...] = ()
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    mine: slice = field(default_factory=lambda: slice(None))
    """Which of them this process sampled, where several make the round together."""

    def to(self, device: torch.device | None) -> Scores:
        """The same on another device; None for where it is."""
        parts = {name: part.to(device) for name, part in self.parts.items()}
        return replace(self, total=self.total.to(device), parts=parts)

    def __len__(self) -> int:
        return len(self.total)

    @property
    def own(self) -> Tensor:
        """What this process's samples are worth."""
        return self.total[self.mine]


@dataclass(frozen=True)
class Examples:
    """Data to match: clean states x0 [B, *S], their conditions, and a weight each [B]."""

    x0: Tensor
    condition: Condition
    weight: Tensor

    def __len__(self) -> int:
        return len(self.x0)

    def to(self, device: torch.device | None) -> Examples:
        """The same on another device; None for where it is."""
        return cast(Examples, _moved(self, device))

    def take(self, index: Tensor | slice) -> Examples:
        """Some of the examples."""
        return Examples(self.x0[index], self.condition.take(index), self.weight[index])


@dataclass(frozen=True)
class Starts:
    """Where paths begin that are followed with a gradient: states x [B, *S] at the step numbered
    `first` [B] along `nodes` [B, N+1], the `noise` [B, N, *S] of every step, and the prompts."""

    x: Tensor
    first: Tensor
    noise: Tensor
    nodes: Tensor
    condition: Condition
    prompts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.x)

    def to(self, device: torch.device | None) -> Starts:
        """The same on another device; None for where it is."""
        return cast(Starts, _moved(self, device))

    def take(self, index: Tensor | slice) -> Starts:
        """Some of the paths."""
        which = torch.arange(len(self))[index.cpu() if isinstance(index, Tensor) else index]
        return Starts(
            self.x[index],
            self.first[index],
            self.noise[index],
            self.nodes[index],
            self.condition.take(index),
            tuple(self.prompts[i] for i in which.tolist()),
        )


@dataclass(frozen=True)
class Loss:
    """A scalar to minimise, and numbers worth logging."""

    value: Tensor
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Round:
    """One update's worth of learning: minibatches, and numbers about how they came about.

    `accumulate` minibatches make one step of the optimiser; 0 means all of them. Where several
    processes make the round together, `counts` are the sizes of the whole minibatches, of which
    this process has some.
    """

    minibatches: list[Any]
    metrics: Mapping[str, float]
    accumulate: int = 1
    counts: tuple[int, ...] = ()


class Source(Protocol):
    """Where batches come from. Called with the number of the update, so it can be resumed."""

    def __call__(self, update: int) -> Round: ...
    def state(self) -> dict[str, Any]: ...
    def restore(self, state: dict[str, Any]) -> None: ...


class Engine(Protocol):
    """Gradients and steps, on whatever machine (`engine.Machine`)."""

    def parts(self, batch: Any, some: Any = None) -> Iterator[tuple[Any, int]]: ...
    def backward(self, loss: Tensor) -> None: ...
    def step(
        self, optimiser: torch.optim.Optimizer, parameters: Sequence[Tensor], clip_norm: float
    ) -> float: ...
    def total(self, numbers: Mapping[str, float]) -> dict[str, float]: ...


Objective = Callable[[Any], Loss]
Hook = Callable[[int, Mapping[str, float]], None]


def _moved(record: Any, device: torch.device | None) -> Any:
    """A record with its tensors and its condition on another device."""
    parts = {part.name: getattr(record, part.name) for part in fields(record)}
    movable = {n: v.to(device) for n, v in parts.items() if isinstance(v, Tensor | Condition)}
    return replace(record, **movable)


def spans(total: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover range(total) in order."""
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))
