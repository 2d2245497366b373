"""Was the instruction carried out, and nothing else? The reward of edits of the shipped world.

A network of `scene_readers` reads the source picture and the result. With independent cells

    p = Σ over layouts that the instruction makes of the source's · Π_cells p(cell shows its part).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from scoretune.core.errors import UserError, unknown
from scoretune.data.scenes.edits import Edit, edits_by_instruction
from scoretune.data.scenes.world import CELLS, EMPTY, Layout
from scoretune.rewards.base import source_image, wanted_picture
from scoretune.rewards.networks.fulfilment import layouts, log_beliefs, on_log_scale


class Asked(NamedTuple):
    """An edit, and what the source picture shows."""

    edit: Edit
    before: Layout

    def outcomes(self) -> list[Layout]:
        """The layouts that carry it out, each once; none where it cannot be done."""
        return list(dict.fromkeys(bare(end) for end in self.edit.outcomes(self.before)))


def bare(layout: Layout) -> Layout:
    """Without the colours that empty cells are given."""
    inks = zip(layout.digits, layout.colours, strict=True)
    return Layout(layout.digits, tuple(0 if digit == EMPTY else ink for digit, ink in inks))


def carried_out(logits: Tensor, asked: Sequence[Asked]) -> Tensor:
    """The probability p [B] above, of logits [B, 4, 15] of the results; 0 for what cannot be done
    to what the source shows."""
    digits, colours = log_beliefs(logits)
    ends = [each.outcomes() for each in asked]
    most = max([1, *map(len, ends)])
    empty = Layout((EMPTY,) * CELLS, (0,) * CELLS)
    padded = [[*some, *[empty] * (most - len(some))] for some in ends]
    device = logits.device
    shown, inks = (
        torch.tensor([[getattr(end, part) for end in some] for some in padded], device=device)
        for part in ("digits", "colours")
    )  # [B, outcomes, 4]
    seen = digits.gather(2, shown.transpose(1, 2))
    inked = colours.gather(2, inks.transpose(1, 2)).masked_fill(shown.transpose(1, 2) == EMPTY, 0.0)
    each = (seen + inked).sum(1)  # [B, outcomes]
    counts = torch.tensor([len(some) for some in ends], device=device)
    allowed = torch.arange(most, device=device) < counts[:, None]
    return (each.exp() * allowed).sum(1)


@dataclass(frozen=True)
class EditReading:
    """Scores images [B, 3, 32, 32] in [0, 1] against instructions and their pictures: [B] numbers
    in [0, 1].

    `soft`: the probability that the edit was carried out on a log scale, with a gradient; else
    whether the most likely layout carries it out.
    """

    network: nn.Module
    soft: bool = True

    def check_prompt(self, prompt: str) -> None:
        """Refuse a prompt that is no instruction of the world, or has no picture."""
        _meaning(prompt)
        wanted_picture(prompt, "scene_edit reads")

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        network = self.network.to(images.device)
        asked = [Asked(_meaning(prompt), _before(network, prompt, images)) for prompt in prompts]
        logits = network(images)
        if self.soft:
            return on_log_scale(carried_out(logits, asked))
        verdicts = [
            bare(seen) in each.outcomes() for seen, each in zip(layouts(logits), asked, strict=True)
        ]
        return torch.tensor(verdicts).to(logits)


@torch.no_grad()
def _before(network: nn.Module, prompt: str, images: Tensor) -> Layout:
    image = source_image(prompt, "scene_edit reads")
    if image.shape != images.shape[1:]:
        raise UserError(
            f"scene_edit reads scenes of {images.shape[-1]} pixels, and the picture of the prompt "
            f"{str(prompt)[:40]!r} is {image.shape[-1]}x{image.shape[-2]}: give scenes"
        )
    return layouts(network(image[None].to(images)))[0]


def _meaning(prompt: str) -> Edit:
    edits = edits_by_instruction()
    if prompt not in edits:
        raise unknown("instruction (scene_edit judges scenes of digits only)", str(prompt), edits)
    return edits[prompt]
