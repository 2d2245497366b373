"""Several rewards as one, as `core.resolve.read_sum` reads them: `reader + 0.5*clip(batch=4)`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scoretune.core.records import Scores, spans
from scoretune.rewards.base import Reward, check_prompt, checked


@dataclass(frozen=True)
class Part:
    """One reward of a sum."""

    name: str
    weight: float
    reward: Reward


@dataclass(frozen=True)
class Weighted:
    """Σ wᵢ rᵢ(images, prompts), [B]: a reward made of others.

    It has a gradient where all parts have one: else that of the rest would be of something else.
    """

    parts: tuple[Part, ...]
    takes_videos: ClassVar[bool] = True  # and its parts what they take of them

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        values = list(self.each(images, prompts).values())
        total = torch.stack(values).sum(0)
        return total if all(value.requires_grad for value in values) else total.detach()

    def check_prompt(self, prompt: str) -> None:
        """Refuse a prompt that one of the parts cannot judge."""
        for part in self.parts:
            check_prompt(part.reward, prompt)

    def each(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The weighted parts wᵢ rᵢ by name, [B] each."""
        return {
            part.name: part.weight * checked(part.reward, part.name, images, prompts)
            for part in self.parts
        }

    @property
    def weights(self) -> dict[str, float]:
        """The weights by name."""
        return {part.name: part.weight for part in self.parts}


def scored(
    reward: Reward, name: str, images: Tensor, prompts: Sequence[str], *, at_once: int = 0
) -> Scores:
    """What the samples are worth, and what each part of a sum adds to that; a reward sees at most
    `at_once` images at a time, 0: all."""
    rows = list(spans(len(images), at_once or len(images)))
    if not isinstance(reward, Weighted):
        values = [checked(reward, name, images[s], prompts[s]) for s in rows]
        return Scores(torch.cat(values), tuple(prompts))
    pieces = [reward.each(images[s], prompts[s]) for s in rows]
    parts = {part: torch.cat([piece[part] for piece in pieces]) for part in pieces[0]}
    return Scores(torch.stack(list(parts.values())).sum(0), tuple(prompts), parts)


def reward_metrics(scores: Scores) -> dict[str, float]:
    """The mean reward with its 95 % interval over the samples, and what each part adds to it."""
    rewards = scores.total.detach()
    std = rewards.std() if len(rewards) > 1 else rewards.new_zeros(())
    each = [part.detach().mean() for part in scores.parts.values()]
    mean, spread, *means = torch.stack([rewards.mean(), std, *each]).tolist()
    error = 1.96 * spread / len(rewards) ** 0.5
    parts = dict(zip((f"reward/{name}" for name in scores.parts), means, strict=True))
    return {"reward": mean, "reward_low": mean - error, "reward_high": mean + error, **parts}
