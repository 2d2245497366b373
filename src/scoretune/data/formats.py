"""What the formats of prompt files hold: one text or object a prompt, and where it stands."""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scoretune.core.errors import UserError, first_line, unknown

INSTALL = "pip install 'scoretune[data]'"

TABLES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
Found = tuple[str, Any]
"""Where an item stands, for a complaint, and the item."""


def of_file(source: str) -> Iterator[Found]:
    """The items of a file by its ending. Raises UserError for what cannot be read."""
    path = Path(source)
    kind, payload = _kind(path), _bytes(path)
    if kind == ".parquet":
        return _parquet(source, io.BytesIO(payload))
    try:
        text = payload.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise unreadable(source, "not a UTF-8 text file") from error
    if kind in (".csv", ".tsv"):
        return _table(source, text, kind)
    if kind == ".jsonl":
        return _json_lines(source, text)
    if kind == ".json":
        return _json(source, text)
    lines = enumerate(io.StringIO(text, None), start=1)
    return ((f"line {number}", line.strip()) for number, line in lines if line.strip())


def column_of(source: str) -> tuple[str, str | None]:
    """The file and the column of `FILE:COLUMN`, where FILE is a table and the whole is no file."""
    file, _, column = source.rpartition(":")
    if column and _kind(Path(file)) in TABLES and not Path(source).exists():
        return file, column
    return source, None


def _kind(path: Path) -> str:
    suffix = path.with_suffix("").suffix if path.suffix.lower() == ".gz" else path.suffix
    return suffix.lower()


def _bytes(path: Path) -> bytes:
    try:
        packed = path.read_bytes()
        return gzip.decompress(packed) if path.suffix.lower() == ".gz" else packed
    except FileNotFoundError as error:
        raise _missing(path) from error
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or "not a whole gzip file"
        raise unreadable(str(path), reason) from error


def _missing(path: Path) -> UserError:
    """An error for a file that is not there, with the nearest name of its folder."""
    there = [one.name for one in path.parent.glob("*") if one.is_file()]
    near = difflib.get_close_matches(path.name, there, n=1, cutoff=0.6)
    if not near:
        return unreadable(str(path), "No such file or directory")
    return UserError(
        f"there is no prompt file {str(path)!r}: did you mean {str(path.with_name(near[0]))!r}?"
    )


def unreadable(source: str, reason: str) -> UserError:
    """An error for a file that cannot be read, with the kinds that can."""
    return UserError(
        f"cannot read the prompt file {source!r} ({reason}): give a text file with one prompt a "
        "line, a .csv, .tsv, .json, .jsonl or .parquet file, or 'scenes'"
    )


def _table(source: str, text: str, kind: str) -> Iterator[Found]:
    """Rows below a line of names. In .tsv a quote is a character, unless it wraps a whole cell."""
    stream = io.StringIO(text, "" if kind == ".csv" else None)
    reader = csv.reader(stream) if kind == ".csv" else map(_cells, stream)
    names: list[str] = []
    line = 0
    try:
        for line, cells in enumerate(reader, start=1):
            if not any(cell.strip() for cell in cells):
                continue
            if not names:
                names = [cell.strip() for cell in cells]
                continue
            if len(cells) != len(names):
                hint = "put prompts with commas in quotes" if kind == ".csv" else "mind the tabs"
                raise UserError(
                    f"{source!r}, row {line}: {len(cells)} cells below {len(names)} names: {hint}"
                )
            yield f"row {line}", dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise UserError(
            f"{source!r}, row {line + 1}: {error}: write a table with commas"
        ) from error


def _cells(line: str) -> list[str]:
    cells = line.rstrip("\n").split("\t")
    whole = re.compile(r'"(?:[^"]|"")*"')
    return [c[1:-1].replace('""', '"') if whole.fullmatch(c) else c for c in cells]


def _json_lines(source: str, text: str) -> Iterator[Found]:
    for number, line in enumerate(io.StringIO(text, None), start=1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except ValueError as error:
                raise UserError(
                    f"{source!r}, line {number}, is not JSON ({error}): write one object a line"
                ) from error


def _json(source: str, text: str) -> Iterator[Found]:
    """A list; or lists by their task, as a benchmark of several styles has them."""
    try:
        tree = json.loads(text)
    except ValueError as error:
        raise UserError(
            f"{source!r} is not JSON ({error}): write a list; one object a line is .jsonl"
        ) from error
    if isinstance(tree, list):
        yield from ((f"entry {i}", item) for i, item in enumerate(tree, start=1))
        return
    if not isinstance(tree, dict) or not all(isinstance(part, list) for part in tree.values()):
        raise UserError(
            f'{source!r} holds no list of prompts: write ["a cat", ...] or [{{"prompt": "a cat"}}]'
        )
    for task, part in tree.items():
        for i, item in enumerate(part, start=1):
            told = {"prompt": item} if isinstance(item, str) else item
            named = {"task": task, **told} if isinstance(told, dict) else told
            yield f"{task!r}, entry {i}", named


def _parquet(source: str, stream: io.BytesIO) -> Iterator[Found]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"{source!r} is .parquet, which needs pyarrow: {INSTALL}") from error
    try:
        file = parquet.ParquetFile(stream)
        table = file.read([f.name for f in file.schema_arrow if _plain(f)])
    except pyarrow.ArrowException as error:
        raise unreadable(source, first_line(error)) from error
    return _of_arrow(table)


def _of_arrow(table: Any) -> Iterator[Found]:
    return ((f"row {i}", row) for i, row in enumerate(table.to_pylist(), start=1))


def _plain(field: Any) -> bool:
    """Whether a column holds no pictures or sounds, which are not read."""
    return "binary" not in str(field.type)


# ------------------------------------------------------------------- the datasets library


def of_datasets(name: str) -> tuple[Iterator[Found], str | None]:
    """The rows of `ID[:SPLIT[:COLUMN]]` and the column, if one is named; what is cached first.

    Without a split: train, or the first that there is. Raises UserError without the library, and
    for an id, split or column that does not exist.
    """
    identity, split, column = [*name.split(":"), "", ""][:3]
    found = _loaded(identity)
    split = split or ("train" if "train" in found else next(iter(found)))
    if split not in found:
        raise unknown(f"split of the dataset {identity!r}", split, found)
    rows = found[split]
    if column and column not in rows.column_names:
        raise unknown(f"column of the dataset {identity!r}", column, rows.column_names)
    table = rows.with_format("arrow")[:]
    plain = [field.name for field in table.schema if _plain(field)]
    return _of_arrow(table.select(plain)), column or None


def _loaded(identity: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"datasets:{identity} needs the library datasets: {INSTALL}") from error
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
