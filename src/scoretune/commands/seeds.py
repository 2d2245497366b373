"""`scoretune train --seeds N`: one recipe by several seeds, and intervals over them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import typer

from scoretune.commands.reproduce.base import interval, shown
from scoretune.commands.runs import index
from scoretune.commands.runs.page import write_page
from scoretune.commands.train import train_run
from scoretune.core.config import Run
from scoretune.core.files import write_json
from scoretune.training.run_folder import recorded


def train_seeds(run: Run, folder: Path | None, threads: int, *, seeds: int, json_: bool) -> None:
    """Train by so many seeds from the run's on, a folder each below `folder`, and say what they
    came to together, with 95 % intervals by Student's t. Finished ones are not repeated."""
    where = folder or Path("runs") / f"{run.recipe}-{time.strftime('%Y%m%d-%H%M%S')}"
    homes = []
    for seed in range(run.seed, run.seed + seeds):
        one, home = run.model_copy(update={"seed": seed}), where / f"seed-{seed}"
        homes.append(home)
        if not ((home / "result.json").exists() and recorded(home) == one):
            train_run(one, home, threads, False)
    comparison = index.compare(homes)
    spreads = _over_seeds(comparison)
    ends = ("mean", "low", "high")
    result: dict[str, Any] = {
        "seeds": [run.seed, run.seed + seeds - 1],
        "runs": [str(home) for home in homes],
        "results": {name: dict(zip(ends, each, strict=True)) for name, each in spreads.items()},
    }
    write_json(where / "seeds.json", result)
    page = write_page(comparison, where / "seeds.html")
    if json_:
        typer.echo(json.dumps(result))
        return
    typer.echo(f"{seeds} seeds: mean and 95 % interval over them (Student's t)")
    for name, spread in spreads.items():
        typer.echo(f"{name:<28} {shown(spread)}")
    typer.echo(f"look at {page}")


def _over_seeds(comparison: index.Comparison) -> dict[str, tuple[float, float, float]]:
    """Each number that every run has, over the runs."""
    numbers = {
        name: [cell.mean for cell in row if isinstance(cell, index.Interval)]
        for name, row in comparison.results.items()
    }
    count = len(comparison.names)
    return {name: interval(values) for name, values in numbers.items() if len(values) == count}
