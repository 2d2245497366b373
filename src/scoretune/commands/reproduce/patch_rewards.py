"""Rewards followed in the smallest world of pictures: by values, by slopes, and held by a KL.

DDPO and AlignProp on the colour's reward; DDPO and DPOK, which pays for the path KL, on one that
saturates, so that what a policy does beyond it is drift.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoretune import recipes
from scoretune.commands.reproduce import patch_world
from scoretune.commands.reproduce.base import Cell, Numbers, Page, by_arm, interval, shown
from scoretune.commands.reproduce.drawing import COLOURS, draw_band, subplots
from scoretune.data.prompts import Prompts
from scoretune.training import overrides
from scoretune.training.build import Checked, build_method
from scoretune.training.engine import TorchEngine
from scoretune.training.loop import train

UPDATES, EVERY, PER_PROMPT = 100, 20, 32
ENOUGH = 0.4
"""The reward beyond which the saturating one pays no more."""


class Arm(NamedTuple):
    """A recipe with changes; `saturates`: on the reward that does."""

    recipe: str
    changes: Sequence[str] = ()
    saturates: bool = False


COMMON = ("sizes.prompts=6", "sizes.group=8", "optimiser.learning_rate=2e-4")
ARMS = {
    "DDPO": Arm("ddpo", COMMON),
    "AlignProp": Arm("alignprop", COMMON),
    "no KL, saturating": Arm("dpok", (*COMMON, "objective.kl_weight=0"), True),
    "DPOK 0.01, saturating": Arm("dpok", COMMON, True),
    "DPOK 0.1, saturating": Arm("dpok", (*COMMON, "objective.kl_weight=0.1"), True),
}
REHEARSED = ("DDPO", "AlignProp")
UNPENALISED, PENALISED = "no KL, saturating", "DPOK 0.01, saturating"


def cells(seeds: int, quick: bool) -> list[Cell]:
    """A run of each arm and seed."""
    labels = REHEARSED if quick else ARMS
    return patch_world.cells_of(learned, labels, seeds, 100 if quick else 1)


def saturating(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """The colour's reward up to `ENOUGH`, [B]."""
    return patch_world.reward(images, prompts).clamp(max=ENOUGH)


def learned(label: str, seed: int, scale: int, folder: Path) -> Numbers:
    """The mean reward, and how far pixels have moved, every so many updates."""
    arm, updates = ARMS[label], UPDATES // scale
    world = patch_world.base(folder, patch_world.UPDATES // scale)
    run = overrides.changed(
        recipes.named(arm.recipe), [*arm.changes, f"seed={seed}", f"updates={updates}"]
    )
    torch.manual_seed(seed)
    policy = patch_world.trainable(world)
    prompts = Prompts(patch_world.PROMPTS, patch_world.PROMPTS)
    reward = saturating if arm.saturates else patch_world.reward
    method = build_method(run, policy, Checked(prompts, prompts, reward, None))
    for lap in range(method.warm_up):
        method.source(-1 - lap)
    per_prompt = max(2, PER_PROMPT // scale)
    before, after = patch_world.compared(policy, seed, per_prompt)
    curve = [after | {"update": 0}]

    def measure(update: int, metrics: object) -> None:
        if (update + 1) % max(1, EVERY // scale) == 0:
            curve.append(patch_world.compared(policy, seed, per_prompt)[1] | {"update": update + 1})

    adaptive = method.adaptive
    train(
        method.source,
        method.objective,
        torch.optim.Adam(policy.parameters(), run.optimiser.learning_rate),
        TorchEngine(),
        updates=range(updates),
        region=method.region,
        hooks=[measure, *([adaptive.adapt] if adaptive else [])],
    )
    return {"curve": curve, "base": before["base"]}


def present(results: dict[str, Numbers], page: Page) -> Numbers:
    """Where each arm ended, and how soon it had reached what DDPO ended with."""
    arms = by_arm(results)
    goal = _mean([run["curve"][-1]["reward"] for run in arms["DDPO"]])
    rows: list[list[object]] = []
    numbers: Numbers = {"DDPO's end": goal}
    for label, runs in arms.items():
        last = [run["curve"][-1] for run in runs]
        when = [_reached(run, goal) for run in runs]
        spread = {key: interval([each[key] for each in last]) for key in ("reward", "shift")}
        numbers[label] = spread | {"reached DDPO's end": when}
        soon = ", ".join("–" if update is None else str(update) for update in when)
        rows.append([label, shown(spread["reward"], sign="+"), shown(spread["shift"]), soon])
    page.text(
        f"{UPDATES} updates of 48 pictures, Adam at 2e-4 on every weight, evaluated on 96 pictures "
        f"through DDIM; the base model earns {arms['DDPO'][0]['base']:+.3f}. Shift is the mean "
        f"change of a pixel from the same noise. The saturating reward pays up to {ENOUGH:g}."
    )
    columns = ["", "reward at the end", "shift", f"reached DDPO's end ({goal:+.3f}) at update"]
    page.table(columns, rows)
    if PENALISED in arms:
        saved = _saved(arms)
        if saved:
            numbers["shift saved at equal reward"] = further = interval(saved)
            page.text(
                f"Where the reward of {UNPENALISED} was what {PENALISED} ended with (on a line "
                f"between evaluations), its pictures had moved further by {shown(further)}, in "
                f"the {len(saved)} of {len(arms[PENALISED])} seeds that came to it."
            )
    page.figure("rewards", _figure(arms), "Reward and shift of every arm, with 95 % bands")
    return numbers


def _reached(run: Numbers, goal: float) -> int | None:
    return next((each["update"] for each in run["curve"] if each["reward"] >= goal), None)


def _saved(arms: dict[str, list[Numbers]]) -> list[float]:
    """How much further pictures had moved without the KL where the reward was the same, for each
    seed that reached it."""
    held = [run["curve"][-1] for run in arms[PENALISED]]
    pairs = zip(arms[UNPENALISED], held, strict=True)
    shifts = [(shift_at(run["curve"], end["reward"]), end["shift"]) for run, end in pairs]
    return [shift - least for shift, least in shifts if shift is not None]


def shift_at(curve: Sequence[Numbers], reward: float) -> float | None:
    """The shift where a curve first is at a reward, on a line between two evaluations; None for
    a reward that it never comes to."""
    for before, after in pairwise(curve):
        if before["reward"] <= reward <= after["reward"]:
            gained = after["reward"] - before["reward"]
            share = (reward - before["reward"]) / gained if gained > 0 else 0.0
            return float(before["shift"] + share * (after["shift"] - before["shift"]))
    return None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _figure(arms: dict[str, list[Numbers]]) -> Any:
    figure, (left, right) = subplots(1, 2, size=(9, 4))
    for colour, (label, runs) in zip(COLOURS, arms.items(), strict=False):
        updates = [each["update"] for each in runs[0]["curve"]]
        for axes, key in ((left, "reward"), (right, "shift")):
            draw_band(axes, updates, [[e[key] for e in r["curve"]] for r in runs], colour, label)
    left.set(xlabel="updates", ylabel="reward")
    right.set(xlabel="updates", ylabel="mean change of a pixel, of 1")
    left.legend(frameon=False, fontsize=7)
    return figure
