"""The page of a run on data: its samples beside the data, the curves, the settings; one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scoretune.evaluate.report import render
from scoretune.evaluate.report.format import THIN, duration, grouped
from scoretune.evaluate.report.page import Section, rendered
from scoretune.evaluate.report.record import EVALUATIONS, Record, at, read_record
from scoretune.evaluate.report.sections import curves, samples, settings

SECTIONS: Sequence[Section] = (samples, curves, settings)


def write(run: Path) -> Path:
    """Write `report.html` into the run folder, from whatever the folder holds; its path."""
    record = read_record(run)
    data = at(record.about, "config", "data") or "data"
    values = {
        "title": f"{record.about.get('recipe', 'a run')} on {data}",
        "cost": _cost(record),
        "results": [line.replace("->", "→") for line in result_lines(record.result)],
        "sections": rendered(SECTIONS, record),
        "missing": record.missing,
    }
    return render.write(run / "report.html", render.text("data_page.html", values))


def result_lines(result: Mapping[str, Any]) -> list[str]:
    """The result in a line a number: before, after, and what real data score."""
    distances = result.get("data")
    lines = []
    for key, ends in (distances if isinstance(distances, dict) else {}).items():
        name = curves.NAMES.get(key, key)
        line = f"{name}: {ends['base']:.4g} -> {ends['final']:.4g}"
        if ends.get("real") is not None:
            line += f" (data that were learned from: {ends['real']:.4g})"
        lines.append(line)
    return lines


def _cost(record: Record) -> str:
    seconds, spent = record.last("seconds"), record.last("network_evaluations")
    parts = [] if seconds is None else [duration(seconds, THIN)]
    parts += [] if spent is None else [f"{grouped(spent)} {EVALUATIONS} of training"]
    return ", ".join(parts) or "unfinished"
