"""How large prompts want their pictures: the columns `width` and `height` of their file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from scoretune.core.config.base import SIDE
from scoretune.core.errors import UserError
from scoretune.data.formats import brief, named_column


@dataclass(frozen=True)
class Size:
    """The sides of a picture in pixels; `where` says which row asks for them."""

    width: int
    height: int
    where: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


def size_in(where: str, row: Mapping[str, Any]) -> Size | None:
    """The size that a row asks for; None where it has no such columns, or both cells are empty.

    Raises UserError for one side without the other, and for what is no number of pixels.
    """
    sides = {name: _pixels(where, name, row) for name in ("width", "height")}
    width, height = sides.values()
    if width and height:
        return Size(width, height, where)
    if width or height:
        there, missing = sides if width else reversed(sides)
        raise UserError(
            f"{where}: there is a {there} and no {missing}: give both columns, or neither"
        )
    return None


def _pixels(where: str, name: str, row: Mapping[str, Any]) -> int:
    """A cell as a number of pixels; 0 where there is none, as empty cells of tables are."""
    key = named_column(row, (name,))
    cell = None if key is None else row[key]
    if cell is None or cell == "" or (isinstance(cell, float) and math.isnan(cell)):
        return 0
    try:
        side = math.nan if isinstance(cell, bool) else float(cell)
    except (TypeError, ValueError, OverflowError):
        side = math.nan
    if not (side.is_integer() and 0 < side <= SIDE):
        raise UserError(
            f"{where}: the {name} must be a whole number of pixels from 1 to {SIDE}, and is "
            f"{brief(cell)}; where the column is not of the picture to draw, call it otherwise"
        )
    return int(side)
