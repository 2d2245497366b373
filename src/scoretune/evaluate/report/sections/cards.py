"""The prompts as cards: what the model drew before and after, and what the judge says."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

THIN = "\u202f"  # narrow no-break space: between a number and its unit, and between thousands
WIDTH, HEIGHT = 500, 284  # of a line chart, in drawing units
LEFT, RIGHT, TOP, BOTTOM = 62.0, 20.0, 36.0, 54.0  # margins with room for a phone's larger text
BAR, ROW, NAMES, GAINS = 12.0, 46.0, 112.0, 52.0  # bar charts: heights, and widths left and right


def cards(folder: Path, missing: list[str]) -> tuple[str, str]:
    """One card a prompt, with its pictures before and after, and the sentence above the cards.

    What cannot be shown is appended to `missing`.
    """
    try:
        grid = json.loads((folder / "prompts.json").read_text(encoding="utf-8"))
        prompts, side, columns = list(grid["prompts"]), int(grid["side"]), int(grid["columns"])
        if min(side, columns) < 1:
            raise ValueError("a grid has cells")
    except (OSError, ValueError, KeyError, TypeError):
        missing.append("previews/prompts.json is missing or unreadable: no pictures are shown.")
        return "", ""
    sides = []
    for when in ("before", "after"):
        pictures = _cut(folder / f"{when}.png", side, columns, len(prompts))
        if not any(pictures):
            missing.append(f"previews/{when}.png is missing or unreadable.")
        given = grid.get(f"{when}_right")
        verdicts: list[bool | None] = [None] * len(prompts)
        if isinstance(given, list) and len(given) == len(prompts):
            verdicts = [None if right is None else bool(right) for right in given]
        sides.append((when, pictures, verdicts))
    made = []
    for i, prompt in enumerate(prompts):
        pair = "".join(_picture(when, pictures[i], right[i]) for when, pictures, right in sides)
        caption = f"<figcaption>{escape(str(prompt))}</figcaption>"
        made.append(f'<figure class="card">{caption}<div class="pair">{pair}</div></figure>')
    return "".join(made), _count(sides[0][2], sides[1][2])


def _count(before: Sequence[bool | None], after: Sequence[bool | None]) -> str:
    """How many pictures the judge calls right, counting those that training broke."""
    if None in before or None in after or not before:
        return ""
    pairs = list(zip(before, after, strict=True))
    return (
        f"Among these {len(pairs)} prompts the judge calls {sum(map(bool, before))} pictures right "
        f"before and {sum(map(bool, after))} after ({pairs.count((False, True))} put right, "
        f"{pairs.count((True, False))} spoilt)."
    )


def _cut(path: Path, side: int, columns: int, count: int) -> list[str]:
    """The first `count` cells of a grid of pictures as base64 PNGs; empty where there is none."""
    from PIL import Image

    try:
        with Image.open(path) as opened:
            grid = opened.convert("RGB")
    except (OSError, SyntaxError, ValueError):  # Pillow raises all three on a broken PNG
        return [""] * count
    cells = []
    for i in range(count):
        top, left = i // columns * side, i % columns * side
        if top + side > grid.height or left + side > grid.width:
            cells.append("")
            continue
        held = io.BytesIO()
        grid.crop((left, top, left + side, top + side)).save(held, "PNG", optimize=True)
        cells.append(base64.b64encode(held.getvalue()).decode("ascii"))
    return cells


def _picture(when: str, data: str, right: bool | None) -> str:
    source = f'<img alt="{when} training" src="data:image/png;base64,{data}">'
    image = source if data else '<span class="gone"></span>'
    mark = ""
    if right is not None:
        word, path = ("right", "M3 10l4 4 8-10") if right else ("wrong", "M4 4l10 10M14 4L4 14")
        mark = f'<svg class="mark {word}" viewBox="0 0 18 18" role="img" aria-label="{word}, says '
        mark += f'the judge"><path d="{path}"/></svg>'
    return f"<div>{image}<p>{when}{mark}</p></div>"
