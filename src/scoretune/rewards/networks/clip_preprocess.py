"""The preprocessing of CLIP: pictures resized, cropped and normalised, with a gradient.

As transformers' CLIPImageProcessorPil does it, but in floats: only its rounding to 8 bits after
each pass of the resize is left out, which is less than two levels of 255 on 8-bit pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from scoretune.core.errors import UserError

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
_FILTERS: dict[int, Literal["bilinear", "bicubic"]] = {2: "bilinear", 3: "bicubic"}  # as in Pillow


@dataclass(frozen=True)
class Preprocessing:
    """Images [B, 3, H, W] in [0, 1] -> [B, 3, side, side], normalised.

    crop: the shorter edge becomes `resize` pixels and the middle `side` x `side` is kept. pad: the
    longer edge becomes `side` pixels and black fills the rest. stretch: both edges become `side`.
    """

    side: int = 224
    resize: int = 224
    fit: Literal["crop", "pad", "stretch"] = "crop"
    filter: Literal["bilinear", "bicubic"] = "bicubic"
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    def __call__(self, images: Tensor) -> Tensor:
        fitted = self.fitted(images.float())
        mean = torch.tensor(self.mean, device=images.device)[:, None, None]
        std = torch.tensor(self.std, device=images.device)[:, None, None]
        return (fitted - mean) / std

    def fitted(self, images: Tensor) -> Tensor:
        """`[B, 3, side, side]` in [0, 1]: resized with antialias, clamped where it overshoots."""
        height, width = images.shape[-2:]
        short, long = min(height, width), max(height, width)
        if self.fit == "crop":
            other = int(self.resize * long / short)
            size = (self.resize, other) if height <= width else (other, self.resize)
        elif self.fit == "pad":
            size = (round(height * self.side / long), round(width * self.side / long))
        else:
            size = (self.side, self.side)
        for step in ((height, size[1]), size):  # Pillow clips between its two passes
            if step != images.shape[-2:]:
                images = F.interpolate(images, step, mode=self.filter, antialias=True)
            images = images.clamp(0, 1)
        return self._framed(images)

    def _framed(self, images: Tensor) -> Tensor:
        """The middle `side` x `side`, black where there is nothing; odd remainders as in each."""
        down, right = (self.side - length for length in images.shape[-2:])  # negative: cut off
        odd = 0 if self.fit == "pad" else 1
        top, left = (down + odd) // 2, (right + odd) // 2
        return F.pad(images, (left, right - left, top, down - top))


def from_config(config: Mapping[str, Any], source: str, *, side: int) -> Preprocessing:
    """The rules of a preprocessor_config.json for `side` pixels. Raises UserError for others."""
    if not config:
        return Preprocessing(side=side, resize=side)
    _check(config, source, side)
    edge = _edge(config.get("size", side))
    return Preprocessing(
        side=side,
        resize=side if edge is None else edge,
        fit="stretch" if edge is None else "crop",
        filter=_FILTERS[config.get("resample", 3)],
        mean=tuple(config.get("image_mean") or MEAN),
        std=tuple(config.get("image_std") or STD),
    )


def _edge(size: Any) -> int | None:
    """What the shorter edge becomes; None where both edges are given."""
    return size.get("shortest_edge") if isinstance(size, dict) else int(size)


def _check(config: Mapping[str, Any], source: str, side: int) -> None:
    where = f"the preprocessing that {source!r} asks for"
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if not config.get(step, True):
            raise UserError(f"{where} has {step}=false: give the folder or hub id of a CLIP model")
    if config.get("resample", 3) not in _FILTERS:
        raise UserError(f"{where} has resample={config['resample']}: it must be 2 or 3 (bicubic)")
    size = config.get("size", side)
    frames = [size] if _edge(size) is None else []
    frames += [config.get("crop_size", side)] if config.get("do_center_crop", True) else []
    for frame in frames:
        edges = (frame.get("height"), frame.get("width")) if isinstance(frame, dict) else (frame,)
        if set(edges) != {side}:
            raise UserError(
                f"{where} makes pictures of {' x '.join(map(str, edges))} pixels, and the model "
                f"takes {side}: give the folder or hub id that belongs to the model"
            )
