"""What a run reports: the same held-out prompts and noise before and after, with intervals."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoretune.config import Run
from scoretune.data import Prompts
from scoretune.diffusion import grids
from scoretune.evaluate import Score, sample, score, verdicts
from scoretune.policy import Policy
from scoretune.rewards.base import Reward
from scoretune.run_parts import grid
from scoretune.scorers import verdict_metrics

PREVIEW_COLUMNS = 6


@dataclass(frozen=True)
class Measurement:
    """One evaluation: `values` [B] of each metric, the images, and the line for the log."""

    prompts: Prompts
    values: Mapping[str, Tensor]
    images: Tensor
    line: dict[str, Any]

    def score(self, name: str) -> Score:
        return score(self.values[name], self.prompts.tasks)

    def save_preview(self, folder: Path, name: str) -> None:
        """A grid of samples as `name.png`, and which of them the judge accepts."""
        from PIL import Image

        folder.mkdir(parents=True, exist_ok=True)
        chosen = preview_indices(self.prompts)
        pixels = (self.images[chosen].cpu() * 255).round().byte()
        rows = -(-len(chosen) // PREVIEW_COLUMNS)
        side = pixels.shape[-1]
        sheet = torch.zeros(rows * PREVIEW_COLUMNS, 3, side, side, dtype=torch.uint8)
        sheet[: len(chosen)] = pixels
        canvas = sheet.unflatten(0, (rows, PREVIEW_COLUMNS)).permute(0, 3, 1, 4, 2)
        Image.fromarray(canvas.flatten(0, 1).flatten(1, 2).numpy()).save(folder / f"{name}.png")
        known = folder / "prompts.json"
        described = json.loads(known.read_text()) if known.exists() else {}
        described |= {
            "prompts": [self.prompts.texts[i] for i in chosen],
            "columns": PREVIEW_COLUMNS,
            "side": side,
        }
        if "judge" in self.values:
            described[f"{name}_right"] = [bool(self.values["judge"][i] > 0.5) for i in chosen]
        known.write_text(json.dumps(described, indent=2) + "\n")


def measure(
    policy: Policy, run: Run, prompts: Prompts, reward: Reward, update: int, seconds: float
) -> Measurement:
    """Evaluate through the deterministic sampler, and the reward through the training one too.

    Does not count towards the network evaluations of training.
    """
    calls = policy.calls
    chosen, process = run.evaluation, policy.backbone.process
    images = sample(policy, prompts, grids.uniform(process, chosen.steps), chosen.seed, chosen.solver)
    acted = sample(policy, prompts, grid(process, run.sampling), chosen.seed, None)
    metrics = {"reward": reward, **verdict_metrics(run.model.source)}
    values = verdicts(images, prompts, metrics)
    stochastic = verdicts(acted, prompts, {"reward": reward})["reward"]
    policy.calls = calls
    line: dict[str, Any] = {
        "update": update,
        "network_evaluations": calls,
        "seconds": round(seconds, 2),
        "sampler": f"{chosen.solver}, {chosen.steps} steps",
        "reward": {
            "stochastic": round(float(stochastic.mean()), 4),
            "deterministic": round(float(values["reward"].mean()), 4),
        },
    }
    for name in metrics:
        if name != "reward":
            line[name] = score(values[name], prompts.tasks).as_dict()
    return Measurement(prompts, values, images, line)


def compare(base: Measurement, final: Measurement) -> dict[str, Any]:
    """The result of a run: scores before and after, and the paired gain with its interval."""
    result: dict[str, Any] = {}
    gains: dict[str, Any] = {}
    for name in final.values:
        if name == "reward":
            continue
        result[name] = {
            "base": base.score(name).as_dict(),
            "final": final.score(name).as_dict(),
        }
        paired = score(final.values[name] - base.values[name], final.prompts.tasks)
        gains[name] = {"mean": paired.overall, "low": paired.low, "high": paired.high}
    result["reward"] = final.line["reward"]
    result["reward_base"] = base.line["reward"]
    result["gain"] = {n: {k: round(v, 4) for k, v in gain.items()} for n, gain in gains.items()}
    return result


def preview_indices(prompts: Prompts, per_task: int = 4) -> list[int]:
    """The first few distinct prompts of each task (or of all, where there is one task)."""
    tasks = list(dict.fromkeys(prompts.tasks))
    wanted = per_task if len(tasks) > 1 else per_task * PREVIEW_COLUMNS
    chosen: list[int] = []
    for task in tasks:
        own = [i for i, name in enumerate(prompts.tasks) if name == task]
        chosen += own[:wanted]
    return chosen
