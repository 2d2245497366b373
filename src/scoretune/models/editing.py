"""What models that edit pictures are shown: the pictures of prompts, in the model's own size.

They are scaled as the pipelines' own processors scale them (Lanczos), in proportion alone: a
picture of other proportions is refused before a run begins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scoretune.core.errors import UserError
from scoretune.data.formats import brief
from scoretune.data.prompts import picture_of
from scoretune.data.source_pictures import SourcePicture
from scoretune.models.base import Pipelined
from scoretune.models.recycled import inner
from scoretune.policy import Backbone


def check_pictures(backbone: Backbone, prompts: Sequence[str]) -> None:
    """Refuse prompts without a picture to a model that edits one, pictures to one that does not,
    and pictures of other proportions than it draws. Raises UserError."""
    base = inner(backbone)
    for prompt in prompts:
        picture = picture_of(prompt)
        sides = base.in_size_of([prompt]).edited_sides if isinstance(base, Pipelined) else None
        if picture is None and sides is not None:
            raise _without_picture(prompt)
        if picture is not None and sides is None:
            raise UserError(
                f"{picture.where}: there is a picture to edit, and this model draws from texts "
                "alone: take the column image out, or give a model that edits, as scenes-edit"
            )
        if picture is not None and sides is not None:
            _check_proportions(picture, sides)


def _without_picture(prompt: str) -> UserError:
    return UserError(
        f"the prompt {brief(str(prompt))} has no picture, and this model edits pictures: give "
        "prompts as a .jsonl or .csv file with a column image, of paths from that file's folder"
    )


def _check_proportions(picture: SourcePicture, sides: Mapping[str, int]) -> None:
    """They may differ by what rounding to whole pixels does."""
    height, width = sides["height"], sides["width"]
    off = abs(picture.height * width - picture.width * height)
    if off > max(height, width, picture.height, picture.width):
        raise UserError(
            f"{picture.where}: the picture is {picture.width}x{picture.height}, and the model "
            f"edits {width}x{height}: cut it so (it is scaled to the size), or set "
            f"model.size={picture.width}x{picture.height}"
        )


def shown(prompt: str, sides: Mapping[str, int]) -> Any:
    """The picture of a prompt as a PIL image of these sides; black of a prompt without words, as a
    family's negative one is, that has none. Raises UserError for another that has none."""
    from PIL import Image

    picture, size = picture_of(prompt), (sides["width"], sides["height"])
    if picture is None:
        if prompt.strip():
            raise _without_picture(prompt)
        return Image.new("RGB", size)
    array = (picture.pixels * 255).round().byte().permute(1, 2, 0).numpy()
    image = Image.fromarray(np.ascontiguousarray(array))
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)
