"""Pictures from folders, with their captions, or drawn from the shipped world of scenes."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from scoretune.core import reading
from scoretune.core.errors import UserError, first_line
from scoretune.data.scenes import world
from scoretune.data.scenes.draw import draw

ENDINGS = (".png", ".jpg", ".jpeg")
KINDS = ("PNG", "JPEG", "WEBP")
"""What may stand in files of those names, whichever the name says."""
MOST_PIXELS = 2**26
"""Of one picture, 8192 a side."""


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
    pictures: dict[Path, Tensor] = {}
    size, room = 0, reading.memory()
    for file in files:
        pictures[file] = _pixels(file)
        size += 4 * pictures[file].numel()
        if size > room:
            raise UserError(
                f"the pictures in {str(folder)!r} are more numbers than this machine's memory of "
                f"{room >> 30} GiB holds: give fewer, or smaller ones"
            )
    return pictures


def _caption(file: Path) -> str:
    caption = file.with_suffix(".txt")
    try:
        return reading.read_text(caption, most=2**20).strip()
    except FileNotFoundError as error:
        raise UserError(
            f"{str(file)!r} has no caption: write it into {caption.name!r} beside it"
        ) from error
    except (OSError, ValueError) as error:
        what = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read the caption {str(caption)!r}: {what}") from error


def _pixels(file: Path) -> Tensor:
    try:
        return pixels(file)
    except ValueError as error:
        raise UserError(f"cannot read the picture {str(file)!r}: {error}") from error


def pixels(source: Path | bytes) -> Tensor:
    """A picture of a file or of its bytes, [1 or 3, H, W] in [0, 1]. Raises ValueError."""
    try:
        if isinstance(source, Path):
            reading.check_regular(source)
        array = decoded(BytesIO(source) if isinstance(source, bytes) else source)
    except OSError as error:
        raise ValueError(getattr(error, "strerror", None) or first_line(error)) from error
    return torch.from_numpy(array).permute(2, 0, 1)


def scaled(image: Tensor, size: int) -> Tensor:
    """[..., H, W] with its shorter side brought to `size` and the rest of the longer cut off."""
    if not size:
        return image
    height, width = image.shape[-2:]
    factor = size / min(height, width)
    sides = (max(size, round(height * factor)), max(size, round(width * factor)))
    batch = image if image.dim() == 4 else image[None]
    batch = F.interpolate(batch, sides, mode="bilinear", antialias=True, align_corners=False)
    top, left = (sides[0] - size) // 2, (sides[1] - size) // 2
    cut = batch[..., top : top + size, left : left + size].clamp(0, 1)
    return cut if image.dim() == 4 else cut[0]


def decoded(
    source: Path | BinaryIO, kinds: Sequence[str] = KINDS, most: int = MOST_PIXELS
) -> NDArray[np.float32]:
    """A picture [H, W, C] in [0, 1], as its own header says: C = 1 where it is grey, else 3.

    Sixteen bits keep their scale, a camera's rotation (EXIF) is applied, a palette and CMYK become
    colours, and what is transparent lies on white. Raises ValueError for more than `most` pixels,
    and for what is none of `kinds` or broken.
    """
    with _upright(source, kinds, most) as image:
        return _unit(image)


def look(payload: bytes) -> tuple[int, int, bytes]:
    """Height and width of a picture and its pixels as they are stored. Raises ValueError for one
    that `pixels` cannot read; several times as fast."""
    try:
        with _upright(BytesIO(payload), KINDS, MOST_PIXELS) as image:
            return image.height, image.width, image.mode.encode() + image.tobytes()
    except OSError as error:
        raise ValueError(first_line(error)) from error


@contextmanager
def _upright(source: Path | BinaryIO, kinds: Sequence[str], most: int) -> Iterator[Any]:
    """A Pillow image as the camera was held; within this context what is broken is ValueError."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # there is a limit below
        try:
            with Image.open(source, formats=list(kinds)) as image:
                if image.width * image.height > most:
                    raise ValueError(f"{image.width}x{image.height} pixels: at most {most:,}")
                yield ImageOps.exif_transpose(image)
        except UnidentifiedImageError as error:
            raise ValueError(f"it is no {' or '.join(kinds)}") from error
        except (Image.DecompressionBombError, SyntaxError, struct.error, zlib.error) as error:
            raise ValueError(first_line(error)) from error


def _unit(image: Any) -> NDArray[np.float32]:
    """The pixels of a Pillow image in [0, 1], [H, W, 1 or 3]."""
    from PIL import Image

    if image.mode.startswith("I"):  # grey in sixteen bits, which `convert` would clip to eight
        return np.asarray(image, dtype=np.float32)[..., None] / np.float32(65535)
    grey = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    pixels = np.asarray(image.convert("L" if grey else "RGB"), dtype=np.float32) / np.float32(255)
    return pixels.reshape(*pixels.shape[:2], -1)
