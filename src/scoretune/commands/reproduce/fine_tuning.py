"""Whole fine-tuning runs as cells, a recipe and a seed each; tables and curves to compare them."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scoretune import recipes
from scoretune.commands.reproduce.base import Cell, Numbers, Page, by_arm, interval, shown
from scoretune.commands.reproduce.drawing import COLOURS, draw_band, subplots
from scoretune.data.prompts import Prompts
from scoretune.diffusion import grids
from scoretune.evaluate.samples import sample
from scoretune.evaluate.scores import verdict_metrics, verdicts
from scoretune.policy import Policy
from scoretune.training import overrides
from scoretune.training.hooks import Silent
from scoretune.training.run import launch
from scoretune.training.run_folder import record, recorded

Runs = list[Numbers]
NOISE = 20240
"""The seed of samples that are judged."""


class Arm(NamedTuple):
    """A recipe with changes, and what its cells are called."""

    name: str
    recipe: str
    changes: Sequence[str] = ()


Arms = dict[str, Arm]

QUICK = [
    *("updates=1", "sizes.prompts=2", "sizes.group=2", "sampling.steps=3"),
    *("evaluation.per_task=1", "evaluation.steps=2", "evaluation.every=1"),
]


def fine_tune(recipe: str, changes: Sequence[str], name: str, folder: Path) -> Numbers:
    """One run below `folder`, gone on with if it was stopped: its result and its evaluations."""
    run = overrides.changed(recipes.named(recipe), changes)
    where = folder / "runs" / name
    if (where / "run.json").exists() and recorded(where) != run:
        shutil.rmtree(where)  # of a rehearsal, or before a setting changed: nothing to go on with
    command = shlex.join(["scoretune", "train", recipe, *changes, "--threads", "1"])
    record(run, where, 1, command=command)
    result = launch(run, where, Silent())
    numbers: Numbers = {
        "result": {k: v for k, v in result.items() if k != "run"},
        "evaluations": _lines(where / "evaluations.jsonl"),
    }
    if run.evaluation.gap.steps:
        numbers["gaps"] = _lines(where / "gap.jsonl")
    return numbers


def _lines(path: Path) -> list[Numbers]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def judged(policy: Policy, prompts: Prompts, solver: str, steps: int) -> float:
    """The judge's accuracy of a policy's samples, from the same noise for all."""
    times, judge = grids.uniform(policy.backbone.process, steps), verdict_metrics("scenes")["judge"]
    images = sample(policy, prompts, times=times, seed=NOISE, solver=solver)
    return float(verdicts(images, prompts, {"judge": judge})["judge"].mean())


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


def ahead(runs: Runs, others: Runs, metric: str) -> tuple[float, float, float]:
    """At the end, less that of other runs, paired by seed: mean and 95 % interval."""
    pairs = zip(runs, others, strict=True)
    return interval([curve(a, metric)[1][-1] - curve(b, metric)[1][-1] for a, b in pairs])


def best(runs: Runs, metric: str) -> float:
    """The best mean over seeds that any evaluation found."""
    curves = [curve(run, metric)[1] for run in runs]
    means = [sum(column) / len(column) for column in zip(*curves, strict=True)]
    return float(max(means))


def reached(runs: Runs, metric: str, wanted: float) -> list[int | None]:
    """For each run: network evaluations until an evaluation found the wanted level, or None."""
    when: list[int | None] = []
    for run in runs:
        work, values = curve(run, metric)
        when.append(next((w for w, v in zip(work, values, strict=True) if v >= wanted), None))
    return when


def draw_curves(arms: dict[str, Runs], metric: str, label: str) -> Any:
    """Means over seeds with 95 % bands, against network evaluations."""
    figure, axes = subplots(size=(6.8, 4.2))
    for colour, (arm, runs) in zip(COLOURS, arms.items(), strict=False):
        work = [w / 1000 for w in curve(runs[0], metric)[0]]
        draw_band(axes, work, [curve(run, metric)[1] for run in runs], colour, arm)
    axes.set(xlabel="network evaluations of training (thousands)", ylabel=label)
    axes.legend(frameon=False)
    return figure


def points(triple: tuple[float, float, float], digits: int = 1, scale: float = 100) -> str:
    """`+20.5 [+16.7, +24.2]`, in points of a hundred."""
    return shown(triple, digits, scale=scale, sign="+")


def cell_of(name: str, recipe: str, changes: Sequence[str]) -> Cell:
    """A run of that name."""
    arguments = {"recipe": recipe, "changes": changes, "name": name}
    return Cell(name, fine_tune, arguments, keeps_files=True)


def cells_of(
    arms: Arms, reward: str, seeds: int, quick: bool, *, reference: str, more: Sequence[str] = ()
) -> list[Cell]:
    """A cell an arm and seed; `more` changes hold for all of them.

    A rehearsal runs the `reference` alone, the arm with which the page compares the others.
    """
    extra = [*more, *(QUICK if quick else [])]
    return [
        cell_of(
            f"{reward}-{arm.name}-{seed}",
            arm.recipe,
            [*arm.changes, f"reward={reward}", f"seed={seed}", *extra],
        )
        for seed in range(seeds)
        for label, arm in arms.items()
        if label == reference or not quick
    ]


def labelled(results: dict[str, Numbers], reward: str, arms: Arms) -> dict[str, Runs]:
    """The runs of every arm that was run, by its label."""
    runs = by_arm(results)
    names = {label: f"{reward}-{arm.name}" for label, arm in arms.items()}
    return {label: runs[name] for label, name in names.items() if name in runs}


def compared(
    arms: dict[str, Runs], metric: str, page: Page, *, scale: float = 100, digits: int = 1
) -> Numbers:
    """A table of the arms, and how soon each reached the best that DDPO found."""
    wanted = best(arms["DDPO"], metric)
    numbers: Numbers = {"DDPO's best": round(wanted, 4)}
    rows = []
    for arm, runs in arms.items():
        when = reached(runs, metric, wanted)
        work = runs[0]["result"]["network_evaluations"]
        rewarded = runs[0]["result"]["reward_evaluations"]
        kls = [run["result"]["chain_kl"] for run in runs]
        seconds = [run["result"]["seconds"] for run in runs]
        numbers[arm] = {
            "gain": gain(runs, metric),
            **({"reader's gain": gain(runs, "reader")} if metric == "judge" else {}),
            "final": final(runs, metric),
            "network_evaluations": work,
            "reward_evaluations": rewarded,
            "reached DDPO's best at": when,
            "chain_kl": kls,
            "seconds": seconds,
        }
        arrived = sorted(w for w in when if w is not None)
        soon = f"{arrived[len(arrived) // 2]:,}" if len(arrived) > len(runs) / 2 else "—"
        rows.append(
            [
                arm,
                points(gain(runs, metric), digits, scale),
                f"{final(runs, metric)[0]:.3f}",
                f"{work:,}",
                f"{rewarded:,}",
                f"{soon} ({len(arrived)} of {len(runs)})",
                f"{min(kls):.1f}–{max(kls):.1f}",
                f"{min(seconds):.0f}–{max(seconds):.0f}",
            ]
        )
    columns = ["", "gain", "final", "network evaluations", "reward evaluations"]
    page.table([*columns, f"reached DDPO's best ({wanted:.3f}) at", "chain KL", "seconds"], rows)
    return numbers
