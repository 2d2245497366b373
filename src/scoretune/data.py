"""Prompts and data as records, from files or from the shipped world of scenes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from scoretune.errors import UserError
from scoretune.scenes import world


@dataclass(frozen=True)
class Prompts:
    """Prompt texts, and the task each belongs to (one task for all where there are none)."""

    texts: tuple[str, ...]
    tasks: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)


def read_prompts(source: str, per_task: int = 0) -> Prompts:
    """Prompts from a text file (one a line), `scenes`, `scenes-held-out`, or `none`.

    `per_task` above 0 balances the scenes: that many of each task, repeating short lists; of
    `none`, for models without prompts, it is how many there are.
    Raises UserError for a missing, unreadable or empty file.
    """
    if source in ("scenes", "scenes-held-out"):
        asks = world.training_asks() if source == "scenes" else world.held_out_asks()
        if per_task:
            asks = world.balanced(asks, per_task, seed=0)
        return Prompts(tuple(a.text for a in asks), tuple(a.task for a in asks))
    if source == "none":
        count = per_task or 64
        return Prompts(("",) * count, ("all",) * count)
    try:
        lines = Path(source).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a UTF-8 text file"
        raise UserError(
            f"cannot read the prompt file {source!r} ({reason}): give a text file with one "
            "prompt a line, or 'scenes'"
        ) from error
    texts = tuple(line.strip() for line in lines if line.strip())
    if not texts:
        raise UserError(f"prompt file {source!r} is empty: write one prompt a line")
    return Prompts(texts, ("all",) * len(texts))


def read_pictures(source: str, seed: int, count: int = 4096) -> tuple[Tensor, list[str]]:
    """Images [B, 3, H, W] in [0, 1] and captions: `scenes`, or a folder of `name.png` + `name.txt`.

    Raises UserError for a folder without pictures or a picture without a caption.
    """
    if source == "scenes":
        return _drawn_scenes(seed, count)
    folder = Path(source)
    files = sorted(p for p in folder.glob("*") if p.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if not files:
        raise UserError(f"no .png or .jpg pictures in {source!r}: give a folder of images")
    images, captions = [], []
    for file in files:
        caption = file.with_suffix(".txt")
        if not caption.exists():
            raise UserError(
                f"{str(file)!r} has no caption: write it into {caption.name!r} beside it"
            )
        captions.append(caption.read_text(encoding="utf-8").strip())
        images.append(_pixels(file))
    if len({image.shape for image in images}) > 1:
        raise UserError(f"the pictures in {source!r} differ in size: make them equal")
    return torch.stack(images), captions


def _drawn_scenes(seed: int, count: int) -> tuple[Tensor, list[str]]:
    import numpy as np

    from scoretune.scenes.draw import draw

    rng = np.random.default_rng((seed, 6))
    asks = world.balanced(world.training_asks(), -(-count // len(world.TASKS)), seed)
    layouts = [world.lay_out(ask, rng) for ask in asks]
    return torch.from_numpy(draw(layouts, "pictures", rng)), [ask.text for ask in asks]


def _pixels(file: Path) -> Tensor:
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"cannot read the picture {str(file)!r}: {error}") from error
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
