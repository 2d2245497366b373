"""Where Diffusion-DPO gains and where it runs away, in the smallest world of pictures.

Pairs are the base model's own pictures, two of a prompt, the better and the worse by the reward; or
pictures and their edits. Whether the guard's watch `divergence` would ring is asked at the end of
each run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from scoretune.commands.reproduce import patch_pairs, patch_world
from scoretune.commands.reproduce.base import Cell, Numbers, Page, by_arm, interval, shown
from scoretune.commands.reproduce.drawing import COLOURS, subplots
from scoretune.commands.reproduce.patch_pairs import PicturePairs
from scoretune.core import config
from scoretune.evaluate.guard import watches
from scoretune.policy import Policy

PER_PROMPT = 64


class Arm(NamedTuple):
    """Diffusion-DPO's B, its rate, and what it learns from: `plain` pairs, `edits`, both, or
    `swapped` plain ones."""

    beta: float
    rate: float
    pairs: str = "plain"
    size: int = 600
    updates: int = 200


ARMS = {
    "B 2000, 1e-4": Arm(2000, 1e-4),
    "B 500, 3e-5": Arm(500, 3e-5),
    "B 500, 3e-4": Arm(500, 3e-4),
    "B 100, 1e-4": Arm(100, 1e-4),
    "B 100, 1e-3": Arm(100, 1e-3),
    "B 10, 1e-3": Arm(10, 1e-3),
    "labels swapped, B 500, 1e-4": Arm(500, 1e-4, "swapped"),
    "rate 0": Arm(500, 0.0),
    "plain, 150": Arm(2000, 1e-4, "plain", 150, 150),
    "edits, 150": Arm(2000, 1e-4, "edits", 150, 150),
    "edits, 150, 1e-3": Arm(2000, 1e-3, "edits", 150, 150),
    "both, 75 + 75": Arm(2000, 1e-4, "both", 150, 150),
}
REHEARSED = ("B 2000, 1e-4", "both, 75 + 75")


def cells(seeds: int, quick: bool) -> list[Cell]:
    """A run of each arm and seed."""
    labels = REHEARSED if quick else ARMS
    return patch_world.cells_of(learned, labels, seeds, 100 if quick else 1)


def learned(label: str, seed: int, scale: int, folder: Path) -> Numbers:
    """A run, shortened by `scale`, and how its pictures do against the base model's."""
    arm = ARMS[label]
    world = patch_world.base(folder, patch_world.UPDATES // scale)
    policy = patch_world.trainable(world)
    generator = torch.Generator().manual_seed(seed)
    made = pairs(policy, arm.pairs, max(4, arm.size // scale), generator)
    learning: Numbers = {"implicit accuracy": 0.5, "error ratio": 1.0}
    if arm.rate:
        updates = max(2, arm.updates // scale)
        learning = patch_pairs.tuned(
            policy, made, beta=arm.beta, rate=arm.rate, updates=updates, seed=seed
        )
    before, after = patch_world.compared(policy, seed, max(2, PER_PROMPT // scale))
    return {**before, **after, **learning}


def pairs(policy: Policy, kind: str, count: int, generator: torch.Generator) -> PicturePairs:
    """Pairs of an arm's kind."""
    if kind == "both":
        own = pairs(policy, "plain", count // 2, generator)
        made = pairs(policy, "edits", count - count // 2, generator)
        better, worse = (torch.cat(sides) for sides in zip(own[:2], made[:2], strict=True))
        return PicturePairs(better, worse, own.prompts + made.prompts)
    if kind == "edits":
        return patch_pairs.edits(policy, count, generator)
    own = patch_pairs.two_of_a_prompt(policy, count, generator)
    return PicturePairs(own.worse, own.better, own.prompts) if kind == "swapped" else own


# ----------------------------------------------------------------------------------- the page

EXPECTED = {
    "B 2000, 1e-4": ".958",
    "B 500, 3e-5": ".982",
    "B 500, 3e-4": ".156",
    "B 100, 1e-4": ".018",
    "labels swapped, B 500, 1e-4": ".453",
    "rate 0": "equal pictures",
    "plain, 150": ".920",
    "edits, 150": "0 to .01",
    "both, 75 + 75": ".963",
}
"""Win rates of an earlier experiment in another world of this kind, with another base model."""


def rings(run: Numbers) -> bool:
    """Whether the guard's watch for runaway preferences would ring at the end of a run."""
    return watches.diverged(run["error ratio"], 0, config.Guard().error_ratio) is not None


def present(results: dict[str, Numbers], page: Page) -> Numbers:
    """How every arm does, what could show that it runs away, and whether the guard would ring."""
    rows: list[list[object]] = []
    numbers: Numbers = {}
    for label, runs in by_arm(results).items():
        spread = {key: interval([run[key] for run in runs]) for key in runs[0]}
        alarms = sum(rings(run) for run in runs)
        numbers[label] = spread | {"alarms": alarms}
        rows.append(
            [
                label,
                shown(spread["wins"], 1, scale=100),
                EXPECTED.get(label, "–"),
                shown(spread["reward"], 3, sign="+"),
                shown(spread["shift"], 3),
                f"{spread['implicit accuracy'][0]:.3f}",
                shown(spread["error ratio"], 2),
                f"{alarms} of {len(runs)}",
            ]
        )
    base = next(iter(numbers.values()))["base"][0]
    page.text(ABOUT.format(base=base, limit=config.Guard().error_ratio))
    columns = ["", "wins, %", "expected", "reward", "shift", "implicit accuracy", "error ratio"]
    page.table([*columns, "alarms"], rows)
    caption = "Wins of every run, against what could show that it runs away"
    page.figure("divergence", _figure(results), caption)
    return numbers


ABOUT = """
Diffusion-DPO in the smallest world of pictures: 3×8×8, a square of a colour that the prompt names;
the reward is by how much that channel exceeds the others on the brightest patch. The base model
earns {base:+.3f}. Pairs are two of its own pictures of a prompt, or a picture and its edit where
that gains more than 0.05. Batches of 32 pairs, 200 updates of 600 pairs (150 updates where the arm
says how many pairs it has), Adam, every weight. A win is a higher reward than the base model's from
the same noise, 192 prompts. Expected win rates are those of an earlier experiment of this kind,
with a base model of its own.

What could show that a run goes wrong, without a reward: how far pixels have moved (shift), how
often pairs are told apart (implicit accuracy), and the error on the preferred pictures over the
base model's on the same, at the end. An alarm is what the guard's watch `divergence` would say at
the end with its default limit, {limit:g} times, which was set after runs on seed 11.
"""

SIGNS = {
    "shift": "mean change of a pixel, of 1",
    "implicit accuracy": "implicit accuracy",
    "error ratio": "error on preferred pictures, base = 1",
}


def _figure(results: dict[str, Numbers]) -> Any:
    figure, panels = subplots(1, 3, size=(10, 4), sharey=True)
    for axes, (sign, caption) in zip(panels, SIGNS.items(), strict=True):
        for place, (label, runs) in enumerate(by_arm(results).items()):
            marker = "o" if place < len(COLOURS) else "s"
            values, wins = [run[sign] for run in runs], [100 * run["wins"] for run in runs]
            colour = COLOURS[place % len(COLOURS)]
            axes.plot(values, wins, marker, color=colour, label=label, alpha=0.8)
        axes.set(xlabel=caption)
    panels[0].set(ylabel="wins against the base model, %")
    panels[1].legend(frameon=False, fontsize=6)
    panels[2].set(xscale="log")
    panels[2].axvline(config.Guard().error_ratio, color="#999999", linewidth=1)
    return figure
