"""Videos [B, T, 3, H, W] in [0, 1] as people look at them: animated WebP, and contact strips."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

A_SECOND = 16
"""Frames of an animation: what Wan draws; pipelines do not say how many theirs are."""
STRIP = 8
"""Frames of a contact strip, at most."""
SIDE, LONGEST = 256, 33
"""Pixels of the longer side and frames of a preview, at most."""


def write(video: Tensor, path: Path) -> None:
    """A video [T, 3, H, W] as an animated WebP. Raises OSError and ValueError as Pillow does."""
    from PIL import Image

    pixels = (video.float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    first, *others = (Image.fromarray(frame) for frame in pixels)
    first.save(
        path,
        "WEBP",
        save_all=True,
        append_images=others,
        duration=1000 // A_SECOND,
        loop=0,
        quality=90,
    )


def small(videos: Tensor) -> Tensor:
    """The same, small enough to be looked at on a page."""
    videos = videos[:, _spread(videos.shape[1], LONGEST)].float()
    longer = max(videos.shape[-2:])
    if longer <= SIDE:
        return videos
    sides = [max(1, round(side * SIDE / longer)) for side in videos.shape[-2:]]
    frames = F.interpolate(videos.flatten(0, 1), sides, mode="bilinear", antialias=True)
    return frames.view(*videos.shape[:3], *sides).clamp(0, 1)


def strips(videos: Tensor) -> Tensor:
    """A few frames of each, evenly from the first to the last, beside each other: [B, 3, H, nW]."""
    shown = videos[:, _spread(videos.shape[1], STRIP)]
    return shown.permute(0, 2, 3, 1, 4).flatten(3)


def sheet(videos: Tensor, columns: int) -> Tensor:
    """All of them beside and below each other, as one video [T, 3, rows·H, columns·W]."""
    rows = math.ceil(len(videos) / columns)
    cells = videos.new_zeros(rows * columns, *videos.shape[1:])
    cells[: len(videos)] = videos
    grid = cells.view(rows, columns, *videos.shape[1:])
    return grid.permute(2, 3, 0, 4, 1, 5).flatten(4).flatten(2, 3)


def middle(images: Tensor) -> Tensor:
    """The middle frame of videos; pictures as they are."""
    return images[:, images.shape[1] // 2] if images.dim() == 5 else images


def _spread(count: int, most: int) -> list[int]:
    """At most so many of the numbers below `count`, evenly from the first to the last."""
    places = torch.linspace(0, count - 1, min(count, most)).round().long()
    return list(places.tolist())
