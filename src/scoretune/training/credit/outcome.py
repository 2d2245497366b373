"""Credit by outcome: each step's advantage is that of the finished sample, within its prompt's
group or against its prompt's past."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from scoretune.core.errors import UserError
from scoretune.core.records import Scores, Stateless, Trajectory
from scoretune.training.credit.base import Credited, RewardFn, combined


def standardise(advantage: Tensor, eps: float = 1e-6) -> Tensor:
    """Zero mean and unit deviation over the whole tensor; nothing to compare a lone one with."""
    if advantage.numel() < 2:
        return torch.zeros_like(advantage)
    shifted = advantage - advantage.flatten()[0]  # equal numbers differ from their mean by rounding
    return (shifted - shifted.mean()) / (shifted.std() + eps)


Deviation = Literal["group", "within", "global"]
"""Which deviation rewards are divided by: their group's, one of all about their group's mean, or
one of all about the mean of all."""


def group_advantage(rewards: Tensor, group: int, deviation: Deviation = "within") -> Tensor:
    """A = (r − mean of its group) / (std + 1e-6): rewards [P·group], the groups contiguous.

    GRPO (arXiv 2402.03300) divides by each group's own deviation, which weighs prompts that are
    nearly solved or nearly hopeless most (arXiv 2503.20783). One deviation `within` groups is that
    of all rewards about their group's mean; the `global` one, of Flow-GRPO's own code, holds the
    differences between prompts too, which makes advantages smaller and a KL weight count for more.
    Equal rewards get exactly 0.
    """
    grouped = rewards.view(-1, group)
    grouped = grouped - grouped[:, :1]  # as in `standardise`
    centred = grouped - grouped.mean(1, keepdim=True)
    if deviation == "group":
        scale = grouped.std(1, keepdim=True)
    else:
        scale = (centred if deviation == "within" else rewards).std()
    return (centred / (scale + 1e-6)).flatten()


@dataclass
class GroupCredit(Stateless):
    """Every step of a path is credited with how its reward compares to its prompt's others.

    With a group of 1 it is compared with the whole batch, whatever the prompts. With `weights`, of
    every part of the reward, each part is compared by itself (`base.combined`). A comparison is at
    most `bound` deviations.
    """

    group: int
    deviation: Deviation = "within"
    bound: float = 5.0
    weights: Mapping[str, float] = field(default_factory=dict)

    def __call__(
        self, path: Trajectory, scores: Scores, reward_fn: RewardFn, k: Tensor, b: Tensor
    ) -> Credited:
        return Credited(advantage=combined(scores, self.compare, self.weights)[b])

    def compare(self, name: str, rewards: Tensor) -> Tensor:
        """How each of the rewards [B] compares with its group's or, alone in it, the batch's."""
        if self.group > 1:
            compared = group_advantage(rewards, self.group, self.deviation)
        else:
            compared = standardise(rewards)
        return compared.clamp(-self.bound, self.bound)


# --------------------------------------------------------- compared with its prompt's past


Memory = dict[str, list[float]]
"""The last rewards of each prompt, oldest first."""


def remembered(
    memory: Memory, prompts: Sequence[str], rewards: Sequence[float], buffer: int
) -> Memory:
    """The memory with new rewards added, at most the last `buffer` of each prompt."""
    history = {prompt: list(memory.get(prompt, ())) for prompt in prompts}
    for prompt, reward in zip(prompts, rewards, strict=True):
        history[prompt].append(reward)
    return {**memory, **{prompt: longer[-buffer:] for prompt, longer in history.items()}}


def running_advantage(
    rewards: Tensor, prompts: Sequence[str], memory: Memory, min_count: int
) -> Tensor:
    """A = (r − mean) / (std + 1e-6), [B], over what is remembered of the sample's prompt.

    DDPO's per-prompt statistics (arXiv 2305.13301): the memory already holds `rewards`, and
    std is the population's. A prompt with fewer than `min_count` in memory is compared with the
    rewards of the whole batch. As in GRPO, prompts whose rewards differ little count most.
    """
    batch: list[float] = rewards.tolist()
    by_prompt: dict[str, tuple[float, float]] = {}
    for prompt in dict.fromkeys(prompts):
        history = memory.get(prompt, ())
        by_prompt[prompt] = _moments(history if len(history) >= min_count else batch)
    moments = torch.tensor([by_prompt[prompt] for prompt in prompts], dtype=torch.float64)
    centred = torch.tensor(batch, dtype=torch.float64) - moments[:, 0]
    return (centred / (moments[:, 1] + 1e-6)).to(rewards)


def _moments(values: Sequence[float]) -> tuple[float, float]:
    """Mean and population deviation, in float64: of equal values exactly theirs and 0."""
    exact = torch.tensor(values, dtype=torch.float64)
    shifted = exact - exact[0]
    return float(exact[0] + shifted.mean()), float(shifted.std(correction=0))


@dataclass
class RunningCredit:
    """Every step of a path is credited with how its reward compares to its prompt's last ones.

    It needs no group: a prompt may have one sample an update, and is compared with the last
    `buffer` of them, the new ones included, once it has `min_count`; with the batch until then. It
    lags behind a policy that improves quickly: everybody's reward is then above its memory. With
    `weights`, of every part of the reward, each part is compared by itself (`base.combined`) and
    has a memory of its own. A comparison is at most `bound` deviations.
    """

    buffer: int = 32
    min_count: int = 16
    bound: float = 5.0
    weights: Mapping[str, float] = field(default_factory=dict)
    memories: dict[str, Memory] = field(default_factory=dict)  # of each reward; "" is the total

    def __post_init__(self) -> None:
        if self.min_count > self.buffer:
            raise UserError(
                f"a prompt's memory holds {self.buffer} rewards and is never used before it has "
                f"{self.min_count}: set objective.min_count to at most objective.buffer"
            )

    def __call__(
        self, path: Trajectory, scores: Scores, reward_fn: RewardFn, k: Tensor, b: Tensor
    ) -> Credited:
        def compare(name: str, rewards: Tensor) -> Tensor:
            memory = self.memories.get(name, {})
            memory = remembered(memory, scores.prompts, rewards.tolist(), self.buffer)
            self.memories[name] = memory
            compared = running_advantage(rewards, scores.prompts, memory, self.min_count)
            return compared.clamp(-self.bound, self.bound)

        advantage = combined(scores, compare, self.weights)[b]
        memory = next(iter(self.memories.values()))
        compared = [len(memory[prompt]) >= self.min_count for prompt in scores.prompts]
        # The share of samples that were compared with their prompt's memory.
        return Credited(advantage, metrics={"own_history": sum(compared) / len(compared)})

    def state(self) -> dict[str, Any]:
        return {"memories": dict(self.memories)}

    def restore(self, state: dict[str, Any]) -> None:
        self.memories = dict(state["memories"])
