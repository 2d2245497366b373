"""Little pictures and tables of judgements for tests."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def picture(level: int, width: int = 8, height: int = 8, kind: str = "PNG") -> bytes:
    """A grey picture as bytes."""
    stream = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), level, np.uint8)).save(stream, kind)
    return stream.getvalue()


def bomb() -> bytes:
    """A picture of a few bytes whose header promises 10000 pixels a side."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + picture(0)[33:]


def lines(path: Path, rows: Iterable[Any]) -> str:
    """Writes rows as JSON lines and gives the file's path; a text is a line as it is."""
    texts = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return str(path)


def parquet(path: Path, columns: Mapping[str, list[Any]], group: int = 1000) -> str:
    """Writes columns as .parquet with so many rows a group, and gives the file's path."""
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(dict(columns)), path, row_group_size=group)
    return str(path)


class Split:
    """One split of a data set, as the library `datasets` has it."""

    def __init__(self, table: Any) -> None:
        self.table, self.column_names = table, table.column_names

    def with_format(self, kind: str) -> Split:
        assert kind == "arrow"
        return self

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, part: slice) -> Any:
        return self.table.slice(part.start, part.stop - part.start)
