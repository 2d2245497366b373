"""The pictures that prompts edit: files, looked at when prompts are read and decoded when used."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from scoretune.core import reading
from scoretune.core.errors import UserError
from scoretune.data.images import look, pixels
from scoretune.data.pictures import picture_file


@dataclass(frozen=True)
class SourcePicture:
    """The picture of a prompt: its file, its sides, and the SHA-256 of its pixels.

    `where` says which row names it. Two are equal if their pixels are.
    """

    file: Path = field(compare=False)
    height: int
    width: int
    sha256: str
    where: str = field(compare=False)

    @property
    def pixels(self) -> Tensor:
        """[3, H, W] in [0, 1]. Raises UserError if the file is no longer what it was."""
        return _pixels(self).clone()


def source_picture(where: str, column: str, cell: Any, folder: Path) -> SourcePicture:
    """The picture that a cell names, by its path from `folder`, decoded once to see that it can be.

    Raises UserError with the row for a picture that is missing or cannot be decoded.
    """
    file = picture_file(where, column, cell, folder)
    return SourcePicture(file, *_looked_at(file, where), where)


@lru_cache(maxsize=100_000)
def _seen(file: Path, changed: int) -> tuple[int, int, str]:
    height, width, stored = look(reading.read_bytes(file))
    return height, width, hashlib.sha256(stored).hexdigest()


def _looked_at(file: Path, where: str) -> tuple[int, int, str]:
    """Height, width and hash; of a file that did not change since, as they were."""
    try:
        return _seen(file, file.stat().st_mtime_ns)
    except (OSError, ValueError) as error:
        what = getattr(error, "strerror", None) or error
        raise UserError(
            f"{where}: cannot read the picture {str(file)!r} ({what}): mend it, or take the row out"
        ) from error


@lru_cache(maxsize=16)
def _pixels(picture: SourcePicture) -> Tensor:
    if _looked_at(picture.file, picture.where)[2] != picture.sha256:
        raise UserError(
            f"{picture.where}: {str(picture.file)!r} is another picture than when the prompts were "
            "read: leave it alone while a run goes on"
        )
    return pixels(picture.file).expand(3, -1, -1)
