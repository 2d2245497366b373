"""The judged pairs of a store as files that other programs read."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scoretune.core import files
from scoretune.core.errors import UserError
from scoretune.core.records import spans
from scoretune.data import formats
from scoretune.data.judgements import is_tie
from scoretune.data.store.judged import judged_rows

GROUP = 256
"""Judgements of a row group of .parquet, about 100 MB of large pictures."""

Row = dict[str, Any]
Watch = Callable[[int, int], None]


def check_out(out: Path) -> None:
    """Raise UserError for what cannot be written, before anything is read."""
    if out.exists():
        raise UserError(f"{str(out)!r} exists already: choose another name")
    if out.suffix not in ("", ".jsonl", ".parquet"):
        raise UserError(f"{str(out)!r} must end in .parquet or .jsonl, or be a folder")
    if not out.parent.is_dir():
        raise UserError(f"there is no folder {str(out.parent)!r}: make it, or choose another name")
    if out.suffix == ".jsonl" and _pictures_of(out).exists():
        raise UserError(f"{str(_pictures_of(out))!r} exists already: choose another name")
    if out.suffix == ".parquet":
        with formats.file_errors(str(out)):
            formats.parquet_library()


def export(where: str, out: Path, watch: Watch) -> dict[str, int]:
    """Write the judgements of a store, one a row, whole or not at all; how many, and how many ties
    TRL's columns have no place for."""
    store, _, placed = judged_rows(where, "pairs")
    names = {str(rater.id): rater.name for rater in store.raters()}
    rows = [row | {"rater": names.get(row["rater"], "")} for _, row in placed]
    if out.suffix == ".parquet":
        _parquet(rows, store.folder.folder, out, watch)
        return {"pairs": len(rows), "ties": 0}
    if out.suffix != ".jsonl":
        with _folder(out) as folder:
            _copy_pictures(rows, store.folder.folder, folder, watch)
            files.write_whole(folder / "pairs.jsonl", _lines(map(_numbered, rows)))
        return {"pairs": len(rows), "ties": 0}
    decided = [row for row in rows if not is_tie(row["label_0"])]
    if not decided:
        raise UserError(f"{store.name!r} has ties alone, and TRL's columns have no place for them")
    with _folder(_pictures_of(out)) as folder:
        _copy_pictures(decided, store.folder.folder, folder, watch)
    files.write_whole(out, _lines(_chosen(row, _pictures_of(out).name) for row in decided))
    return {"pairs": len(decided), "ties": len(rows) - len(decided)}


def _pictures_of(out: Path) -> Path:
    return out.with_name(f"{out.stem}-pictures")


@contextmanager
def _folder(path: Path) -> Iterator[Path]:
    """A new folder, which is there at the end of the context, or not at all."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.writing")
    aside.mkdir()
    try:
        yield aside
        aside.rename(path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _copy_pictures(rows: Sequence[Row], source: Path, to: Path, watch: Watch) -> None:
    for done, row in enumerate(rows, start=1):
        for name in (row["image_0"], row["image_1"]):
            copy = to / Path(name).name
            if not copy.exists():
                shutil.copyfile(source / name, copy)
        watch(done, len(rows))


def _lines(rows: Iterable[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _numbered(row: Row) -> Row:
    """A row of `data.pairs`, its pictures beside the table."""
    return row | {name: Path(row[name]).name for name in ("image_0", "image_1")}


def _chosen(row: Row, folder: str) -> Row:
    """TRL's columns; the pictures are paths, relative to the table."""
    sides = [f"{folder}/{Path(row[name]).name}" for name in ("image_0", "image_1")]
    if row["label_0"] < 0.5:
        sides.reverse()
    return {"prompt": row["prompt"], "chosen": sides[0], "rejected": sides[1]}


def _parquet(rows: Sequence[Row], folder: Path, out: Path, watch: Watch) -> None:
    """Pick-a-Pic's columns, a row group at a time."""
    import pyarrow

    text, number = pyarrow.string(), pyarrow.float64()
    schema = pyarrow.schema(
        [
            *(("caption", text), ("jpg_0", pyarrow.binary()), ("jpg_1", pyarrow.binary())),
            *(("image_0_uid", text), ("image_1_uid", text), ("best_image_uid", text)),
            *(("label_0", number), ("label_1", number)),
            *(("has_label", pyarrow.bool_()), ("are_different", pyarrow.bool_())),
            ("user_id", text),
        ]
    )
    with (
        files.whole(out) as aside,
        formats.parquet_library().ParquetWriter(aside, schema) as writer,
    ):
        for span in spans(len(rows), GROUP):
            some = [_pick_a_pic(row, folder) for row in rows[span]]
            writer.write_table(pyarrow.Table.from_pylist(some, schema))
            watch(span.stop, len(rows))


def _pick_a_pic(row: Row, folder: Path) -> Row:
    label, uids = row["label_0"], (row["image_0_uid"], row["image_1_uid"])
    return {
        "caption": row["prompt"],
        **{f"jpg_{side}": (folder / row[f"image_{side}"]).read_bytes() for side in (0, 1)},
        **{f"image_{side}_uid": uids[side] for side in (0, 1)},
        "best_image_uid": "tie" if is_tie(label) else uids[int(label < 0.5)],
        "label_0": label,
        "label_1": 1 - label,
        "has_label": True,
        "are_different": True,
        "user_id": row["rater"],
    }
