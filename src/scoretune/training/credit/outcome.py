"""Credit by outcome: every step of a path deserves what the finished sample got."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from scoretune.core.records import Scores, Trajectory
from scoretune.training.credit.base import Credited, Judge, combined


def standardise(advantage: Tensor, eps: float = 1e-6) -> Tensor:
    """Zero mean and unit deviation over the whole tensor; nothing to compare a lone one with."""
    if advantage.numel() < 2:
        return torch.zeros_like(advantage)
    away = advantage - advantage.flatten()[0]  # equal numbers differ from their mean by rounding
    return (away - away.mean()) / (away.std() + eps)


def group_advantage(rewards: Tensor, group: int, shared_scale: bool = True) -> Tensor:
    """A = (r − mean of its group) / (std + 1e-6): rewards [P·group], the groups contiguous.

    GRPO (arXiv 2402.03300) divides by each group's own deviation, which weighs prompts that are
    nearly solved or nearly hopeless most (arXiv 2503.20783). `shared_scale` divides by one
    deviation, of all rewards about their group's mean. Equal rewards get exactly 0.
    """
    grouped = rewards.view(-1, group)
    grouped = grouped - grouped[:, :1]  # as in `standardise`
    centred = grouped - grouped.mean(1, keepdim=True)
    scale = centred.std() if shared_scale else grouped.std(1, keepdim=True)
    return (centred / (scale + 1e-6)).flatten()


@dataclass
class TerminalCredit:
    """Every step of a path is credited with how its reward compares to its prompt's others.

    With a group of 1 it is compared with the whole batch, whatever the prompts. With `weights`, of
    every part of the reward, each part is compared by itself (`base.combined`). A comparison is at
    most `bound` deviations.
    """

    group: int
    shared_scale: bool = True
    bound: float = 5.0
    weights: Mapping[str, float] = field(default_factory=dict)

    def __call__(
        self, path: Trajectory, scores: Scores, judge: Judge, k: Tensor, b: Tensor
    ) -> Credited:
        return Credited(advantage=combined(scores, self.compare, self.weights)[b])

    def compare(self, name: str, rewards: Tensor) -> Tensor:
        """How each of the rewards [B] compares with its group's or, alone in it, the batch's."""
        compared = (
            group_advantage(rewards, self.group, self.shared_scale)
            if self.group > 1
            else standardise(rewards)
        )
        return compared.clamp(-self.bound, self.bound)

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass
