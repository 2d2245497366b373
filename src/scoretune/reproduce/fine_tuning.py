"""Whole fine-tuning runs as cells: one recipe, one seed, and how it went."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scoretune import config, recipes
from scoretune.reproduce.base import Numbers, interval
from scoretune.run import launch
from scoretune.runs import record, recorded

Runs = list[Numbers]


class Quiet:
    """Nobody looks on."""

    def stage(self, text: str) -> None:
        pass

    def line(self, numbers: dict[str, Any]) -> None:
        pass


def fine_tune(recipe: str, changes: Sequence[str], name: str, folder: Path) -> Numbers:
    """One run below `folder`, gone on with if it was stopped: its result and its evaluations."""
    run = config.changed(recipes.named(recipe), changes)
    where = folder / "runs" / name
    if (where / "run.json").exists() and recorded(where) != run:
        shutil.rmtree(where)  # of a rehearsal, or before a setting changed: nothing to go on with
    record(run, where, threads=1)
    result = launch(run, where, Quiet())
    lines = (where / "evaluations.jsonl").read_text(encoding="utf-8").splitlines()
    return {
        "result": {k: v for k, v in result.items() if k != "run"},
        "evaluations": [json.loads(line) for line in lines],
    }


def curve(run: Numbers, metric: str) -> tuple[list[int], list[float]]:
    """Network evaluations and a metric at every evaluation of a run."""
    lines = run["evaluations"]
    return [line["network_evaluations"] for line in lines], [level(line, metric) for line in lines]


def level(line: Numbers, metric: str) -> float:
    """`judge` and `reader` accuracies, or the `reward` through the deterministic sampler."""
    return float(line[metric]["deterministic" if metric == "reward" else "overall"])


def gain(runs: Runs, metric: str) -> tuple[float, float, float]:
    """From the base to the end: mean and 95 % interval over the seeds."""
    ends = [curve(run, metric)[1] for run in runs]
    return interval([values[-1] - values[0] for values in ends])


def final(runs: Runs, metric: str) -> tuple[float, float, float]:
    """At the end: mean and 95 % interval over the seeds."""
    return interval([curve(run, metric)[1][-1] for run in runs])


def best(runs: Runs, metric: str) -> float:
    """The best mean over seeds that any evaluation found."""
    curves = [curve(run, metric)[1] for run in runs]
    means = [sum(column) / len(column) for column in zip(*curves, strict=True)]
    return float(max(means))


def reached(runs: Runs, metric: str, wanted: float) -> list[int | None]:
    """For each run: network evaluations until an evaluation found the wanted level, or None."""
    found: list[int | None] = []
    for run in runs:
        work, values = curve(run, metric)
        found.append(next((w for w, v in zip(work, values, strict=True) if v >= wanted), None))
    return found


def draw_curves(arms: dict[str, Runs], metric: str, label: str) -> Any:
    """Means over seeds with 95 % bands, against network evaluations."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.8, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for colour, (arm, runs) in zip(COLOURS, arms.items(), strict=False):
        work = [w / 1000 for w in curve(runs[0], metric)[0]]
        bands = [interval(c) for c in zip(*(curve(r, metric)[1] for r in runs), strict=True)]
        axes.plot(work, [b[0] for b in bands], color=colour, linewidth=2, label=arm)
        low, high = [b[1] for b in bands], [b[2] for b in bands]
        axes.fill_between(work, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.set_xlabel("network evaluations of training (thousands)")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


COLOURS = ("#0b6e99", "#c8553d", "#5b8c3a", "#8a5aa8", "#c99a2e", "#555555")


def points(triple: tuple[float, float, float], digits: int = 1, scale: float = 100) -> str:
    """`+20.5 [16.7, 24.2]`, in points of a hundred."""
    mean, low, high = (scale * value for value in triple)
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
