"""How much is left of the picture that a prompt edits: it holds an edit to its source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from scoretune.rewards.base import source_image, wanted_picture

USE = "source_closeness compares with"


def closeness(images: Tensor, sources: Tensor) -> Tensor:
    """1 − mean |x − s| over the pixels of images x and sources s [B, 3, H, W] in [0, 1]: [B], the
    L1 distance of MagicBrush (arXiv 2306.10012, table 2), turned round."""
    return 1 - (images - sources).abs().mean((1, 2, 3))


@dataclass(frozen=True)
class SourceCloseness:
    """`closeness` to the pictures of prompts, scaled to the images' size; has a gradient."""

    def check_prompt(self, prompt: str) -> None:
        """Refuse a prompt that has no picture."""
        wanted_picture(prompt, USE)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return closeness(images, torch.stack([_source(prompt, images) for prompt in prompts]))


def _source(prompt: str, images: Tensor) -> Tensor:
    image = source_image(prompt, USE)
    sides = images.shape[-2:]
    if image.shape[-2:] != sides:
        batch = image[None]
        image = F.interpolate(batch, sides, mode="bilinear", antialias=True).clamp(0, 1)[0]
    return image.to(images)
