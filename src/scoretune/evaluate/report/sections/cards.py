"""The prompts as cards: what the model drew before and after, and what the judge says."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scoretune.evaluate.report.record import Record

Verdicts = Sequence[bool | None]


def context(record: Record) -> dict[str, Any] | None:
    """A card a prompt, and the judge's count; what cannot be shown is added to `record.missing`."""
    folder = record.folder / "previews"
    try:
        grid = json.loads((folder / "prompts.json").read_text(encoding="utf-8"))
        prompts, height, columns = list(grid["prompts"]), int(grid["side"]), int(grid["columns"])
        width = int(grid.get("width", height))  # older runs have squares alone
        if min(height, width, columns) < 1:
            raise ValueError("a grid has cells")
    except (OSError, ValueError, KeyError, TypeError):
        record.missing.append(
            "previews/prompts.json is missing or unreadable: no pictures are shown."
        )
        return None
    pictures, verdicts = {}, {}
    for when in ("before", "after"):
        path = folder / f"{when}.png"
        pictures[when] = _cut(path, (height, width), columns, len(prompts))
        verdicts[when] = _verdicts(grid.get(f"{when}_right"), len(prompts))
        if not any(pictures[when]):
            record.missing.append(f"previews/{when}.png is missing or unreadable.")
    shown: tuple[str, ...] = ("before", "after")
    if (folder / "source.png").exists():  # of a model that edits pictures
        shown = ("source", *shown)
        pictures["source"] = _cut(folder / "source.png", (height, width), columns, len(prompts))
        verdicts["source"] = [None] * len(prompts)
    cards = [
        {
            "prompt": str(prompt),
            "pictures": [
                {
                    "when": when,
                    "png": pictures[when][i],
                    "webp": _animation(folder / "videos" / f"{when}-{i:02}.webp"),
                    "right": verdicts[when][i],
                }
                for when in shown
            ],
        }
        for i, prompt in enumerate(prompts)
    ]
    if not cards:
        return None
    judged = _count(verdicts["before"], verdicts["after"])
    return {"cards": cards, "judged": judged, "width": width, "height": height}


def _animation(path: Path) -> str:
    """A video as base64; empty where there is none."""
    try:
        return base64.b64encode(path.read_bytes()).decode("ascii")
    except OSError:
        return ""


def _verdicts(values: Any, count: int) -> Verdicts:
    """Whether the judge calls each picture right; None for what it has not looked at."""
    if not isinstance(values, list) or len(values) != count:
        return [None] * count
    return [None if right is None else bool(right) for right in values]


def _count(before: Verdicts, after: Verdicts) -> dict[str, int] | None:
    """How many pictures the judge calls right, counting those that training broke."""
    if None in before or None in after or not before:
        return None
    pairs = list(zip(before, after, strict=True))
    return {
        "prompts": len(pairs),
        "before": sum(map(bool, before)),
        "after": sum(map(bool, after)),
        "repaired": pairs.count((False, True)),
        "spoilt": pairs.count((True, False)),
    }


def _cut(path: Path, sides: tuple[int, int], columns: int, count: int) -> list[str]:
    """The first `count` cells of a grid of pictures as base64 PNGs; empty where there is none."""
    from PIL import Image

    height, width = sides
    try:
        with Image.open(path) as opened:
            grid = opened.convert("RGB")
    except (OSError, SyntaxError, ValueError):  # Pillow raises all three on a broken PNG
        return [""] * count
    cells = []
    for i in range(count):
        top, left = i // columns * height, i % columns * width
        if top + height > grid.height or left + width > grid.width:
            cells.append("")
            continue
        file = io.BytesIO()
        grid.crop((left, top, left + width, top + height)).save(file, "PNG", optimize=True)
        cells.append(base64.b64encode(file.getvalue()).decode("ascii"))
    return cells
