"""Pairs of pictures in a folder, of which one is preferred."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

RECIPES = ("dpo", "ipo", "kto", "simpo", "mallows", "rainbow", "dspo")
"""Those that learn from people's choices."""


def pairs_folder(folder: Path, side: int = 32, count: int = 4) -> Path:
    """Plain colours, the greener the better; one tie, and one pair of which raters disagree."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        for place in (0, 1):
            colour = (60 * number % 256, 90 + 130 * place, 40)
            Image.new("RGB", (side, side), colour).save(folder / f"{number}{place}.png")
        rows.append(
            {
                "prompt": "a cow" if number % 2 else "a green cow",
                **{f"image_{place}": f"{number}{place}.png" for place in (0, 1)},
                "label_0": 0.5 if number == count - 1 else 0,
            }
        )
    rows += [rows[0], rows[0] | {"label_0": 1}]
    rows = [row | {"rater": f"rater {number}"} for number, row in enumerate(rows)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
