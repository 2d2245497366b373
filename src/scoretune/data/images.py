"""Pictures from folders, with their captions, or drawn from the shipped world of scenes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scoretune.core.errors import UserError
from scoretune.data.scenes import world
from scoretune.data.scenes.draw import draw

ENDINGS = (".png", ".jpg", ".jpeg")


def read_pictures(source: str, seed: int, count: int = 4096) -> tuple[Tensor, list[str]]:
    """Images [B, 3, H, W] in [0, 1] and captions: `scenes`, or a folder of `name.png` + `name.txt`.

    Raises UserError for a folder without pictures or a picture without a caption.
    """
    if source == "scenes":
        rng = np.random.default_rng((seed, 6))
        asks = world.balanced(world.training_asks(), -(-count // len(world.TASKS)), seed)
        layouts = [world.lay_out(ask, rng) for ask in asks]
        return torch.from_numpy(draw(layouts, "pictures", rng)), [ask.text for ask in asks]
    pictures = read_folder(Path(source))
    captions = [_caption(file) for file in pictures]
    if len({image.shape[1:] for image in pictures.values()}) > 1:
        raise UserError(f"the pictures in {source!r} differ in size: make them equal")
    return torch.stack([image.expand(3, -1, -1) for image in pictures.values()]), captions


def read_folder(folder: Path) -> dict[Path, Tensor]:
    """Every picture of a folder by its file: [C, H, W] in [0, 1], of one channel where it is grey.

    Raises UserError where there is none, and for one that cannot be read.
    """
    files = sorted(path for path in folder.glob("*") if path.suffix.lower() in ENDINGS)
    if not files:
        raise UserError(f"no .png or .jpg pictures in {str(folder)!r}: give a folder of images")
    return {file: _pixels(file) for file in files}


def _caption(file: Path) -> str:
    caption = file.with_suffix(".txt")
    if not caption.exists():
        raise UserError(f"{str(file)!r} has no caption: write it into {caption.name!r} beside it")
    return caption.read_text(encoding="utf-8").strip()


def _pixels(file: Path) -> Tensor:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            pixels = np.array(image.convert("L" if image.mode in ("1", "L") else "RGB"))
    except (OSError, UnidentifiedImageError, ValueError) as error:
        raise UserError(f"cannot read the picture {str(file)!r}: {error}") from error
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1).float() / 255
