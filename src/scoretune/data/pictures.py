"""Pictures in tables: where each lies, read when it is asked for.

A cell is a path (relative to the table's folder), bytes, or the pair {bytes, path} of the library
`datasets`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from scoretune.core import reading
from scoretune.core.errors import UserError
from scoretune.data.formats import brief
from scoretune.data.images import pixels
from scoretune.data.tables import Cells


@dataclass(frozen=True)
class Pictures:
    """The pictures of some rows of a table: those of `columns`, at most a batch in memory.

    `paths` has them where the cells are texts; else they are read from `cells`. `places` says of
    each row of the table where it stands, for complaints.
    """

    source: str
    folder: Path
    columns: tuple[Any, ...]
    places: Sequence[str]
    paths: Sequence[tuple[Any, ...]] | None
    cells: Cells | None = field(repr=False, default=None)

    def block(self, row: int) -> int:
        """Rows with one number are read together."""
        return 0 if self.cells is None or self.paths is not None else self.cells.block(row)

    def cells_of(self, row: int) -> tuple[Path | bytes, ...]:
        """Where the pictures of a row lie: files, or their bytes. Raises UserError."""
        if self.paths is not None:
            cells = self.paths[row]
        else:
            assert self.cells is not None
            cells = self.cells.read([row], self.columns)[0]
        where = f"{self.source!r}, {self.places[row]}"
        return tuple(
            stored_picture(where, str(name), cell, self.folder)
            for name, cell in zip(self.columns, cells, strict=True)
        )

    def read(self, row: int) -> tuple[Tensor, ...]:
        """The pictures of a row, each [3, H, W] in [0, 1]. Raises UserError with the row."""
        images = []
        for name, cell in zip(self.columns, self.cells_of(row), strict=True):
            try:
                images.append(pixels(cell).expand(3, -1, -1))
            except ValueError as error:
                which = f" {str(cell)!r}" if isinstance(cell, Path) else ""
                raise UserError(
                    f"{self.source!r}, {self.places[row]}: cannot read the picture {name}{which} "
                    f"({error}): mend it, or take the row out"
                ) from error
        return tuple(images)


def stored_picture(where: str, name: str, cell: Any, folder: Path) -> Path | bytes:
    """A cell that may hold bytes, or bytes and a path, as `picture_file` for a path alone."""
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    return cell if isinstance(cell, bytes) and cell else picture_file(where, name, cell, folder)


def picture_file(where: str, name: str, cell: Any, folder: Path) -> Path:
    """A cell as a file that exists. Raises UserError."""
    if not isinstance(cell, str) or not cell.strip():
        raise UserError(
            f"{where}: {name!r} must be the path of a picture, and is {brief(cell or None)}"
        )
    if cell.startswith(("http://", "https://")):
        raise UserError(
            f"{where}: {name!r} is an address, {brief(cell)}: download the picture first"
        )
    file = folder / cell
    try:
        reading.check_regular(file)
    except (OSError, ValueError) as error:  # a path with a NUL is a ValueError
        what = getattr(error, "strerror", None) or error
        raise UserError(f"{where}: there is no picture {name} {str(file)!r}: {what}") from error
    return file
