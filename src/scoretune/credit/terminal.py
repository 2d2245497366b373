"""Credit by outcome: every step of a path deserves what the finished sample got."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoretune.batches import Trajectory
from scoretune.credit.base import Credited, Judge


def standardise(advantage: Tensor, eps: float = 1e-6) -> Tensor:
    """Zero mean and unit deviation over the whole tensor; nothing to compare a lone one with."""
    if advantage.numel() < 2:
        return torch.zeros_like(advantage)
    return (advantage - advantage.mean()) / (advantage.std() + eps)


def group_advantage(rewards: Tensor, group: int, shared_scale: bool = True) -> Tensor:
    """Rewards [P·group], prompts contiguous, minus their prompt's mean, over a deviation.

    GRPO (arXiv 2402.03300) divides by each group's own deviation, which weighs prompts that are
    nearly solved or nearly hopeless most; `shared_scale` divides by the batch's instead.
    """
    grouped = rewards.view(-1, group)
    centred = grouped - grouped.mean(1, keepdim=True)
    scale = centred.std() if shared_scale else grouped.std(1, keepdim=True)
    return (centred / (scale + 1e-6)).flatten()


@dataclass
class TerminalCredit:
    """Every step of a path is credited with how its reward compares to its prompt's others.

    With a group of 1 it is compared with the whole batch, whatever the prompts.
    """

    group: int
    shared_scale: bool = True
    bound: float = 5.0

    def __call__(
        self, path: Trajectory, rewards: Tensor, judge: Judge, k: Tensor, b: Tensor
    ) -> Credited:
        compared = (
            group_advantage(rewards, self.group, self.shared_scale)
            if self.group > 1
            else standardise(rewards)
        )
        return Credited(advantage=compared.clamp(-self.bound, self.bound)[b])

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass
