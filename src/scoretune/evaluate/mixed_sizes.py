"""Prompts of several sizes, gone through size by size, and their pictures beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from scoretune.data.prompts import Prompts, picture_of
from scoretune.models.sizes import shape_of
from scoretune.policy import Backbone

PAPER = 1.0
"""White, around pictures on a canvas."""


class Batch(NamedTuple):
    """Prompts of one size, by their numbers among all."""

    places: tuple[int, ...]
    prompts: Prompts


def by_size(backbone: Backbone, prompts: Prompts) -> list[Batch]:
    """The prompts, those of one size together, in the order in which the sizes come."""
    places: dict[tuple[int, ...], list[int]] = {}
    for place, text in enumerate(prompts.texts):
        places.setdefault(shape_of(backbone, [text]), []).append(place)
    if len(places) == 1:
        return [Batch(tuple(range(len(prompts))), prompts)]
    return [Batch(tuple(each), prompts.take(each)) for each in places.values()]


def in_place(batches: Sequence[tuple[Sequence[int], Tensor]]) -> Tensor:
    """Rows of batches as one tensor, each at its place."""
    if len(batches) == 1:
        return batches[0][1]
    places = torch.tensor([place for some, _ in batches for place in some])
    return torch.cat([rows for _, rows in batches])[places.argsort()]


def on_canvas(batches: Sequence[tuple[Sequence[int], Tensor]]) -> Tensor:
    """Pictures or videos [n, …, H, W] of several sizes as one tensor, to be looked at: each at its
    place, in the middle of a white canvas of the largest height and width."""
    height, width = (max(some.shape[axis] for _, some in batches) for axis in (-2, -1))
    return in_place([(places, centred(some, height, width)) for places, some in batches])


def centred(images: Tensor, height: int, width: int) -> Tensor:
    """Images [..., H, W] with white around them."""
    down, across = height - images.shape[-2], width - images.shape[-1]
    if not (down or across):
        return images
    margins = (across // 2, across - across // 2, down // 2, down - down // 2)
    return F.pad(images, margins, value=PAPER)


def source_pictures(texts: Sequence[str], height: int, width: int = 0) -> Tensor | None:
    """The pictures that prompts edit, in one size, [B, 3, H, W]; None where a prompt has none.

    One of other proportions, as where prompts ask for several sizes, is on a canvas of that size.
    """
    pictures = [picture_of(text) for text in texts]
    if not pictures or None in pictures:
        return None
    return torch.stack(
        [_fitted(p.pixels, height, width or height) for p in pictures if p is not None]
    )


def _fitted(picture: Tensor, height: int, width: int) -> Tensor:
    """A picture [3, H, W] scaled to fit; of the same proportions but for rounding, to that size."""
    scale = min(height / picture.shape[-2], width / picture.shape[-1])
    sides = [round(side * scale) for side in picture.shape[-2:]]
    if max(height - sides[0], width - sides[1]) <= 1:
        sides = [height, width]
    shown = F.interpolate(picture[None], sides, mode="bilinear", antialias=True).clamp(0, 1)
    return centred(shown[0], height, width)
