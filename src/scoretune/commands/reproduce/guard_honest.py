"""The guard at its defaults over honest runs: it must keep quiet, and what it costs."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from scoretune import recipes
from scoretune.commands.reproduce.base import Cell, Numbers, Page
from scoretune.commands.reproduce.drawing import COLOURS, subplots
from scoretune.commands.reproduce.fine_tuning import QUICK, Arm, cells_of, level
from scoretune.core import config
from scoretune.evaluate.guard import guard
from scoretune.rewards.catalog import named_reward
from scoretune.training import overrides
from scoretune.training.build import build_policy, held_out_prompts
from scoretune.training.run import measured_run

HONEST = {"score as action": Arm("score_as_action", "score_as_action")}


def cells(seeds: int, quick: bool) -> list[Cell]:
    """What `scoretune demo` runs, once a seed; and what the guard adds to an evaluation."""
    runs = cells_of(HONEST, "reader", seeds, quick, reference="score as action")
    return [*runs, Cell("cost", cost, {"changes": QUICK if quick else []})]


def cost(changes: list[str]) -> Numbers:
    """Network evaluations and seconds of an evaluation of the demo, without and with the guard."""
    torch.manual_seed(0)
    run = overrides.changed(recipes.demo(), changes)
    policy, held_out = build_policy(run, torch.device("cpu")), held_out_prompts(run)
    reward = named_reward(run.reward)
    judge, features = guard.judge_and_features(
        run.guard, reward=run.reward, source=run.model.source
    )
    counted = _Counted(policy)
    with tempfile.TemporaryDirectory() as folder:
        monitor = guard.monitor(
            run.guard,
            run.evaluation,
            judge=judge,
            features=features,
            updates=run.updates,
            folder=Path(folder),
            held_out=held_out,
            on_alarm=lambda numbers: None,
        )
        start = time.process_time()
        measured = measured_run(run, policy, held_out, reward)
        between, calls = time.process_time(), counted.calls
        monitor.observe(measured, policy, 0)
    end = time.process_time()
    return {
        "evaluation": {"calls": calls, "seconds": round(between - start, 2)},
        "guard": {"calls": counted.calls - calls, "seconds": round(end - between, 2)},
    }


class _Counted:
    """Counts network evaluations; those of an evaluation do not count towards training."""

    def __init__(self, policy: Any) -> None:
        self.calls = 0
        policy.backbone.network.register_forward_hook(self._count)

    def _count(self, network: Any, given: Any, output: Any) -> None:
        predicted = output[0] if isinstance(output, tuple) else getattr(output, "sample", output)
        self.calls += len(predicted)


def present(results: dict[str, Numbers], page: Page) -> Numbers:
    """How near each watch came to its limit in any evaluation of any run."""
    runs = [numbers for name, numbers in results.items() if name != "cost"]
    limits = config.Guard()
    rows = [_extremes(run) for run in runs]
    page.text(
        "`scoretune demo` at the guard's defaults (`guard.action=warn`), which must not ring: the "
        "reward is honest. In brackets what would ring."
    )
    page.table(
        [
            "seed",
            *("alarms", "judge, base to end", "largest fall (of what chance explains)"),
            f"least variety (below {limits.diversity:g})",
            f"highest pattern (above {limits.pattern:g})",
        ],
        [
            [
                seed,
                row["alarms"],
                f"{row['judge'][0]:.3f} → {row['judge'][1]:.3f}",
                f"{row['fall']:.3f} ({row['chance']:.3f})",
                f"{row['diversity']:.3f}",
                f"{row['pattern']:.2f}",
            ]
            for seed, row in enumerate(rows)
        ],
    )
    spent = results["cost"]
    share = {
        unit: spent["guard"][unit] / max(spent["evaluation"][unit], 1e-9)
        for unit in ("calls", "seconds")
    }
    page.text(
        f"The guard adds {share['calls']:.1%} to the network evaluations of an evaluation "
        f"({spent['guard']['calls']:,} to {spent['evaluation']['calls']:,}) and "
        f"{share['seconds']:.1%} to its seconds; nothing between evaluations."
    )
    page.figure("honest", _drawn(runs), "every watch against its limit")
    return {"seeds": rows, "share of an evaluation": {k: round(v, 4) for k, v in share.items()}}


def _extremes(run: Numbers) -> Numbers:
    seen = [line["guard"] for line in run["evaluations"]]
    falls = [(s["fall"], s["chance"]) for s in seen if "fall" in s] or [(0.0, 0.0)]
    fall, chance = max(falls, key=lambda pair: pair[0])
    return {
        "alarms": len(run["result"]["guard"]["alarms"]),
        "judge": [level(run["evaluations"][0], "judge"), level(run["evaluations"][-1], "judge")],
        "fall": fall,
        "chance": chance,
        "diversity": min(s["diversity"] for s in seen),
        "pattern": max(s["pattern"] for s in seen),
    }


def _drawn(runs: list[Numbers]) -> Any:
    """Judge and reward as gains, variety and patterns, against updates."""
    limits = config.Guard()
    figure, panels = subplots(1, 3, sharex=True, size=(10.5, 3.4))
    watched = [
        ("judge_gain", "gain in deviations of the base", None),
        ("diversity", "variety, relative to the base", limits.diversity),
        ("pattern", "pattern, relative to the base", limits.pattern),
    ]
    for axes, (key, label, limit) in zip(panels, watched, strict=True):
        for seed, run in enumerate(runs):
            lines = run["evaluations"]
            updates = [line["update"] for line in lines]
            colour = COLOURS[seed % len(COLOURS)]
            values = [line["guard"][key] for line in lines]
            axes.plot(updates, values, color=colour, marker="o", ms=4, label=f"seed {seed}: judge")
            if key == "judge_gain":
                rewards = [line["guard"]["reward_gain"] for line in lines]
                axes.plot(updates, rewards, color=colour, linestyle="--", label="its reward")
        if limit is not None:
            axes.axhline(limit, color="k", linestyle=":", label="limit")
        axes.set(xlabel="update", ylabel=label)
    panels[0].legend(frameon=False, fontsize=8)
    return figure
