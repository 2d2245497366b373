"""Pictures in tables: where each lies, read when it is asked for.

A cell is a path (relative to the table's folder), bytes, or the pair {bytes, path} of the library
`datasets`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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

    `paths` has the cells of each row of the table that are texts; where they are None, bytes are
    read from `cells`. `places` says where each row stands, for complaints.
    """

    source: str
    folder: Path
    columns: tuple[Any, ...]
    places: Sequence[str]
    paths: Sequence[tuple[Any, ...]]
    cells: Cells | None = field(repr=False, default=None)

    @property
    def together(self) -> int:
        """How many blocks may be read in turn and each is read once."""
        return 1 if self.cells is None else self.cells.together

    def block(self, row: int) -> int:
        """Rows with one number are read together."""
        return self.cells.block(row) if self.cells and None in self.paths[row] else 0

    def payloads(self, row: int) -> tuple[bytes, ...]:
        """The files of a row's pictures, as they are. Raises UserError with the row."""
        cells = self.paths[row]
        if None in cells:
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
        for name, payload in zip(self.columns, self.payloads(row), strict=True):
            with self.unreadable(row, name):
                images.append(pixels(payload).expand(3, -1, -1))
        return tuple(images)

    @contextmanager
    def unreadable(self, row: int, column: Any) -> Iterator[None]:
        """Within this context a ValueError is said of a row's picture, as a UserError."""
        try:
            yield
        except ValueError as error:
            raise UserError(
                f"{self.source!r}, {self.places[row]}: cannot read the picture {column} ({error}): "
                "mend it, or take the row out"
            ) from error


def stored_picture(where: str, name: str, cell: Any, folder: Path) -> bytes:
    """The bytes of a cell that holds them, a path, or both. Raises UserError."""
    if isinstance(cell, Mapping):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes) and cell:
        return cell
    file = picture_file(where, name, cell, folder)
    try:
        return reading.read_bytes(file)
    except OSError as error:
        raise UserError(f"{where}: cannot read {str(file)!r}: {error.strerror}") from error


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
