"""Credit by outcome, compared with what the same prompt got before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from scoretune.core.errors import UserError
from scoretune.core.records import Scores, Trajectory
from scoretune.training.credit.base import Credited, Judge, combined

Memory = dict[str, list[float]]
"""The last rewards of each prompt, oldest first."""


def remembered(
    memory: Memory,
    prompts: Sequence[str],
    rewards: Sequence[float],
    buffer: int,
) -> Memory:
    """The memory with new rewards added, at most the last `buffer` of each prompt."""
    known = {prompt: list(memory.get(prompt, ())) for prompt in prompts}
    for prompt, reward in zip(prompts, rewards, strict=True):
        known[prompt].append(reward)
    return {**memory, **{prompt: new[-buffer:] for prompt, new in known.items()}}


def running_advantage(
    rewards: Tensor, prompts: Sequence[str], memory: Memory, min_count: int
) -> Tensor:
    """A = (r − mean) / (std + 1e-6), [B], over what is remembered of the sample's prompt.

    DDPO's per-prompt statistics (arXiv 2305.13301): the memory already holds `rewards`, and
    std is the population's. A prompt with fewer than `min_count` in memory is compared with the
    rewards of the whole batch. As in GRPO, prompts whose rewards differ little count most.
    """
    everyone: list[float] = rewards.tolist()
    own: dict[str, tuple[float, float]] = {}
    for prompt in dict.fromkeys(prompts):
        known = memory.get(prompt, ())
        own[prompt] = _moments(known if len(known) >= min_count else everyone)
    moments = torch.tensor([own[prompt] for prompt in prompts], dtype=torch.float64)
    compared = torch.tensor(everyone, dtype=torch.float64) - moments[:, 0]
    return (compared / (moments[:, 1] + 1e-6)).to(rewards)


def _moments(values: Sequence[float]) -> tuple[float, float]:
    """Mean and population deviation, in float64: of equal values exactly theirs and 0."""
    known = torch.tensor(values, dtype=torch.float64)
    away = known - known[0]
    return float(known[0] + away.mean()), float(away.std(correction=0))


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
        self, path: Trajectory, scores: Scores, judge: Judge, k: Tensor, b: Tensor
    ) -> Credited:
        def compare(name: str, rewards: Tensor) -> Tensor:
            memory = self.memories.get(name, {})
            memory = remembered(memory, scores.prompts, rewards.tolist(), self.buffer)
            self.memories[name] = memory
            compared = running_advantage(rewards, scores.prompts, memory, self.min_count)
            return compared.clamp(-self.bound, self.bound)

        advantage = combined(scores, compare, self.weights)[b]
        return Credited(advantage=advantage, metrics={"own_history": self._known(scores.prompts)})

    def _known(self, prompts: Sequence[str]) -> float:
        """The share of samples that were compared with their own prompt's memory."""
        memory = next(iter(self.memories.values()))
        return sum(len(memory[p]) >= self.min_count for p in prompts) / len(prompts)

    def state(self) -> dict[str, Any]:
        return {"memories": dict(self.memories)}

    def restore(self, state: dict[str, Any]) -> None:
        self.memories = dict(state["memories"])
