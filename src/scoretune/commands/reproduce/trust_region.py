"""Where score as action runs away, and what holds it: whose estimate the value reads, and a trust
region.

Data are two blobs at (∓1, 0), the reward is −‖x − (1, ½)‖², and κ = 0.003 is small: the best law is
nearly the point (1, ½), far from what the pretrained model draws. The recipe's own settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from scoretune import recipes
from scoretune.commands.reproduce.base import Cell, Numbers, Page, by_arm
from scoretune.commands.reproduce.drawing import COLOURS, subplots
from scoretune.core.conditions import Condition
from scoretune.data.prompts import Prompts
from scoretune.diffusion import grids
from scoretune.diffusion.named import kernel
from scoretune.diffusion.processes import VP
from scoretune.models import toy
from scoretune.policy import Policy
from scoretune.rl import tilt
from scoretune.rollout import deterministic, prior
from scoretune.training import overrides
from scoretune.training.build import Checked, build_method
from scoretune.training.engine import TorchEngine
from scoretune.training.loop import train
from scoretune.training.nonfinite import NonFinite

LAW = tilt.Mixture.of([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], 0.1)
GOAL = (1.0, 0.5)
RADII: dict[str, tuple[float | None, ...]] = {
    "pretrained": (None, 0.03, 0.1, 0.3),
    "policy": (None, 0.03, 0.1, 0.3),
}
EVERY, UPDATES = 10, 60


def cells(seeds: int, quick: bool) -> list[Cell]:
    """A run of each estimate, radius and seed."""
    updates = 2 if quick else UPDATES
    return [
        Cell(
            f"{estimate}-{radius or 'none'}-{seed}",
            learned,
            {"estimate": estimate, "radius": radius, "seed": seed, "updates": updates},
        )
        for estimate, radii in RADII.items()
        for radius in (radii[:1] if quick else radii)
        for seed in range(seeds)
    ]


def learned(estimate: str, radius: float | None, seed: int, updates: int) -> Numbers:
    """The mean reward of the ODE's samples before and every so many updates, until the end or until
    a gradient is not finite."""
    changes = {"trust_region": radius or "null", "critic.estimate": estimate}
    words = [f"objective.{name}={value}" for name, value in changes.items()]
    run = overrides.changed(recipes.score_as_action(), [f"seed={seed}", *words])
    torch.manual_seed(seed)
    control = toy.PerceptronControl(2, width=32)
    policy = Policy(toy.Controlled(toy.Mixture(VP(), LAW), control), kernel(run.sampling))
    prompts = Prompts(("",), ("all",))
    method = build_method(run, policy, Checked(prompts, prompts, reward, None))
    for lap in range(method.warm_up):
        method.source(-1 - lap)
    rewards = [drawn_reward(policy)]
    adaptive = method.adaptive

    def measure(update: int, metrics: object) -> None:
        if update % EVERY == 0:
            rewards.append(drawn_reward(policy))

    try:
        train(
            method.source,
            method.objective,
            torch.optim.Adam(policy.parameters(), lr=run.optimiser.learning_rate),
            TorchEngine(),
            updates=range(updates),
            region=method.region,
            hooks=[measure, *([adaptive.adapt] if adaptive else [])],
        )
    except NonFinite as error:
        return {"rewards": rewards, "ended": str(error).partition(":")[0]}
    return {"rewards": rewards, "ended": None}


def reward(x: Tensor, prompts: Sequence[str]) -> Tensor:
    """−‖x − (1, ½)‖² of points x [B, 2]."""
    return -((x - x.new_tensor(GOAL)) ** 2).sum(1)


def drawn_reward(policy: Policy, batch: int = 1000) -> float:
    """The mean reward through DDIM on 30 uniform steps, from the same noise each time."""
    noise = prior(policy, batch, torch.Generator().manual_seed(9))
    times = grids.uniform(policy.backbone.process, 30)
    return float(reward(deterministic(policy, Condition.none(batch), times, noise), []).mean())


def present(results: dict[str, Numbers], page: Page) -> Numbers:
    """How the runs of each arm ended."""
    rows, numbers = [], {}
    base = next(iter(results.values()))["rewards"][0]
    for arm, runs in by_arm(results).items():
        estimate, _, radius = arm.partition("-")
        last = sorted(run["rewards"][-1] for run in runs)
        burst = sum(run["ended"] is not None for run in runs)
        fallen = sum(run["ended"] is None and run["rewards"][-1] < base for run in runs)
        middle = last[len(last) // 2]
        ends = (f"{value:.3g}" for value in (last[0], middle, last[-1]))
        rows.append([estimate, radius, burst, fallen, *ends])
        numbers[arm] = {"last": last, "not finite": burst, "below the base": fallen}
    page.text(
        f"Data: two blobs at (∓1, 0). Reward −‖x − (1, ½)‖², κ = 0.003, {UPDATES} updates of the "
        f"recipe's. The pretrained model earns {base:.2f}. The last mean reward that was measured, "
        f"every {EVERY} updates through DDIM; runs whose gradient was not finite ended there."
    )
    columns = ["x̂0 that the value reads", "radius", "runs not finite", "runs that fell below"]
    page.table([*columns, "worst", "median", "best"], rows)
    page.figure("rewards", _figure(results), "Mean reward over updates, by estimate and radius")
    return numbers


def _figure(results: dict[str, Numbers]) -> Any:
    """Every run's rewards, one panel an estimate: 0 above, and powers of ten below -1."""
    figure, panels = subplots(1, len(RADII), size=(9, 3.6), sharey=True)
    for axes, (estimate, radii) in zip(panels, RADII.items(), strict=True):
        for radius, colour in zip(radii, COLOURS, strict=False):
            runs = by_arm(results).get(f"{estimate}-{radius or 'none'}", [])
            for number, run in enumerate(runs):
                at = [EVERY * place for place in range(len(run["rewards"]))]
                label = f"radius {radius}" if radius else "no trust region"
                axes.plot(at, run["rewards"], color=colour, label="" if number else label)
                if run["ended"] is not None:
                    axes.plot(at[-1], run["rewards"][-1], "x", color=colour)
        axes.set_yscale("symlog", linthresh=1)
        axes.set_title(f"the value reads the {estimate} x̂0")
        axes.set_xlabel("updates (× where a gradient was not finite)")
    panels[0].set_ylabel("mean reward")
    panels[0].legend(frameon=False, fontsize=8)
    return figure
