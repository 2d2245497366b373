"""How probable it is that a scene shows what its prompt asks for, by what a network sees in it.

Networks of `scene_readers` give each of the four cells logits of its digit (or that it is empty)
and of its colour. With independent cells

    p = Σ over allowed placements of Π_items p(cell shows item) · Π_others p(cell is empty).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from scoretune.data.scenes.world import CELLS, COLOURS, DIGITS, EMPTY, Ask, Layout, asks_by_text

ITEMS, PLACEMENTS = 3, 12
PARTS = [ITEMS, ITEMS, PLACEMENTS * ITEMS, PLACEMENTS, 1]
FORM = sum(PARTS)
"""Numbers of a prompt's form."""


def log_beliefs(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities `[B, 4, 11]` of digits (the last one: empty) and `[B, 4, 4]` of colours."""
    digits, colours = logits.split([len(DIGITS) + 1, len(COLOURS)], dim=-1)
    return digits.log_softmax(-1), colours.log_softmax(-1)


def layouts(logits: Tensor) -> list[Layout]:
    """The most likely layout of each picture."""
    digits, colours = (part.argmax(-1).tolist() for part in log_beliefs(logits))
    return [Layout(tuple(d), tuple(c)) for d, c in zip(digits, colours, strict=True)]


def fulfilment(logits: Tensor, asks: Sequence[Ask]) -> Tensor:
    """Probability `[B]` that each picture fulfils its prompt, of logits [B, 4, 15]."""
    return fulfilment_of_forms(logits, torch.stack([_form(ask) for ask in asks]))


def forms_of(texts: Sequence[str]) -> Tensor:
    """Prompts as numbers, [B, FORM], for `fulfilment_of_forms`. What is no prompt of this world
    asks for nothing, and its last number is 0."""
    asks = asks_by_text()
    return torch.stack([_form(asks.get(text)) for text in texts])


def fulfilment_of_forms(logits: Tensor, forms: Tensor) -> Tensor:
    """`fulfilment` by the prompts' forms [B, FORM]; 0 for what is no prompt of this world."""
    digits, colours = log_beliefs(logits)
    digit, colour, cells, allowed, known = forms.to(logits.device).split(PARTS, dim=-1)
    cells = cells.unflatten(1, (PLACEMENTS, ITEMS))
    empty = digits[..., EMPTY]
    # how much likelier each cell shows item i than nothing: [B, 3 items, 4 cells]
    shows = digits.gather(2, digit[:, None].expand(-1, CELLS, -1)) - empty[..., None]
    no_matter = torch.zeros_like(colours[..., :1])
    inks = torch.cat([colours, no_matter], -1).gather(2, colour[:, None].expand(-1, CELLS, -1))
    scores = (shows + inks).transpose(1, 2)
    placed = scores.gather(2, cells.transpose(1, 2)).sum(1)  # [B, placements]
    total = empty.sum(1, keepdim=True) + placed
    probability: Tensor = total.masked_fill(allowed == 0, -torch.inf).logsumexp(1).exp()
    of_this_world: Tensor = known[:, 0] * probability
    return of_this_world


@cache
def _form(ask: Ask | None) -> Tensor:
    """A prompt as integers [FORM]: digits [3], colours [3], cells [12, 3], which rows of them count
    [12], and 1; without a prompt 0.

    A missing item is "nothing, of any colour": its score is 0 wherever it is put.
    """
    items = () if ask is None else ask.items
    placements = [()] if ask is None else ask.placements()
    missing, any_colour = ITEMS - len(items), len(COLOURS)
    digits = [item.digit for item in items] + [EMPTY] * missing
    colours = [any_colour if item.colour is None else item.colour for item in items]
    cells = torch.zeros(PLACEMENTS, ITEMS, dtype=torch.long)
    cells[: len(placements), : len(items)] = torch.tensor(placements, dtype=torch.long)
    allowed = torch.arange(PLACEMENTS) < len(placements)
    parts = [torch.tensor(digits), torch.tensor(colours + [any_colour] * missing)]
    parts += [cells.flatten(), allowed.long(), torch.tensor([int(ask is not None)])]
    return torch.cat(parts)


def on_log_scale(probability: Tensor, floor: float = 1e-3) -> Tensor:
    """log(1 + p/floor) / log(1 + 1/floor): 0 at p = 0, 1 at p = 1, and never flat between.

    A reader sure of the wrong digit gives p near 0 with a slope near 0, where it is needed most.
    """
    return torch.log1p(probability / floor) / math.log1p(1 / floor)
