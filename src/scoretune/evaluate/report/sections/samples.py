"""Samples of a network that learned from data, beside the data."""

from __future__ import annotations

import base64
from typing import Any

from scoretune.evaluate.report.record import Record

CAPTIONS = {"data": "data", "before": "before training", "after": "after training"}


def context(record: Record) -> dict[str, Any]:
    """The pictures that there are; those of a run that goes on are called so."""
    folder = record.folder / "previews"
    captions = dict(CAPTIONS)
    if not (folder / "after.png").exists():
        captions["newest"] = "so far"
    pictures = [
        {"caption": caption, "png": base64.b64encode(path.read_bytes()).decode("ascii")}
        for name, caption in captions.items()
        if (path := folder / f"{name}.png").exists()
    ]
    return {"pictures": pictures}
