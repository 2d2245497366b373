"""Prompts and data as records, from files or from the shipped world of scenes."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from scoretune.core.errors import UserError
from scoretune.data.prompt_files import Prompt, read_rows
from scoretune.data.scenes import world

__all__ = ["Prompt", "Prompts", "order", "read_pictures", "read_prompts"]


GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Prompts:
    """Prompt texts, the task each belongs to (one task for all where there are none), and how often
    each is asked for relative to the others (alike unless told otherwise).

    Each text is a `Prompt`: its `metadata` is what the file says of it beside.
    """

    texts: tuple[str, ...]
    tasks: tuple[str, ...]
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        told = (text if isinstance(text, Prompt) else Prompt(text) for text in self.texts)
        object.__setattr__(self, "texts", tuple(told))
        object.__setattr__(self, "weights", tuple(self.weights) or (1.0,) * len(self.texts))
        if not len(self.texts) == len(self.tasks) == len(self.weights):
            raise ValueError("prompts need a task each, and a weight each or none at all")
        if not all(0 < weight < math.inf for weight in self.weights):
            raise ValueError("weights of prompts must be numbers above 0")

    def __len__(self) -> int:
        return len(self.texts)

    def few(self, per_task: int) -> Prompts:
        """At most so many of each task, spread evenly over it; all for 0."""
        places: dict[str, list[int]] = {}
        for place, task in enumerate(self.tasks):
            places.setdefault(task, []).append(place)
        kept = sorted(
            own[j * len(own) // count]
            for own in places.values()
            for count in [min(per_task or len(own), len(own))]
            for j in range(count)
        )
        return Prompts(
            tuple(self.texts[i] for i in kept),
            tuple(self.tasks[i] for i in kept),
            tuple(self.weights[i] for i in kept),
        )


def order(prompts: Prompts, lap: int, seed: int) -> list[int]:
    """The order of one pass over the prompts: as many numbers as there are prompts, shuffled.

    With equal weights each occurs once. Else a prompt occurs n w / sum(w) times, rounded up or down
    (systematic resampling). From lap to lap the rounding moves by the golden ratio, so that counts
    over many laps stay near their expectation too: by the logarithm of the laps, not by their root.
    """
    count = len(prompts)
    shuffle = torch.Generator().manual_seed(seed * 7919 + lap)
    mixed = torch.randperm(count, generator=shuffle)
    if len(set(prompts.weights)) == 1:
        return [int(i) for i in mixed]
    offset = (random.Random(seed).random() + lap * GOLDEN) % 1
    ends = torch.tensor(prompts.weights, dtype=torch.float64).cumsum(0)
    places = (torch.arange(count, dtype=torch.float64) + offset) * (ends[-1] / count)
    drawn = torch.searchsorted(ends, places, right=True).clamp(max=count - 1)
    return [int(i) for i in drawn[mixed]]


def read_prompts(source: str, per_task: int = 0) -> Prompts:
    """Prompts from a file, `datasets:ID`, `scenes`, `scenes-held-out`, or `none`.

    What a file may be, and what it may say beside, is in `prompt_files`. `per_task` above 0
    balances the scenes: that many of each task, repeating short lists; of `none`, for models
    without prompts, it is how many there are.
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
    rows = read_rows(source)
    return Prompts(
        tuple(row.prompt for row in rows),
        tuple(row.task for row in rows),
        tuple(row.weight for row in rows),
    )


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

    from scoretune.data.scenes.draw import draw

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
