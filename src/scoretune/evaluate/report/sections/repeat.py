"""The command that repeats the run, to be copied."""

from __future__ import annotations

from typing import Any

from scoretune.evaluate.report.record import Record


def context(record: Record) -> dict[str, Any] | None:
    """The command, where it was recorded."""
    command = record.about.get("command")
    return {"command": str(command)} if command else None
