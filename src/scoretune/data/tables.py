"""Tables of judgements: their rows without cells of bytes, and those on demand.

Bytes stay on the disk: a .parquet gives one row group at a time, of which a few are kept, and the
library `datasets` maps its files into memory.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from scoretune.core import reading
from scoretune.core.errors import UserError
from scoretune.data import formats
from scoretune.data.formats import brief
from scoretune.data.store import is_store
from scoretune.data.store.judged import judged_rows

KEPT = 2**28
"""Bytes of row groups that are kept; one always is."""


class Cells(Protocol):
    """The cells of pictures by the places of their rows in the table, counted from 0."""

    def read(self, rows: Sequence[int], columns: Sequence[Any]) -> list[tuple[Any, ...]]:
        """For each row its cells in these columns."""
        ...

    @property
    def together(self) -> int:
        """How many blocks are kept at once."""
        ...

    def block(self, row: int) -> int:
        """Which rows are read together with this one: all that have the same number."""
        ...


@dataclass(frozen=True)
class Opened:
    """A table by its parts: all columns' `names`, `count` rows, which `rows()` reads without cells
    of bytes, and `cells` where there may be such, else None. Paths are relative to `folder`."""

    source: str
    folder: Path
    names: tuple[Any, ...]
    rows: Callable[[], Iterable[formats.Row]]
    count: int
    cells: Cells | None = None


def opened(source: str, stem: str) -> Opened:
    """A table of a file, of `datasets:ID[:SPLIT]`, of a store of feedback, or of a folder with
    `STEM.jsonl` (or another table of that name, or one table at all, or the .parquet parts of one).

    Raises UserError, in one line, for what cannot be read.
    """
    if is_store(source):
        store, names, judged = judged_rows(source, stem)
        return Opened(store.name, store.folder.folder, names, lambda: judged, len(judged))
    if source.startswith(formats.LIBRARY):
        dataset, column = formats.dataset_of(source.removeprefix(formats.LIBRARY))
        if column is not None:
            raise UserError(
                f"{source!r} names the column {column!r}, and a judgement has several: leave it out"
            )
        return Opened(
            source,
            Path(),
            tuple(dataset.column_names),
            partial(formats.dataset_rows, dataset),
            len(dataset),
            InDataset(dataset),
        )
    path = Path(source)
    files = _tables(path, stem) if path.is_dir() else [path]
    if all(file.suffix.lower() == ".parquet" and file.is_file() for file in files):
        parts = InParquet(files)
        rows_of = partial(_of_parts, files)
        return Opened(source, files[0].parent, parts.names, rows_of, parts.count, parts)
    rows = list(formats.rows(str(files[0])))
    if not rows:
        raise UserError(f"{str(files[0])!r} is empty: write one pair a row")
    place, item = rows[0]
    if not isinstance(item, Mapping):
        raise UserError(
            f"{str(files[0])!r}, {place}: {brief(item)} is no row of a table: write an object such "
            'as {"prompt": "a cat", "chosen": "a.png", "rejected": "b.png"}'
        )
    keys = dict.fromkeys(name for _, row in rows if isinstance(row, Mapping) for name in row)
    return Opened(source, files[0].parent, tuple(keys), lambda: rows, len(rows))


def _tables(folder: Path, stem: str) -> list[Path]:
    """The table of a folder, or the .parquet parts of it."""
    tables = [
        f for f in sorted(folder.iterdir()) if f.is_file() and f.name.endswith(formats.ENDINGS)
    ]
    named = [file for file in tables if file.name.partition(".")[0] == stem]
    if len(named) == 1 or (not named and len(tables) == 1):
        return named or tables
    if tables and not named and all(file.suffix == ".parquet" for file in tables):
        return tables
    what = f"{len(named or tables)} tables" if tables else "no table"
    raise UserError(
        f"the folder {str(folder)!r} has {what}: write one {stem}.jsonl beside the pictures, with "
        "a row for each judgement"
    )


def _of_parts(files: Sequence[Path]) -> Iterator[formats.Row]:
    for file in files:
        for place, row in formats.rows(str(file)):
            yield (place if len(files) == 1 else f"{file.name}, {place}"), row


# -------------------------------------------------------------------------- bytes on demand


class InParquet:
    """Cells of .parquet files, of the same columns, one row group at a time."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.names: tuple[str, ...] = ()
        self.files: list[tuple[Path, Any]] = []
        self.starts: list[int] = []
        self.groups: list[tuple[int, int]] = []
        self.kept: OrderedDict[tuple[int, tuple[Any, ...]], Any] = OrderedDict()
        start = 0
        for place, path in enumerate(files):
            with formats.file_errors(str(path)):
                file = formats.opened_parquet(path)
            names = tuple(file.schema_arrow.names)
            if place and names != self.names:
                raise UserError(
                    f"{path.name} has not the columns of {files[0].name}: separate them"
                )
            self.names = names
            self.files.append((path, file))
            for group in range(file.num_row_groups):
                self.starts.append(start)
                self.groups.append((place, group))
                start += file.metadata.row_group(group).num_rows
        self.count = start

    @property
    def together(self) -> int:
        groups = (self.files[p][1].metadata.row_group(g) for p, g in self.groups)
        largest = max((group.total_byte_size for group in groups), default=1)
        return max(1, int(KEPT / (1.25 * largest)))  # with what each takes beside its cells

    def block(self, row: int) -> int:
        return bisect_right(self.starts, row) - 1

    def read(self, rows: Sequence[int], columns: Sequence[Any]) -> list[tuple[Any, ...]]:
        cells = []
        for row in rows:
            block = self.block(row)
            table = self._group(block, tuple(columns))
            at = row - self.starts[block]
            cells.append(tuple(table.column(name)[at].as_py() for name in columns))
        return cells

    def _group(self, block: int, columns: tuple[Any, ...]) -> Any:
        key = (block, columns)
        if key in self.kept:
            self.kept.move_to_end(key)
            return self.kept[key]
        place, group = self.groups[block]
        path, file = self.files[place]
        self._check_size(path, file.metadata.row_group(group), columns)
        with formats.file_errors(str(path)), formats.arrow_errors():
            table = file.read_row_group(group, columns=list(columns))
        while self.kept and table.nbytes + sum(old.nbytes for old in self.kept.values()) > KEPT:
            self.kept.popitem(last=False)
        self.kept[key] = table
        return table

    def _check_size(self, path: Path, group: Any, columns: Sequence[Any]) -> None:
        parts = (group.column(i) for i in range(group.num_columns))
        size = sum(
            part.total_uncompressed_size
            for part in parts
            if part.path_in_schema.partition(".")[0] in columns
        )
        if size > reading.memory() // 4:
            raise UserError(
                f"a row group of {str(path)!r} has {size >> 20:,} MiB of pictures, more than a "
                "quarter of the memory: write it with smaller row groups, or give it as datasets:"
            )


@dataclass(frozen=True)
class InDataset:
    """Cells of a datasets.Dataset, which maps its files into memory."""

    dataset: Any

    @property
    def together(self) -> int:
        return 1

    def block(self, row: int) -> int:
        return 0

    def read(self, rows: Sequence[int], columns: Sequence[Any]) -> list[tuple[Any, ...]]:
        arrow = self.dataset.with_format("arrow")
        tables = (arrow[row : row + 1] for row in rows)
        return [tuple(table.column(name)[0].as_py() for name in columns) for table in tables]
