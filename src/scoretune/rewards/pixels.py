"""Rewards that need no network: how well an image compresses, how bright it is."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scoretune.core.errors import UserError


@dataclass(frozen=True)
class Compressibility:
    """Minus the size in kilobytes as JPEG at `quality` (DDPO, arXiv 2305.13301); `sign` −1 turns
    it into incompressibility. Has no gradient."""

    quality: int = 95
    sign: float = 1.0

    def __post_init__(self) -> None:
        if not (1 <= self.quality <= 100 and math.isfinite(self.sign)):
            raise UserError(
                f"compressibility(quality={self.quality}, sign={self.sign:g}): the quality of a "
                "JPEG is 1 to 100, and the sign 1 or -1"
            )

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return torch.tensor([-self.sign * _kilobytes(image, self.quality) for image in images])


def brightness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Mean pixel value: easy to raise, and easy to raise at the cost of everything else."""
    return images.mean((1, 2, 3))


def _kilobytes(image: Tensor, quality: int) -> float:
    from PIL import Image

    pixels = (image.detach().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return len(buffer.getvalue()) / 1000
