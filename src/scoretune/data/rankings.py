"""Rankings of several pictures of one prompt: whole orders, with ties, in one row each.

A table (`data.tables.opened`) with the prompt's column, `images`, a list of paths, and `ranks`, a
list of as many numbers, of which the smallest is the best and equal ones are tied. Without `ranks`
the pictures stand in their order, the best first.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoretune.core import reading
from scoretune.core.errors import UserError
from scoretune.data.formats import brief, missing_column, named_column
from scoretune.data.images import pixels, scaled
from scoretune.data.judgements import number
from scoretune.data.pictures import picture_file
from scoretune.data.prompts import PROMPT_KEYS, prompt_text
from scoretune.data.tables import opened

MOST = 16
"""Pictures of one ranking."""


@dataclass(frozen=True)
class Ranking:
    """The pictures of a prompt and the rank of each, the smallest best; `place` is the row's."""

    place: str
    caption: str
    files: tuple[Path, ...]
    ranks: tuple[float, ...]

    def load(self, size: int = 0) -> Tensor:
        """The pictures [k, 3, H, W] in [0, 1], as `PairTable.load`. Raises UserError."""
        images = []
        for file in self.files:
            try:
                images.append(scaled(pixels(reading.read_bytes(file)).expand(3, -1, -1), size))
            except (OSError, ValueError) as error:
                raise UserError(
                    f"{self.place}: cannot read the picture {str(file)!r} ({error}): mend it, or "
                    "take the row out"
                ) from error
        if len({image.shape for image in images}) > 1:
            raise UserError(f"{self.place}: pictures of several sizes: make them equal")
        return torch.stack(images)


def read_rankings(where: str) -> tuple[Ranking, ...]:
    """The rankings of a table. Raises UserError, in one line with the row."""
    table = opened(where, "rankings")
    prompt, images = (named_column(table.names, names) for names in (PROMPT_KEYS, ("images",)))
    if prompt is None or images is None:
        raise missing_column(where, PROMPT_KEYS if prompt is None else ["images"], table.names)
    ranks = named_column(table.names, ("ranks", "ranking"))
    read = []
    for place, row in table.rows():
        at = f"{where!r}, {place}"
        files = _listed(at, "images", row.get(images))
        given = range(len(files)) if ranks is None else _listed(at, str(ranks), row.get(ranks))
        if not 2 <= len(files) <= MOST or len(given) != len(files):
            raise UserError(
                f"{at}: {len(files)} images and {len(given)} ranks: give from 2 to {MOST} images "
                "and a rank for each"
            )
        read.append(
            Ranking(
                at,
                prompt_text(f"{at}: {str(prompt)!r}", row.get(prompt)),
                tuple(picture_file(at, "images", file, table.folder) for file in files),
                tuple(number(at, "ranks", rank) for rank in given),
            )
        )
    return tuple(read)


def _listed(where: str, name: str, cell: Any) -> list[Any]:
    if not isinstance(cell, list):
        raise UserError(f"{where}: {name!r} must be a list, and is {brief(cell)}")
    return cell
