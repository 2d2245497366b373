"""How latents are packed for a denoiser: as a plane, a token for each place or square, a list, or
with time first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Layout:
    """How latents [B, C, h, w], of videos [B, C, T, h, w], go into a denoiser, and its output out
    of it; `pack` squares of a side of `patch` become the channels of one place."""

    pack: Callable[[Tensor], Any]
    unpack: Callable[[Any, Tensor], Tensor]
    patch: int = 1


PLANE = Layout(lambda x: x, lambda output, x: output[:, : x.shape[1]])
"""As they are; of a network that also predicts its variance, the first half of the channels."""
TOKENS = Layout(lambda x: x.flatten(2).mT, lambda output, x: output.mT.unflatten(2, x.shape[2:]))
"""A token for each place, [B, hw, C] or [B, Thw, C]."""
LIST = Layout(
    lambda x: list(x[:, :, None].unbind()), lambda output, x: torch.stack([*output])[:, :, 0]
)
"""A list of single frames [C, 1, h, w]."""
TIME_FIRST = Layout(lambda x: x.transpose(1, 2), lambda output, x: output.transpose(1, 2))
"""Frames before channels, [B, T, C, h, w]."""


def _from_patches(output: Tensor, x: Tensor) -> Tensor:
    rows, columns = (side // 2 for side in x.shape[-2:])
    return F.pixel_shuffle(output.mT.unflatten(2, (rows, columns)), 2)


PATCHES = Layout(lambda x: F.pixel_unshuffle(x, 2).flatten(2).mT, _from_patches, 2)
"""A token for each 2×2 places, [B, hw/4, 4C]."""
