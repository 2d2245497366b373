"""How a table of judged pictures is read: which columns say what, and row by row."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from scoretune.core.errors import UserError
from scoretune.data import judgements
from scoretune.data.formats import brief, missing_column, named_column
from scoretune.data.judgements import Columns, Identical, Judgement, Merged, Raters, is_tie
from scoretune.data.pictures import Pictures, picture_file
from scoretune.data.prompts import PROMPT_KEYS, prompt_text
from scoretune.data.tables import Opened

SIDES = {
    ("chosen", "rejected"): ("chosen", "rejected"),
    ("image_0", "image_1"): ("0", "1"),
    ("jpg_0", "jpg_1"): ("0", "1"),
}
"""What the columns of the two pictures may be called, and how other columns call the sides."""
IMAGES = ("image", "jpg", "image_path", "file_name", "path")
SAME_SHAPE = 0.02
"""Relative difference of two sides' aspect ratios, below which one picture is the other scaled."""


class JudgedRow(NamedTuple):
    """A row of a table that somebody judged: its number from 0, and what it says. A cell is None
    where it holds bytes, which stay on the disk."""

    row: int
    caption: str
    judgement: Judgement
    cells: tuple[Any, ...]
    identities: tuple[str, ...] | None


@dataclass(frozen=True)
class PictureColumns:
    """By which columns a table's pictures, prompts and judgements are known."""

    prompt: Any
    images: tuple[Any, ...]
    identities: tuple[Any, ...] | None
    judged: Columns

    def read(self, table: Opened, number: int, place: str, row: Any) -> JudgedRow | None:
        """A row, None where it says that nobody judged it. Raises UserError."""
        where = f"{table.source!r}, {place}"
        if not isinstance(row, Mapping):
            raise UserError(f"{where}: {brief(row)} is no row of a table: write an object")
        judgement = self.judged.read(where, row)
        if judgement is None:
            return None
        caption = prompt_text(f"{where}: {str(self.prompt)!r}", row.get(self.prompt))
        cells = tuple(row.get(name) for name in self.images)
        for name, cell in zip(self.images, cells, strict=True):
            if name in row or table.cells is None:
                picture_file(where, str(name), cell, table.folder)
        identities = None
        if self.identities is not None:
            identities = tuple(str(row.get(name)) for name in self.identities)
        said = JudgedRow(number, caption, judgement, cells, identities)
        first, *second = identities or cells
        if second and first is not None and first == second[0] and not is_tie(judgement.label):
            raise Identical(f"{where}: the two pictures")
        return said


def has_pairs(table: Opened) -> bool:
    """Whether a table has a column that only pairs have."""
    return any(named_column(table.names, names) is not None for names in SIDES)


def pair_columns(table: Opened) -> PictureColumns:
    """The columns of a table of pairs. Raises UserError, which names what is missing."""
    there = [both for both in SIDES if named_column(table.names, both) is not None]
    if not there:
        raise missing_column(table.source, ["chosen", "image_0", "jpg_0"], table.names)
    both, suffixes = there[0], SIDES[there[0]]
    sides = tuple(named_column(table.names, (name,)) for name in both)
    for name, side in zip(both, sides, strict=True):
        if side is None:
            raise missing_column(table.source, [name], table.names)
    certain = both == ("chosen", "rejected")
    judged = judgements.columns_of(table.source, table.names, suffixes)
    if judged.label is None and judged.votes is None and not certain:
        raise missing_column(table.source, ["label_0", "label", "votes_0"], table.names)
    uids = tuple(named_column(table.names, (f"image_{side}_uid",)) for side in suffixes)
    prompt = _prompt_column(table)
    return PictureColumns(prompt, sides, None if None in uids else uids, judged)


def like_columns(table: Opened) -> PictureColumns:
    """The columns of a table of single pictures. Raises UserError, which names what is missing."""
    image = named_column(table.names, IMAGES)
    liked = named_column(table.names, ("liked", "label"))
    if image is None:
        raise missing_column(table.source, IMAGES, table.names)
    if liked is None:
        raise missing_column(table.source, ["liked", "label"], table.names)
    judged = judgements.of_one(table.names, liked)
    return PictureColumns(_prompt_column(table), (image,), None, judged)


def _prompt_column(table: Opened) -> Any:
    name = named_column(table.names, PROMPT_KEYS)
    if name is None:
        raise missing_column(table.source, PROMPT_KEYS, table.names)
    return name


# ------------------------------------------------------------------------------------ rows


class Judged(NamedTuple):
    """A table's judged rows, what of them is of the same pictures, and the pictures."""

    rows: list[JudgedRow]
    merged: list[Merged]
    pictures: Pictures


def read_judged(table: Opened, columns: PictureColumns, raters: Raters) -> Judged:
    """All rows of a table. Raises UserError for the first that cannot be learned from."""
    places, cells, rows = [], [], []
    for number, (place, row) in enumerate(table.rows()):
        said = columns.read(table, number, place, row)
        places.append(place)
        cells.append(() if said is None else said.cells)
        if said is not None:
            rows.append(said)
    pictures = Pictures(table.source, table.folder, columns.images, places, cells, table.cells)
    keys = [_key(said, pictures) for said in rows] if raters == "soft" else [()] * len(rows)
    return Judged(
        rows, judgements.merged(keys, [said.judgement for said in rows], raters), pictures
    )


def _key(said: JudgedRow, pictures: Pictures) -> tuple[Hashable, ...]:
    """What two rows of the same prompt and pictures have in common: of bytes, their digests."""
    if said.identities is not None:
        return (said.caption, *said.identities)
    if None not in said.cells:
        return (said.caption, *said.cells)
    return (said.caption, *(digest(payload) for payload in pictures.payloads(said.row)))


def digest(payload: bytes) -> bytes:
    """By which a picture is known again."""
    return hashlib.blake2b(payload, digest_size=16).digest()


def sizes_differ(first: Sequence[int], second: Sequence[int]) -> str:
    """How two pictures of a pair, [..., H, W] each, differ: "", in "size" alone, or in "shape".

    Two sizes of one shape are the same cut once they are scaled; of two shapes a cut would show
    other parts than people compared.
    """
    (h, w), (h2, w2) = first[-2:], second[-2:]
    if (h, w) == (h2, w2):
        return ""
    return "size" if abs(w * h2 / (h * w2) - 1) < SAME_SHAPE else "shape"


def check_sizes(where: str, first: Sequence[int], second: Sequence[int], *, scaled: bool) -> None:
    """Raise UserError for a pair of two shapes, and of two sizes that are not to be `scaled`."""
    differ = sizes_differ(first, second)
    if differ == "shape" or (differ and not scaled):
        (h, w), (h2, w2) = first[-2:], second[-2:]
        raise UserError(
            f"{where}: the pictures of the pair differ in {differ}, {w}x{h} and {w2}x{h2}: "
            f"{'scale' if differ == 'size' else 'cut'} them alike, or take the row out"
        )
