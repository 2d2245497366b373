"""The records that travel between floors. Each is made once, read by the next stage and dropped.

Prompts -> Condition -> Trajectory -> rewards -> Steps -> Loss. Times are decreasing; B samples,
N steps, M = states in a minibatch, *S the shape of one state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Record:
    """Tensors, conditions, and whatever else, by name."""

    def to(self, device: torch.device | None) -> Self:
        """The same on another device; None for where it is."""
        movable = {n: v for n, v in vars(self).items() if isinstance(v, Tensor | Record)}
        return replace(self, **{name: value.to(device) for name, value in movable.items()})


@dataclass(frozen=True)
class Rows(Record):
    """A record in which every tensor, condition and tuple has a row for each of the same things;
    the first field is a tensor."""

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))

    def take(self, index: Tensor | slice) -> Self:
        """Some of the rows."""
        taken: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                taken[name] = value[index]
            elif isinstance(value, Condition):
                taken[name] = value.take(index)
            elif isinstance(value, tuple):
                places = index.cpu() if isinstance(index, Tensor) else index
                numbers = torch.arange(len(value))[places].tolist()
                taken[name] = tuple(value[i] for i in numbers)
        return replace(self, **taken)


@dataclass(frozen=True)
class Condition(Record):
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
class Trajectory(Record):
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
class Steps(Rows):
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


@dataclass(frozen=True)
class Scores:
    """The rewards `total` [B] of a round's samples, for `prompts` (B texts); `parts` are those of
    several rewards by name, [B] each, weighted: they add up to the total."""

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
    def local(self) -> Tensor:
        """What this process's samples are worth."""
        return self.total[self.mine]


@dataclass(frozen=True)
class Examples(Rows):
    """Data to match: clean states x0 [B, *S], their conditions, and a weight each [B].

    What chance decides may come with them, so that it is the same however a batch is cut up: the
    `noise` [B, *S], uniform numbers [B] that say the time (`share`), and whether to keep the prompt
    (`coin`).
    """

    x0: Tensor
    condition: Condition
    weight: Tensor
    noise: Tensor | None = None
    share: Tensor | None = None
    coin: Tensor | None = None


@dataclass(frozen=True)
class Starts(Rows):
    """Where paths begin that are followed with a gradient: states x [B, *S] at the step numbered
    `first` [B] along `nodes` [B, N+1], the `noise` [B, N, *S] of every step, and the prompts."""

    x: Tensor
    first: Tensor
    noise: Tensor
    nodes: Tensor
    condition: Condition
    prompts: tuple[str, ...]


@dataclass(frozen=True)
class Loss:
    """A scalar to minimise, and numbers worth logging."""

    value: Tensor
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Round:
    """The minibatches of an update, and metrics of how they were made.

    `accumulate` minibatches make one step of the optimiser; 0 means all of them. `counts` are the
    sizes of whole minibatches, of which each of several processes has a part.
    """

    minibatches: list[Any]
    metrics: Mapping[str, float]
    accumulate: int = 1
    counts: tuple[int, ...] = ()


class Stateful(Protocol):
    """What changes while a run trains: a checkpoint holds its state."""

    def state(self) -> Any: ...
    def restore(self, state: Any) -> None: ...


class Stateless:
    """What a checkpoint holds nothing of."""

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


class Source(Stateful, Protocol):
    """Where batches come from. Called with the number of the update, so it can be resumed."""

    def __call__(self, update: int) -> Round: ...


class Engine(Protocol):
    """Gradients and steps, on whatever machine (`training.engine.TorchEngine`)."""

    def parts(self, batch: Any, some: Any = None) -> Iterator[tuple[Any, int]]: ...
    def backward(self, loss: Tensor) -> None: ...
    def step(
        self, optimiser: torch.optim.Optimizer, parameters: Sequence[Tensor], clip_norm: float
    ) -> float: ...
    def total(self, numbers: Mapping[str, float]) -> dict[str, float]: ...


Objective = Callable[[Any], Loss]
Hook = Callable[[int, Mapping[str, float]], None]


def spans(total: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover range(total) in order."""
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))
