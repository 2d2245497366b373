"""The records that travel between floors. Each is made once, read by the next stage and dropped.

Prompts -> Condition -> Trajectory -> rewards -> Steps -> Loss. Times are decreasing; B samples,
N steps, M = states in a minibatch, *S the shape of one state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor

from scoretune.core.conditions import Condition, Record


@dataclass(frozen=True)
class Rows(Record):
    """A record in which every tensor, condition, tuple and record like it has a row for each of the
    same things; the first field is a tensor. A network sees so many `states_a_row` of them."""

    states_a_row: ClassVar[int] = 1

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))

    def take(self, index: Tensor | slice) -> Self:
        """Some of the rows."""
        taken: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                taken[name] = value[index]
            elif isinstance(value, Condition | Rows):
                taken[name] = value.take(index)
            elif isinstance(value, tuple):
                places = index.cpu() if isinstance(index, Tensor) else index
                numbers = torch.arange(len(value))[places].tolist()
                taken[name] = tuple(value[i] for i in numbers)
        return replace(self, **taken)


@dataclass(frozen=True)
class Trajectory(Record):
    """What a rollout saw: `states` [N+1, B, *S] at `times` [N+1, B], and the network's estimate of
    the data, `data` [N, B, *S], at all but the last.

    Each asked state stands for a part of the path, `log_snr_steps` [N, B], travelled under the
    noise scale `etas` [N, B] (`diffusion.paths`). A squared change of the estimate there counts
    `girsanov_weights` [N, B] in the KL of continuous time and, where a kernel acted,
    `chain_weights` [N, B] in that of the chain; `in_chain` says which of the two regularises. With
    a reference also: the pretrained policy's `reference_data` [N, B, *S] and the squared distance
    of the estimates, `moved_sq` [N, B]. A stochastic path has `log_probs` [N, B]. `features`
    [N, B, F] are what a critic may share. `noisy` [N] says which steps had noise, None that all or
    none had; only those have a log-probability and, where a window chose them, a KL. `final_slope`
    [B, *S] is the reward's gradient at the finished samples, where scoring them has found it.
    """

    states: Tensor
    data: Tensor
    times: Tensor
    condition: Condition
    log_snr_steps: Tensor
    etas: Tensor
    girsanov_weights: Tensor
    chain_weights: Tensor | None = None
    in_chain: bool = True
    log_probs: Tensor | None = None
    reference_data: Tensor | None = None
    moved_sq: Tensor | None = None
    features: Tensor | None = None
    noisy: Tensor | None = None
    final_slope: Tensor | None = None

    @property
    def kl_weights(self) -> Tensor:
        """What a squared change of the estimate costs in the KL that regularises, [N, B].

        Of a chain its own weight, but at a step without noise, where the KL of the step is
        infinite, that of continuous time.
        """
        if self.chain_weights is None or not self.in_chain:
            return self.girsanov_weights
        return torch.where(self.chain_weights > 0, self.chain_weights, self.girsanov_weights)

    @property
    def kls(self) -> Tensor | None:
        """Each state's share of that KL to the pretrained policy, [N, B]; None without one."""
        return None if self.moved_sq is None else self.kl_weights.to(self.data) * self.moved_sq

    @property
    def chain_kl(self) -> Tensor | None:
        """The KL of each path's chain to the pretrained policy's, [B]: of its steps with noise."""
        if self.moved_sq is None or self.chain_weights is None:
            return None
        return (self.chain_weights.to(self.data) * self.moved_sq).sum(0)

    @property
    def girsanov_kl(self) -> Tensor | None:
        """The KL of each path to the pretrained policy's in continuous time, [B]."""
        if self.moved_sq is None:
            return None
        return (self.girsanov_weights.to(self.data) * self.moved_sq).sum(0)

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

    A squared change of that estimate costs `kl_weight` [M] of KL, a sum over [*S];
    `reference_data` is the pretrained policy's. Where the policy then went by a stochastic step,
    `x_next` [M, *S] at `t_next`. What a credit rule says is one of: `advantage` [M],
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
    advantage: Tensor | None = None
    data_slope: Tensor | None = None
    action: Tensor | None = None
    reference_data: Tensor | None = None
    path_steps: float = 1.0  # a mean over states times this is a sum over (that part of) a path
    noisy: bool = False  # whether it is known that every step has noise


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
class PairExamples(Rows):
    """Two clean states each, `first` and `second` [B, *S], of one condition, of which the first is
    preferred with probability `label` [B]: 1/2 is a tie. A pair counts `weight` [B].

    `scale` [B] is the prompt's contextual scale c(x), and `margin` [B] by how much the first should
    be ahead. What chance decides is drawn with the pair, so that it is the same however a batch is
    cut up: the `noise` [B, *S] that both states get, uniform numbers [B] that say the time
    (`share`), and whether to keep the prompt (`coin`). `reference` [B, 2, *S] is what the policy
    said of both noisy states that is compared with, where that is not the pretrained one.
    """

    states_a_row: ClassVar[int] = 2

    first: Tensor
    second: Tensor
    condition: Condition
    label: Tensor
    weight: Tensor
    noise: Tensor
    share: Tensor
    scale: Tensor | None = None
    margin: Tensor | None = None
    coin: Tensor | None = None
    reference: Tensor | None = None


@dataclass(frozen=True)
class LikedExamples(Rows):
    """Clean states x0 [B, *S], each with the probability [B] that it is `liked`, and a weight; what
    chance decides comes with them, as in `PairExamples`."""

    x0: Tensor
    condition: Condition
    liked: Tensor
    weight: Tensor
    noise: Tensor
    share: Tensor
    coin: Tensor | None = None
    reference: Tensor | None = None


@dataclass(frozen=True)
class StepPairs(Rows):
    """Two steps each, of one prompt at one time, of which the `first` is preferred with probability
    `label` [M]: 1/2 is a tie. A pair counts `weight` [M]. `Steps.data` is of the policy whose
    likelihoods are the reference, and with `one_state` both steps begin in the same state.

    `scale` [M] is the prompt's contextual scale c(x).
    """

    states_a_row: ClassVar[int] = 2

    label: Tensor
    weight: Tensor
    first: Steps
    second: Steps
    scale: Tensor | None = None
    one_state: bool = False


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
    """A scalar to minimise, and numbers worth logging: means over states, or extremes if their
    names end in _min or _max. They may stay on the device."""

    value: Tensor
    metrics: Mapping[str, Tensor | float] = field(default_factory=dict)


@dataclass(frozen=True)
class Minibatches(Sequence[Any]):
    """Parts of a record of rows, each taken when it is asked for: `rows` are their numbers."""

    whole: Rows
    rows: Sequence[Tensor]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Minibatches(self.whole, self.rows[index])
        device = getattr(self.whole, fields(self.whole)[0].name).device
        return self.whole.take(self.rows[index].to(device))


@dataclass(frozen=True)
class Round:
    """The minibatches of an update, and metrics of how they were made.

    They go through the same states `epochs` times, in another order each. `accumulate` of them make
    one step of the optimiser; 0 means all of an epoch. `counts` are the sizes of whole minibatches,
    of which each of several processes has a part.
    """

    minibatches: Sequence[Any]
    metrics: Mapping[str, float]
    accumulate: int = 1
    counts: tuple[int, ...] = ()
    epochs: int = 1

    def groups(
        self, accumulate: int | None = None, epochs: int | None = None
    ) -> Iterator[tuple[Sequence[Any], Sequence[int]]]:
        """The minibatches of each step of the optimiser, and their whole sizes."""
        counts = self.counts or tuple(len(batch) for batch in self.minibatches)
        each = len(counts) // self.epochs
        together = (self.accumulate if accumulate is None else accumulate) or each
        for first in range(0, each * (epochs or self.epochs), each):
            for start in range(first, first + each, together):
                stop = min(start + together, first + each)
                yield self.minibatches[start:stop], counts[start:stop]


class Region(Protocol):
    """How far an update may move the policy (`training.objectives.base.TrustRegion`)."""

    @property
    def early_stop(self) -> bool:
        """Whether an update may end before its last minibatch."""

    def left(self, approx_kl: float) -> bool:
        """Whether an update that has moved so far is to end."""

    def moved(self, part: Any) -> Tensor:
        """The KL of a path from the policy that acted to the present one, by these states."""


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

    skips: bool
    """Whether steps with a gradient that is not finite are left out."""

    def parts(self, batch: Any, some: Any = None) -> Iterator[tuple[Any, int]]: ...
    def backward(self, loss: Tensor) -> None: ...
    def step(
        self, optimiser: torch.optim.Optimizer, parameters: Sequence[Tensor], clip_norm: float
    ) -> float: ...
    def total(self, numbers: Mapping[str, float]) -> dict[str, float]: ...
    def extremes(self, numbers: Mapping[str, float]) -> dict[str, float]: ...


Objective = Callable[[Any], Loss]
Hook = Callable[[int, Mapping[str, float]], None]


def spans(total: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover range(total) in order."""
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))
