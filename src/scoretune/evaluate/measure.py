"""What a run reports: the same held-out prompts and noise before and after, with intervals."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoretune.core import distributed
from scoretune.core.config import Run
from scoretune.data.prompts import Prompts
from scoretune.diffusion import grids
from scoretune.diffusion.named import grid
from scoretune.evaluate.scores import Score, act, rounded, sample, score, verdicts
from scoretune.models.catalog import resolve
from scoretune.policy import Policy
from scoretune.rewards.base import Reward
from scoretune.rewards.catalog import verdict_metrics

PREVIEW_COLUMNS = 6


@dataclass(frozen=True)
class Verdicts:
    """One value a prompt [B] of each metric, and the line that the log gets."""

    tasks: tuple[str, ...]
    values: Mapping[str, Tensor]
    line: dict[str, Any]

    def score(self, name: str) -> Score:
        return score(self.values[name], self.tasks)

    def save(self, path: Path) -> None:
        """Keep the base model's verdicts: a resumed run compares with them."""
        values = {name: value.tolist() for name, value in self.values.items()}
        plain = {"tasks": self.tasks, "values": values, "line": self.line}
        path.write_text(json.dumps(plain) + "\n", encoding="utf-8")

    @staticmethod
    def load(path: Path) -> Verdicts:
        plain = json.loads(path.read_text(encoding="utf-8"))
        values = {name: torch.tensor(value) for name, value in plain["values"].items()}
        return Verdicts(tuple(plain["tasks"]), values, plain["line"])


@dataclass(frozen=True)
class Measurement:
    """One evaluation: verdicts on the prompts, and the images they are about."""

    prompts: Prompts
    verdicts: Verdicts
    images: Tensor

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
        if "judge" in self.verdicts.values:
            judged = self.verdicts.values["judge"]
            described[f"{name}_right"] = [bool(judged[i] > 0.5) for i in chosen]
        known.write_text(json.dumps(described, indent=2) + "\n")


def measure(
    policy: Policy, run: Run, prompts: Prompts, reward: Reward, update: int, seconds: float
) -> Measurement:
    """Evaluate through the deterministic sampler, and the reward through the training one too.

    Two numbers hide in the difference of those rewards: `gap`, the stochastic sampler less the ODE
    (ddim) on the same training grid and from the same noise (arXiv 2510.10767), and `bias`, that
    ODE less the deterministic sampler of the evaluation: what the number of steps does. Their sum
    is the difference. A run with a window of stochastic steps is evaluated with noise on every one.
    Does not count towards the network evaluations of training.
    """
    calls = policy.calls
    chosen, process = run.evaluation, policy.backbone.process
    images = sample(
        policy, prompts, grids.uniform(process, chosen.steps), chosen.seed, chosen.solver
    )
    times = grid(process, run.sampling)
    acted, kl = act(policy, prompts, times, chosen.seed)
    still = sample(policy, prompts, times, chosen.seed, "ddim")
    rewards, stochastic, ode = (
        verdicts(found, prompts, {run.reward: reward})[run.reward]
        for found in (images, acted, still)
    )
    values = {
        "reward": rewards,
        **verdicts(images, prompts, verdict_metrics(str(resolve(run.model.source).world))),
    }
    policy.calls = calls
    line: dict[str, Any] = {
        "update": update,
        "network_evaluations": distributed.count(calls),
        "seconds": round(seconds, 2),
        "sampler": f"{chosen.solver}, {chosen.steps} steps",
        "reward": {
            "stochastic": rounded(float(stochastic.mean())),
            "deterministic": rounded(float(rewards.mean())),
        },
        "gap": {
            **score(stochastic - ode, prompts.tasks).as_gain(),
            "steps": run.sampling.steps,
            "eta": run.sampling.eta,
        },
        "bias": score(ode - rewards, prompts.tasks).as_gain(),
    }
    if kl is not None:
        line["path_kl"] = round(kl, 4)
    for name in values:
        if name != "reward":
            line[name] = score(values[name], prompts.tasks).as_dict()
    return Measurement(prompts, Verdicts(prompts.tasks, values, line), images)


def compare(base: Verdicts, final: Verdicts) -> dict[str, Any]:
    """The result of a run: scores before and after, and the paired gain with its interval."""
    result: dict[str, Any] = {}
    gains: dict[str, Any] = {}
    for name in final.values:
        gains[name] = score(final.values[name] - base.values[name], final.tasks).as_gain()
        if name == "reward":  # its levels, under both samplers, are below
            continue
        result[name] = {
            "base": base.score(name).as_dict(),
            "final": final.score(name).as_dict(),
        }
    result["reward"] = final.line["reward"]
    result["reward_base"] = base.line["reward"]
    result["path_kl"] = final.line.get("path_kl")
    for name in ("gap", "bias"):  # a base that was measured by an older version has neither
        result[name] = {"base": base.line.get(name), "final": final.line.get(name)}
    result["gain"] = gains
    return result


def preview_indices(prompts: Prompts, per_task: int = 4) -> list[int]:
    """The first few prompts of each task (or of all, where there is one task)."""
    tasks = list(dict.fromkeys(prompts.tasks))
    wanted = per_task if len(tasks) > 1 else per_task * PREVIEW_COLUMNS
    chosen: list[int] = []
    for task in tasks:
        own = [i for i, name in enumerate(prompts.tasks) if name == task]
        chosen += own[:wanted]
    return chosen
