"""Reading a scene: is what the prompt asks for really there?

Two networks of different architecture, trained on different people's handwriting, answer it. The
*reader* is the reward. The *judge* is never optimised: it tells improvement from reward hacking.
Both give, for each of the four cells, probabilities of its digit (or that it is empty) and of its
colour; from these follows the probability that a prompt is fulfilled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from scoretune.core.errors import unknown
from scoretune.data.scenes.world import CELLS, COLOURS, DIGITS, EMPTY, Ask, Layout, asks_by_text
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


def log_beliefs(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities `[B, 4, 11]` of digits (the last one: empty) and `[B, 4, 4]` of colours."""
    digits, colours = logits.split([len(DIGITS) + 1, len(COLOURS)], dim=-1)
    return digits.log_softmax(-1), colours.log_softmax(-1)


def fulfilment(logits: Tensor, asks: list[Ask]) -> Tensor:
    """Probability `[B]` that each picture fulfils its prompt, under independent cells.

    p = sum over allowed placements of prod_items p(cell shows item) prod_others p(cell empty).
    """
    digits, colours = log_beliefs(logits)
    forms = [_form(ask) for ask in asks]
    digit, colour, cells, allowed = (
        torch.stack(part).to(logits.device) for part in zip(*forms, strict=True)
    )
    empty = digits[..., EMPTY]
    # how much likelier each cell shows item i than nothing: [B, 3 items, 4 cells]
    shows = digits.gather(2, digit[:, None].expand(-1, CELLS, -1)) - empty[..., None]
    no_matter = torch.zeros_like(colours[..., :1])
    inks = torch.cat([colours, no_matter], -1).gather(2, colour[:, None].expand(-1, CELLS, -1))
    scores = (shows + inks).transpose(1, 2)
    placed = scores.gather(2, cells.transpose(1, 2)).sum(1)  # [B, placements]
    total = empty.sum(1, keepdim=True) + placed
    return total.masked_fill(~allowed, -torch.inf).logsumexp(1).exp()


@cache
def _form(ask: Ask) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A prompt as index tensors: digits [3], colours [3], cells [12, 3] and which rows count [12].

    A missing item is "nothing, of any colour": its score is 0 wherever it is put.
    """
    placements, missing = ask.placements(), 3 - len(ask.items)
    digits = [item.digit for item in ask.items] + [EMPTY] * missing
    any_colour = len(COLOURS)
    colours = [any_colour if item.colour is None else item.colour for item in ask.items]
    cells = torch.zeros(12, 3, dtype=torch.long)
    cells[: len(placements), : len(ask.items)] = torch.tensor(placements)
    allowed = torch.arange(12) < len(placements)
    return torch.tensor(digits), torch.tensor(colours + [any_colour] * missing), cells, allowed


def layouts(logits: Tensor) -> list[Layout]:
    """The most likely layout of each picture."""
    digits, colours = (part.argmax(-1).tolist() for part in log_beliefs(logits))
    return [Layout(tuple(d), tuple(c)) for d, c in zip(digits, colours, strict=True)]


def is_fulfilled(logits: Tensor, asks: list[Ask]) -> Tensor:
    """1.0 where the most likely layout fulfils the prompt, else 0.0: `[B]`."""
    verdicts = [l.fulfils(ask) for l, ask in zip(layouts(logits), asks, strict=True)]
    return torch.tensor(verdicts, dtype=torch.float32)


def on_log_scale(probability: Tensor, floor: float = 1e-3) -> Tensor:
    """log(1 + p/floor) / log(1 + 1/floor): 0 at p = 0, 1 at p = 1, and never flat between.

    A reader sure of the wrong digit gives p near 0 with a slope near 0, where it is needed most.
    """
    return torch.log1p(probability / floor) / math.log1p(1 / floor)


@dataclass(frozen=True)
class Reading:
    """Scores images [B, 3, 32, 32] in [0, 1] against prompts: [B] numbers in [0, 1].

    `soft`: the probability of fulfilment on a log scale, with a gradient; else the verdict.
    """

    network: nn.Module
    soft: bool = True

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
