"""Where Diffusion-DPO gains and where it runs away, in the smallest world of pictures.

Pairs are the base model's own pictures, two of a prompt, the better and the worse by the reward; or
pictures and their edits. Whether the guard's watch `divergence` would ring is asked at the end of
each run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoretune.commands.reproduce import patch_world
from scoretune.commands.reproduce.base import Cell, Numbers, Page, by_arm, interval, shown
from scoretune.commands.reproduce.drawing import COLOURS, subplots
from scoretune.core import config
from scoretune.core.records import PairExamples, Round, Stateless
from scoretune.diffusion import noise
from scoretune.evaluate.guard import watches
from scoretune.policy import Policy
from scoretune.training.engine import TorchEngine
from scoretune.training.loop import train
from scoretune.training.objectives.preference_losses import loss_of
from scoretune.training.sources.base import update_generator

BATCH, PER_PROMPT = 32, 64
LAST = 20
"""Updates over which the implicit accuracy is a mean."""
NUDGE, WEAK, STRONG, LEAST_GAIN = 0.35, 0.75, 0.25, 0.05


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
    better, worse, prompts = pairs(policy, arm.pairs, max(4, arm.size // scale), generator)
    ahead: list[float] = []
    if arm.rate:
        examples = Pairs(policy, better, worse, prompts, seed)
        settings = config.Preference(preset="dpo", beta=arm.beta)
        train(
            examples,
            loss_of(settings, policy),
            torch.optim.Adam(policy.parameters(), arm.rate),
            TorchEngine(),
            updates=range(max(2, arm.updates // scale)),
            hooks=[lambda _, metrics: ahead.append(metrics["implicit_accuracy"])],
        )
    before, after = patch_world.compared(policy, seed, max(2, PER_PROMPT // scale))
    last = ahead[-LAST:]
    return {**before, **after, "implicit accuracy": sum(last) / len(last) if last else 0.5}


def pairs(
    policy: Policy, kind: str, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, list[str]]:
    """Preferred and other pictures [count, 3, 8, 8] of one prompt each."""
    if kind == "both":
        own = pairs(policy, "plain", count // 2, generator)
        made = pairs(policy, "edits", count - count // 2, generator)
        return torch.cat([own[0], made[0]]), torch.cat([own[1], made[1]]), [*own[2], *made[2]]
    if kind == "edits":
        return edits(policy, count, generator)
    better, worse, prompts = two_of_a_prompt(policy, count, generator)
    return (worse, better, prompts) if kind == "swapped" else (better, worse, prompts)


def two_of_a_prompt(
    policy: Policy, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, list[str]]:
    """The better and the worse of two pictures of the base model's a pair."""
    prompts = [patch_world.PROMPTS[i % 3] for i in range(count)]
    one, other = (patch_world.drawn(policy, prompts, generator) for _ in range(2))
    ahead = patch_world.reward(one, prompts) >= patch_world.reward(other, prompts)
    ahead = ahead[:, None, None, None]
    return torch.where(ahead, one, other), torch.where(ahead, other, one), prompts


def edits(
    policy: Policy, count: int, generator: torch.Generator, *, failing: float = 0.0
) -> tuple[Tensor, Tensor, list[str]]:
    """Edits of the base model's pictures that gain more than 0.05 of the reward, and the pictures.

    `failing` is the share of edits that are noise.
    """
    better: list[Tensor] = []
    worse: list[Tensor] = []
    prompts: list[str] = []
    while len(prompts) < count:
        some = [patch_world.PROMPTS[i % 3] for i in range(count)]
        images = patch_world.drawn(policy, some, generator)
        changed = edited(images, some, generator, failing=failing)
        gain = patch_world.reward(changed, some) - patch_world.reward(images, some)
        for place in (gain > LEAST_GAIN).nonzero().flatten().tolist():
            better.append(changed[place])
            worse.append(images[place])
            prompts.append(some[place])
    return torch.stack(better[:count]), torch.stack(worse[:count]), prompts[:count]


def edited(
    images: Tensor, prompts: Sequence[str], generator: torch.Generator, *, failing: float = 0.0
) -> Tensor:
    """Pictures [B, 3, 8, 8] whose brightest patch has more of the named channel where that is weak,
    and less of the strongest other where that is strong; of a share `failing` noise is added."""
    colour, which = patch_world.brightest(images)
    changed = images.clone()
    for place, prompt in enumerate(prompts):
        named = patch_world.PROMPTS.index(prompt)
        others = [channel for channel in range(3) if channel != named]
        strongest = max(others, key=lambda channel: float(colour[place, channel]))
        across = patch_world.SIDE - patch_world.PATCH + 1
        row, column = divmod(int(which[place]), across)
        patch = changed[
            place, :, row : row + patch_world.PATCH, column : column + patch_world.PATCH
        ]
        if colour[place, named] < WEAK:
            patch[named] += NUDGE
        if colour[place, strongest] > STRONG:
            patch[strongest] -= NUDGE
    fails = torch.rand(len(images), generator=generator) < failing
    spoilt = images + NUDGE / 2 * noise.randn(images.shape, generator)
    return torch.where(fails[:, None, None, None], spoilt, changed).clamp(0, 1)


class Pairs(Stateless):
    """Pairs in an order that each lap shuffles anew, with the noise and the times of an update."""

    def __init__(
        self, policy: Policy, better: Tensor, worse: Tensor, prompts: Sequence[str], seed: int
    ) -> None:
        self.first, self.second = policy.embed(better), policy.embed(worse)
        self.condition, self.seed = policy.encode(list(prompts)), seed

    def __call__(self, update: int) -> Round:
        generator = update_generator(self.seed, update)
        rows = torch.randint(len(self.first), (BATCH,), generator=generator)
        one = torch.ones(BATCH)
        batch = PairExamples(
            first=self.first[rows],
            second=self.second[rows],
            condition=self.condition.take(rows),
            label=one,
            weight=one,
            noise=noise.randn(self.first[rows].shape, generator),
            share=noise.rand((BATCH,), generator),
        )
        return Round([batch], {}, counts=(BATCH,))


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
    limits = config.Guard()
    alarm = watches.diverged(
        run["implicit accuracy"],
        run["shift"],
        0,
        most=limits.implicit_accuracy,
        limit=limits.image_shift,
    )
    return alarm is not None


def present(results: dict[str, Numbers], page: Page) -> Numbers:
    """Every arm's win rate, shift and implicit accuracy, and whether the guard would ring."""
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
                f"{alarms} of {len(runs)}",
            ]
        )
    page.text(ABOUT.format(base=next(iter(numbers.values()))["base"][0]))
    columns = ["", "wins, %", "expected", "reward", "shift", "implicit accuracy", "alarms"]
    page.table(columns, rows)
    page.figure("divergence", _figure(results), "Wins against how far pixels moved, every run")
    return numbers


ABOUT = """
Diffusion-DPO in the smallest world of pictures: 3×8×8, a square of a colour that the prompt names;
the reward is by how much that channel exceeds the others on the brightest patch. The base model
earns {base:+.3f}. Pairs are two of its own pictures of a prompt, or a picture and its edit where
that gains more than 0.05. Batches of 32 pairs, 200 updates of 600 pairs (150 updates where the arm
says how many pairs it has), Adam, every weight. A win is a higher reward than the base model's from
the same noise, 192 prompts. Expected win rates are those of an earlier experiment of this kind,
with a base model of its own. An alarm is what the guard's watch `divergence` would say at the end,
with its default limits.
"""


def _figure(results: dict[str, Numbers]) -> Any:
    figure, axes = subplots(size=(6.4, 4.2))
    for place, (label, runs) in enumerate(by_arm(results).items()):
        marker = "o" if place < len(COLOURS) else "s"
        shift, wins = [run["shift"] for run in runs], [100 * run["wins"] for run in runs]
        colour = COLOURS[place % len(COLOURS)]
        axes.plot(shift, wins, marker, color=colour, label=label, alpha=0.8)
    axes.set(xlabel="mean change of a pixel, of 1", ylabel="wins against the base model, %")
    axes.legend(frameon=False, fontsize=7)
    return figure
