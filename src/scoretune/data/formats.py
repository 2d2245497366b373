"""Rows of files of every common kind, by a function in READERS, and of the `datasets` library."""

from __future__ import annotations

import csv
import difflib
import io
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoretune.core import reading
from scoretune.core.errors import UserError, first_line, listed, unknown

INSTALL = "pip install 'scoretune[data]'"
Row = tuple[str, Any]
"""Where an item stands, for a complaint, and the item: a text, or an object by its columns."""
LIBRARY = "datasets:"
MOST_ROWS = 2**21
"""Of a file: as Python's objects they take about a gigabyte."""


class Unreadable(ValueError):
    """Why a file's bytes are not of its format."""


class Malformed(ValueError):
    """What is wrong within a file, in words that go on from its name."""


# --------------------------------------------------------------------------------- formats


def _text(payload: bytes) -> str:
    try:
        return reading.decoded(payload)
    except ValueError as error:
        raise Unreadable(str(error)) from error


def _lines(payload: bytes) -> Iterator[Row]:
    for number, line in enumerate(io.StringIO(_text(payload), None), start=1):
        if line.strip():
            yield f"line {number}", line.strip()


def _csv(payload: bytes) -> Iterator[Row]:
    text = _text(payload)
    first = text.lstrip().partition("\n")[0]
    for mark, name in ((";", "semicolons"), ("\t", "tabs")):
        if mark in first and "," not in first:
            raise Malformed(f", row 1, has {name} and no comma: put commas between the cells")
    reader = csv.reader(io.StringIO(text, ""), strict=True)
    return _below_names(reader, "put texts with commas in quotes")


def _tsv(payload: bytes) -> Iterator[Row]:
    """A quote is a character, unless it wraps a whole cell."""
    whole = re.compile(r'"(?:[^"]|"")*"')
    cells = (line.rstrip("\n").split("\t") for line in io.StringIO(_text(payload), None))
    rows = ([c[1:-1].replace('""', '"') if whole.fullmatch(c) else c for c in row] for row in cells)
    return _below_names(rows, "mind the tabs")


def _below_names(rows: Iterator[list[str]], hint: str) -> Iterator[Row]:
    """Rows as objects by the names of the first, or by 0, 1, … where that holds numbers alone."""
    names: list[str] = []
    line = 0
    try:
        for line, cells in enumerate(rows, start=1):
            if not any(cell.strip() for cell in cells):
                continue
            if not names:
                bare = all(_number(cell) is not None for cell in cells)
                names = [str(i) if bare else cell.strip() for i, cell in enumerate(cells)]
                if not bare:
                    continue
            if len(cells) != len(names):
                raise Malformed(
                    f", row {line}: {len(cells)} cells where the first row has {len(names)}: {hint}"
                )
            yield f"row {line}", dict(zip(names, cells, strict=True))
    except csv.Error as error:
        what, fix = str(error), "write a table with commas"
        if what == "unexpected end of data":  # what csv says of an open quote, and of nothing else
            what, fix = "a quote opens and never closes", "close it, or double it within a cell"
        raise Malformed(f", row {line + 1}: {what}: {fix}") from error


def _json_lines(payload: bytes) -> Iterator[Row]:
    for place, line in _lines(payload):
        try:
            yield place, reading.parsed_json(line)
        except ValueError as error:
            raise Malformed(f", {place}, is not JSON ({error}): write one object a line") from error


def _json(payload: bytes) -> Iterator[Row]:
    """A list; or lists by their task, as a benchmark of several styles has them."""
    try:
        tree = reading.parsed_json(_text(payload))
    except Unreadable:
        raise
    except ValueError as error:
        raise Malformed(
            f" is not JSON ({error}): write a list; one object a line is .jsonl"
        ) from error
    if isinstance(tree, list):
        yield from ((f"entry {i}", item) for i, item in enumerate(tree, start=1))
        return
    if not isinstance(tree, dict) or not all(isinstance(part, list) for part in tree.values()):
        raise Malformed(' holds no list of prompts: write ["a cat", ...] or [{"prompt": "a cat"}]')
    for task, part in tree.items():
        for i, item in enumerate(part, start=1):
            row = {"prompt": item} if isinstance(item, str) else item
            yield f"{task!r}, entry {i}", {"task": task, **row} if isinstance(row, dict) else row


def _parquet(source: bytes | Path) -> Iterator[Row]:
    """Rows by batches: no more than one is in memory, and nothing of the columns with bytes."""
    file = opened_parquet(source)
    plain = [field.name for field in file.schema_arrow if _plain(field)]
    count = 0
    with arrow_errors():
        for batch in file.iter_batches(batch_size=4096, columns=plain):
            for row in batch.to_pylist() if plain else [{}] * batch.num_rows:
                count += 1
                yield f"row {count}", row


def opened_parquet(source: bytes | Path) -> Any:
    """A pyarrow.parquet.ParquetFile. Raises Malformed or Unreadable for what is none."""
    parquet = parquet_library()
    with arrow_errors():
        file = parquet.ParquetFile(io.BytesIO(source) if isinstance(source, bytes) else source)
        _check_rows(file.metadata.num_rows)
    return file


def parquet_library() -> Any:
    """The module pyarrow.parquet. Raises Malformed where it is not installed."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise Malformed(f" is .parquet, which needs pyarrow: {INSTALL}") from error
    return parquet


@contextmanager
def arrow_errors() -> Iterator[None]:
    """Within this context what pyarrow says of a file is Unreadable."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:  # a broken page is an OSError
        raise Unreadable(first_line(error)) from error


def _check_rows(count: int) -> None:
    if count > MOST_ROWS:
        raise Malformed(f" has more than {MOST_ROWS:,} rows: give a part of it")


def _plain(field: Any) -> bool:
    """Whether a column holds no pictures or sounds, which are not read."""
    return "binary" not in str(field.type)


READERS: dict[str, Callable[[bytes], Iterator[Row]]] = {
    ".csv": _csv,
    ".tsv": _tsv,
    ".json": _json,
    ".jsonl": _json_lines,
    ".parquet": _parquet,
}
ENDINGS = tuple(f"{ending}{packed}" for ending in READERS for packed in ("", ".gz"))
TABLE = f"a table, {', '.join(READERS)}, each perhaps as .gz"


# ------------------------------------------------------------------------------------ files


def rows(source: str, wanted: str = TABLE, name: str = "") -> Iterator[Row]:
    """The rows of a file by its ending, lines of text where it has another; or of `datasets:ID`.

    Errors call it by `name` and say what is `wanted`. Raises UserError for what cannot be read.
    """
    if source.startswith(LIBRARY):
        yield from of_datasets(source.removeprefix(LIBRARY))[0]
        return
    path = Path(source)
    with file_errors(source, wanted, name):
        if path.suffix.lower() == ".parquet":  # too large to be read whole
            with _disk_errors(path, name):
                reading.check_regular(path)
            items = _parquet(path)
        else:
            items = READERS.get(ending(path), _lines)(_payload(path, name))
        for count, item in enumerate(items, start=1):
            _check_rows(count)
            yield item


@contextmanager
def file_errors(source: str, wanted: str = TABLE, name: str = "") -> Iterator[None]:
    """Within this context what is Unreadable or Malformed becomes a UserError that names it."""
    try:
        yield
    except Unreadable as error:
        called = f"the {name} {source!r}" if name else repr(source)
        raise UserError(f"cannot read {called} ({error}): give {wanted}") from error
    except Malformed as error:
        raise UserError(f"{source!r}{error}") from error


def column_of(source: str) -> tuple[str, str | None]:
    """The file and the column of `FILE:COLUMN`, where FILE is a table and the whole is no file."""
    file, _, column = source.rpartition(":")
    if column and ending(Path(file)) in READERS and not Path(source).exists():
        return file, column
    return source, None


def named_column(item: Iterable[Any], names: Sequence[str]) -> Any:
    """Of a row's columns the first of these `names`, as it is written there (capitals do not
    matter); None where there is none."""
    keys = {str(key).strip().lower(): key for key in item}
    return next((keys[name] for name in names if name in keys), None)


def missing_column(source: str, names: Sequence[str], there: Iterable[Any]) -> UserError:
    """An error for a table that has none of the columns `names`, with the nearest that it has."""
    have = [str(name) for name in there]
    lower = {name.lower(): name for name in have}
    near = [difflib.get_close_matches(name, lower, n=1, cutoff=0.6) for name in names]
    guess = next(
        ((lower[close[0]], name) for close, name in zip(near, names, strict=True) if close), None
    )
    hint = f"name one {names[0]!r}"
    if guess is not None:
        hint = f"did you mean {guess[0]!r}? Name it {guess[1]!r}"
    wanted = f"{', '.join(names[:-1])} or {names[-1]}" if names[1:] else names[0]
    return UserError(f"{source!r} has no column {wanted}, and has {listed(have) or 'none'}: {hint}")


def brief(item: Any) -> str:
    """What a cell holds, short enough for a complaint."""
    text = "missing" if item is None else repr(item)
    return text if len(text) <= 40 else f"{text[:37]}..."


def ending(path: Path) -> str:
    """By which a file's format is known: the last, or the one before .gz."""
    suffix = path.with_suffix("").suffix if path.suffix.lower() == ".gz" else path.suffix
    return suffix.lower()


def _payload(path: Path, name: str) -> bytes:
    with _disk_errors(path, name):
        packed = reading.read_bytes(path)
        return reading.unpacked(packed) if path.suffix.lower() == ".gz" else packed


@contextmanager
def _disk_errors(path: Path, name: str) -> Iterator[None]:
    """Within this context a file that is not there has the nearest name said; others say why."""
    try:
        yield
    except FileNotFoundError as error:
        there = [one.name for one in path.parent.glob("*") if one.is_file()]
        near = difflib.get_close_matches(path.name, there, n=1, cutoff=0.6)
        if not near:
            raise Unreadable("No such file or directory") from error
        raise UserError(
            f"there is no {name or 'file'} {str(path)!r}: did you mean "
            f"{str(path.with_name(near[0]))!r}?"
        ) from error
    except (OSError, ValueError) as error:  # a path with a NUL is a ValueError
        raise Unreadable(getattr(error, "strerror", None) or str(error)) from error


# ------------------------------------------------------------------- the datasets library


def of_datasets(name: str) -> tuple[Iterator[Row], str | None]:
    """The rows of `ID[:SPLIT[:COLUMN]]` and the column, if one is named."""
    dataset, column = dataset_of(name)
    return dataset_rows(dataset), column


def dataset_rows(dataset: Any) -> Iterator[Row]:
    """The rows of a datasets.Dataset without its columns of bytes, a batch at a time."""
    arrow, step = dataset.with_format("arrow"), 4096
    for start in range(0, len(dataset), step):
        table = arrow[start : start + step]
        plain = table.select([field.name for field in table.schema if _plain(field)])
        rows = plain.to_pylist() if plain.column_names else [{}] * len(table)
        yield from ((f"row {i}", row) for i, row in enumerate(rows, start=start + 1))


def dataset_of(name: str) -> tuple[Any, str | None]:
    """The datasets.Dataset of `ID[:SPLIT[:COLUMN]]` and the column; what is cached first.

    Without a split: train, or the first that there is. Raises UserError without the library, and
    for an id, split or column that does not exist.
    """
    identity, split, column = [*name.split(":"), "", ""][:3]
    splits = _loaded(identity)
    split = split or ("train" if "train" in splits else next(iter(splits)))
    if split not in splits:
        raise unknown(f"split of the dataset {identity!r}", split, splits)
    dataset = splits[split]
    if column and column not in dataset.column_names:
        raise unknown(f"column of the dataset {identity!r}", column, dataset.column_names)
    return dataset, column or None


def _loaded(identity: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"{LIBRARY}{identity} needs the library datasets: {INSTALL}") from error
    before = datasets.config.HF_HUB_OFFLINE
    failure: Exception | None = None
    for offline in dict.fromkeys((True, before)):
        datasets.config.HF_HUB_OFFLINE = offline
        try:
            return datasets.load_dataset(identity)
        except Exception as error:  # no hub, no such id, a broken file: each has its own kind
            failure = error
        finally:
            datasets.config.HF_HUB_OFFLINE = before
    reason = first_line(failure)
    raise UserError(
        f"cannot load the dataset {identity!r} ({reason}): give an id of the hub, or a folder of "
        "tables, as datasets:ID:SPLIT:COLUMN"
    ) from failure


# ------------------------------------------------------------------------ tables of numbers


@dataclass(frozen=True)
class Table:
    """Numbers [rows, columns] and the columns' names."""

    values: Tensor
    names: tuple[str, ...]

    def only(self, columns: Sequence[str]) -> Table:
        """The named columns, in that order; all where none is named."""
        if not columns:
            return self
        for name in columns:
            if name not in self.names:
                raise unknown("column", name, self.names)
        index = [self.names.index(name) for name in columns]
        return Table(self.values[:, index], tuple(columns))


def read_table(source: str, columns: Sequence[str] = ()) -> Table:
    """The numeric columns of a table, or the named; NaN: missing. Raises UserError for texts."""
    placed = list(rows(source))
    if not placed:
        raise UserError(f"{source!r} is empty: write a line of names and one sample a row")
    for place, row in placed:
        if not isinstance(row, Mapping):
            raise UserError(f"{source!r}, {place}: write an object of numbers by their names")
    names = [str(name) for name in placed[0][1]]
    for name in columns:
        if name not in names:
            raise unknown(f"column of {Path(source).name}", name, names)
    written = ending(Path(source)) in (".csv", ".tsv")  # where every cell is a text
    numeric = [name for name in names if _number(_first(placed, name), written) is not None]
    if not columns and not numeric:
        raise UserError(f"{source!r} has no column of numbers: write one sample a row")
    wanted = list(columns) or numeric
    values = []
    for place, row in placed:
        for name in wanted:
            value = _number(row.get(name, math.nan), written)
            if value is None:
                raise UserError(
                    f"{place}, column {name!r} of {source!r} is {row[name]!r}, not a number: mend "
                    "it, or name the columns to take with dataset.columns"
                )
            values.append(value)
    table = torch.tensor(values, dtype=torch.float64).view(len(placed), len(wanted))
    return Table(table.float(), tuple(wanted))


def _first(placed: Sequence[Row], name: str) -> Any:
    """The first cell of a column that is not missing."""
    return next((row[name] for _, row in placed if row.get(name) is not None), None)


def _number(cell: Any, written: bool = True) -> float | None:
    """A cell as a number, NaN where it is missing; of a text only where all cells are `written`."""
    if cell is None:
        return math.nan
    if not isinstance(cell, (int, float, str) if written else (int, float)):
        return None
    try:
        return float(cell)
    except ValueError:
        return None
