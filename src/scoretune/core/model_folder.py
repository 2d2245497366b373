"""Folders of networks of one's own, as a run on data leaves them: what they are, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from scoretune.core import reading

FORMAT = "scoretune score network 1"


def home(folder: Path) -> Path | None:
    """The model folder that a folder is, or that a run folder holds; None where there is none."""
    for place in (folder, folder / "model"):
        try:
            if described(place).get("format") == FORMAT:
                return place
        except (OSError, ValueError, AttributeError):
            continue
    return None


def described(folder: Path) -> dict[str, Any]:
    """What the configuration of a model folder says. Raises OSError or ValueError."""
    return cast("dict[str, Any]", reading.read_json(folder / "config.json"))
