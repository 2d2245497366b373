"""Tables of numbers from .csv, .csv.gz and .parquet files: every numeric column, or named ones."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoretune.core.errors import UserError, unknown


@dataclass(frozen=True)
class Table:
    """Numbers [rows, columns] and the columns' names."""

    values: Tensor
    names: tuple[str, ...]

    def chosen(self, columns: Sequence[str]) -> Table:
        """Only the named columns, in that order; all where none is named."""
        if not columns:
            return self
        for name in columns:
            if name not in self.names:
                raise unknown("column", name, self.names)
        index = [self.names.index(name) for name in columns]
        return Table(self.values[:, index], tuple(columns))


def read_table(path: Path, columns: Sequence[str] = ()) -> Table:
    """The numeric columns of a file, or the named ones. Raises UserError for what is no number."""
    table = _parquet(path, columns) if path.suffix == ".parquet" else _csv(path, columns)
    if not table.names:
        raise UserError(f"{str(path)!r} has no column of numbers: write one sample a row")
    return table


def _csv(path: Path, columns: Sequence[str]) -> Table:
    try:
        packed = path.read_bytes()
        text = (gzip.decompress(packed) if path.suffix == ".gz" else packed).decode("utf-8-sig")
        rows = [row for row in csv.reader(io.StringIO(text)) if row]
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"cannot read {str(path)!r} ({error}): give a UTF-8 table with commas"
        ) from error
    if not rows:
        raise UserError(f"{str(path)!r} is empty: write a line of names and one sample a row")
    headed = any(_number(cell) is None for cell in rows[0])
    names = [cell.strip() for cell in rows[0]] if headed else [str(i) for i in range(len(rows[0]))]
    body = rows[1:] if headed else rows
    for place, row in enumerate(body, start=1 + headed):
        if len(row) != len(names):
            raise UserError(
                f"row {place} of {str(path)!r} has {len(row)} cells where the first has "
                f"{len(names)}: make them equal"
            )
    for name in columns:
        if name not in names:
            raise unknown(f"column of {path.name}", name, names)
    wanted = list(columns) or [
        name for i, name in enumerate(names) if body and _number(body[0][i]) is not None
    ]
    found = [_column(path, body, names.index(name), name, 1 + headed) for name in wanted]
    values = torch.stack(found, 1).float() if found else torch.zeros(len(body), 0)
    return Table(values, tuple(wanted))


def _column(path: Path, body: list[list[str]], i: int, name: str, first: int) -> Tensor:
    found = []
    for place, row in enumerate(body, start=first):
        value = _number(row[i])
        if value is None:
            raise UserError(
                f"row {place}, column {name!r} of {str(path)!r} is {row[i]!r}, not a number: mend "
                "it, or name the columns to take with dataset.columns"
            )
        found.append(value)
    return torch.tensor(found, dtype=torch.float64)


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _parquet(path: Path, columns: Sequence[str]) -> Table:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise UserError(
            f"reading {path.name!r} needs pyarrow: pip install 'scoretune[data]', or save a .csv"
        ) from None
    try:
        table = parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"cannot read {str(path)!r} ({error}): give a .parquet table") from error
    for name in columns:
        if name not in table.column_names:
            raise unknown(f"column of {path.name}", name, table.column_names)
    kinds = {field.name: field.type for field in table.schema}
    numeric = [name for name, kind in kinds.items() if _is_numeric(kind)]
    for name in columns:
        if name not in numeric:
            raise UserError(f"column {name!r} of {path.name} holds {kinds[name]}, not numbers")
    wanted = list(columns) or numeric
    if not wanted:
        return Table(torch.zeros(len(table), 0), ())
    taken = [torch.tensor(_filled(table.column(name))) for name in wanted]
    return Table(torch.stack(taken, 1).float(), tuple(wanted))


def _filled(column: Any) -> Any:
    """Numbers as float64, with what is missing as NaN: it is refused later, with its place."""
    import numpy as np

    return np.array(column.to_numpy(), dtype=np.float64)


def _is_numeric(kind: Any) -> bool:
    import pyarrow.types as types

    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind))
