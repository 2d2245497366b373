"""What a run writes while it goes on: new lines of its logs, as they come."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scoretune.commands.runs import index
from scoretune.commands.runs.index import Summary
from scoretune.commands.studio.jobs import log_of, running

LOGS = ("metrics", "evaluations", "alarms")
MOST_BYTES = 2**22
"""Of a log that are read at once; the rest comes with the next look."""
TAIL = 2**13
"""Bytes of the end of a text log."""


def known(runs: Path) -> dict[str, Summary]:
    """The runs below a folder, the newest first, by names that say nothing of paths."""
    if not runs.is_dir():
        return {}
    return {name_of(Path(one.run)): one for one in index.listed(runs)}


def name_of(run: Path) -> str:
    """The name of a run in addresses."""
    return hashlib.sha256(str(run.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def state(one: Summary) -> str:
    """What a run is doing: it is running while a process holds its folder."""
    return "running" if running(Path(one.run)) is not None else one.state


def pictures(run: Path) -> list[Path]:
    """The previews of a run: pictures, or contact strips and videos."""
    folder = run / "previews"
    return [*sorted(folder.glob("*.png")), *sorted((folder / "videos").glob("*.webp"))]


@dataclass
class Follower:
    """Reads what was added to a run's logs since it last looked."""

    run: Path
    offsets: dict[str, int] = field(default_factory=dict)

    def news(self) -> Iterator[tuple[str, Any]]:
        """Events: `rows` of each log that grew, and the end of the text log when it changed."""
        for name in LOGS:
            rows = list(self._rows(name))
            if rows:
                yield "rows", {"log": name, "rows": rows}
        path = log_of(self.run)
        size = path.stat().st_size if path.is_file() else 0
        if size != self.offsets.get("text", 0):
            self.offsets["text"] = size
            with path.open("rb") as file:
                file.seek(max(0, size - TAIL))
                text = file.read().decode("utf-8", "replace")
            yield "text", text.replace("\r", "\n")

    def _rows(self, name: str) -> Iterator[Mapping[str, Any]]:
        path, start = self.run / f"{name}.jsonl", self.offsets.get(name, 0)
        if not path.is_file():
            return
        if path.stat().st_size < start:  # a resumed run forgets what it does again
            start = 0
        with path.open("rb") as file:
            file.seek(start)
            read = file.read(MOST_BYTES)
        whole = read[: read.rfind(b"\n") + 1]  # the last line may be cut short
        self.offsets[name] = start + len(whole)
        for line in whole.splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                yield dict(flat(row))


def flat(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float | str]]:
    """The numbers of a row by their paths with dots, and its texts; NaN and infinity left out."""
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        elif isinstance(value, str):
            yield f"{prefix}{name}", value
        elif isinstance(value, int | float) and math.isfinite(value):
            yield f"{prefix}{name}", float(value)
