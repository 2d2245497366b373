"""The page that says what a run achieved, or lacks: `report.html`, one file that loads nothing.

A section is a module with `context`, what its template of the same name shows, or None.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from markupsafe import Markup

from scoretune.evaluate.report import render
from scoretune.evaluate.report.format import moment
from scoretune.evaluate.report.record import Record, read_record
from scoretune.evaluate.report.sections import (
    cards,
    gap,
    guard,
    headline,
    progress,
    repeat,
    rewards,
    settings,
    tasks,
    training,
)


class Section(Protocol):
    """A module of `sections`."""

    __name__: str

    def context(self, record: Record) -> dict[str, Any] | None:
        """What its template shows; None leaves it out."""


SECTIONS: Sequence[Section] = (
    cards,
    progress,
    guard,
    rewards,
    tasks,
    gap,
    training,
    settings,
    repeat,
)


def write_report(run: Path) -> Path:
    """Write `report.html` into the run folder, from whatever the folder holds; return its path."""
    record = read_record(run)
    values = {
        "title": str(record.about.get("recipe") or "unnamed recipe"),
        "seed": str(record.about.get("seed", "unknown")),
        "when": moment(record.about.get("started")),
        "headline": headline.context(record),
        "sections": rendered(SECTIONS, record),
        "missing": record.missing,
    }
    return render.write(run / "report.html", render.text("page.html", values))


def rendered(sections: Sequence[Section], record: Record) -> list[Markup]:
    """The sections that have something to show."""
    drawn = []
    for section in sections:
        values = section.context(record)
        if values is not None:
            name = section.__name__.rpartition(".")[2]
            drawn.append(render.fragment(f"{name}.html", values))
    return drawn
