"""Reading a scene: is what the prompt asks for really there?

Two networks of different architecture, trained on different people's handwriting, answer it. The
*reader* is the reward. The *judge* is never optimised: it tells improvement from reward hacking.
Both give, for each of the four cells, probabilities of its digit (or that it is empty) and of its
colour; from these follows the probability that a prompt is fulfilled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scoretune.core.errors import unknown
from scoretune.data.scenes.world import Ask, asks_by_text
from scoretune.rewards.networks.fulfilment import fulfilment, layouts, log_beliefs, on_log_scale
from scoretune.rewards.networks.scene_readers import CanvasJudge, CellReader, load

__all__ = [
    "CanvasJudge",
    "CellReader",
    "Reading",
    "fulfilment",
    "is_fulfilled",
    "layouts",
    "load",
    "log_beliefs",
    "on_log_scale",
]


def is_fulfilled(logits: Tensor, asks: list[Ask]) -> Tensor:
    """1.0 where the most likely layout fulfils the prompt, else 0.0: `[B]`."""
    verdicts = [l.fulfils(ask) for l, ask in zip(layouts(logits), asks, strict=True)]
    return torch.tensor(verdicts, dtype=torch.float32)


@dataclass(frozen=True)
class Reading:
    """Scores images [B, 3, 32, 32] in [0, 1] against prompts: [B] numbers in [0, 1].

    `soft`: the probability of fulfilment on a log scale, with a gradient; else the verdict.
    """

    network: nn.Module
    soft: bool = True

    def check_prompt(self, prompt: str) -> None:
        """Refuse a prompt that is no scene."""
        _meaning(prompt)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        meant = [_meaning(prompt) for prompt in prompts]
        logits = self.network.to(images.device)(images)
        if self.soft:
            return on_log_scale(fulfilment(logits, meant))
        return is_fulfilled(logits, meant).to(logits)


def _meaning(prompt: str) -> Ask:
    asks = asks_by_text()
    if prompt not in asks:
        raise unknown("scene prompt (the reader judges scenes of digits only)", prompt, asks)
    return asks[prompt]
