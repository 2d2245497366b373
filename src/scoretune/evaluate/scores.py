"""Scores of a policy on prompts: values with intervals, and how they differ before and after."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoretune.core import distributed, files
from scoretune.core.config import Evaluation, Sampling
from scoretune.core.records import spans
from scoretune.data.prompts import Prompts
from scoretune.data.scenes import world
from scoretune.diffusion.named import grid
from scoretune.evaluate.mixed_sizes import by_size, in_place, on_canvas
from scoretune.evaluate.samples import act, deployed_times, part_of, sample
from scoretune.models.catalog import guidance_of, resolve
from scoretune.policy import Policy
from scoretune.rewards import reader, scene_edit
from scoretune.rewards.base import Reward, can_judge, checked


@dataclass(frozen=True)
class Score:
    """A mean with its 95 % interval over prompts, and the mean of each task."""

    overall: float
    low: float
    high: float
    tasks: dict[str, float]

    def as_dict(self) -> dict[str, object]:
        """The score as plain data, rounded for people."""
        numbers = {"overall": self.overall, "low": self.low, "high": self.high}
        plain: dict[str, object] = {name: rounded(value) for name, value in numbers.items()}
        return {**plain, "tasks": {name: rounded(value) for name, value in self.tasks.items()}}

    def as_gain(self) -> dict[str, float]:
        """Mean and interval of a paired difference, rounded for people."""
        numbers = {"mean": self.overall, "low": self.low, "high": self.high}
        return {name: rounded(value) for name, value in numbers.items()}


def rounded(value: float) -> float:
    """Six significant digits, so that small rewards keep theirs; -0.0 becomes 0.0."""
    return float(f"{value:.6g}") + 0.0


def score(values: Tensor, tasks: tuple[str, ...]) -> Score:
    """Summarise one value a prompt [B]: mean ± 1.96 standard errors, and the mean by task."""
    mean = float(values.mean())
    error = 1.96 * float(values.std()) / len(values) ** 0.5 if len(values) > 1 else 0.0
    by_task = {
        task: float(values[torch.tensor([name == task for name in tasks])].mean())
        for task in dict.fromkeys(tasks)
    }
    return Score(mean, mean - error, mean + error, by_task)


@torch.no_grad()
def verdicts(
    images: Tensor, prompts: Prompts, metrics: Mapping[str, Reward], batch: int = 64
) -> dict[str, Tensor]:
    """Every metric on every image: {name: [B]} on the CPU; several processes judge a part each, on
    their devices."""
    part, device = part_of(len(prompts)), distributed.device()
    images, texts = images[part], prompts.texts[part]
    values = {}
    for name, metric in metrics.items():
        parts = [
            checked(metric, name, images[s].to(device), texts[s]).cpu()
            for s in spans(len(texts), batch)
        ]
        values[name] = distributed.gather(torch.cat([torch.zeros(0), *parts]))
    return values


def judging(source: str, prompts: Prompts) -> dict[str, Reward]:
    """Those of the `verdict_metrics` that can judge all of these prompts."""
    metrics = verdict_metrics(source).items()
    return {name: metric for name, metric in metrics if can_judge(metric, prompts.texts)}


def unjudged(source: str, prompts: Prompts) -> tuple[str, ...]:
    """A line on those that cannot judge all of these prompts, where there are such."""
    able = judging(source, prompts)
    left = [name for name in verdict_metrics(source) if name not in able]
    if not left:
        return ()
    return (
        f"no {' and no '.join(left)} in evaluations: some of the held-out prompts are not of the "
        "model's own world",
    )


def verdict_metrics(source: str) -> dict[str, Reward]:
    """The world's reader and judge as verdicts of 0 or 1, of the shipped editor on its edits; none
    for models of no world of scenes."""
    if resolve(source).source == world.EDITOR:
        home = world.shipped()
        networks = {name: reader.load(home, name) for name in ("reader", "judge")}
        return {n: scene_edit.EditReading(each, soft=False) for n, each in networks.items()}
    folder = resolve(source).world
    if not (folder / "judge.safetensors").exists():
        return {}
    return {n: reader.Reading(reader.load(folder, n), soft=False) for n in ("reader", "judge")}


# ---------------------------------------------------------------------------- one evaluation


@dataclass(frozen=True)
class Measurement:
    """One evaluation of a policy, one value a prompt [B].

    `images` [B, *S] are those of the deterministic sampler, and `values` what they are worth: the
    "reward", and each metric by its name. `stochastic` and `ode` are the rewards of the training
    sampler and of the ODE on its grid. `kls` are those of `samples.act`, none without an adapter.
    `guidance` is the scale that all were drawn with.

    Prompts of several sizes are measured size by size: `parts` are these measurements with the
    numbers of their prompts, and `images` are then on canvases of one size, to be looked at.
    """

    prompts: Prompts
    images: Tensor
    values: Mapping[str, Tensor]
    stochastic: Tensor
    ode: Tensor
    kls: Mapping[str, float]
    guidance: float = 1.0
    parts: tuple[tuple[Sequence[int], Measurement], ...] = ()

    @property
    def of_each_size(self) -> tuple[tuple[Sequence[int], Measurement], ...]:
        """The parts, of one size itself: what looks at pictures as they are goes through these."""
        return self.parts or ((range(len(self.prompts)), self),)


def measure(
    policy: Policy,
    prompts: Prompts,
    *,
    reward: Reward,
    reward_name: str,
    metrics: Mapping[str, Reward],
    evaluation: Evaluation,
    sampling: Sampling,
) -> Measurement:
    """Evaluate through the deterministic sampler, along the model's own times, and the reward
    through the training one too; prompts of several sizes size by size, each from its own noise.

    A run with a window of stochastic steps is evaluated with noise on every one. Does not count
    towards the network evaluations of training.
    """
    process, seed, batch = policy.backbone.process, evaluation.seed, policy.at_most(64)
    times, guidance = grid(process, sampling), guidance_of(policy)

    def of_one_size(some: Prompts) -> Measurement:
        own = deployed_times(policy.backbone, evaluation.steps, some.texts)
        with policy.uncounted():
            images = sample(policy, some, times=own, seed=seed, solver=evaluation.solver)
            stochastic, kls = act(
                policy, some, times=times, seed=seed, integral_end=sampling.integral_end
            )
            ode = sample(policy, some, times=times, seed=seed, solver="ddim")
        worth, noisy, plain = (
            verdicts(drawn, some, {reward_name: reward}, batch)[reward_name]
            for drawn in (images, stochastic, ode)
        )
        values = {"reward": worth, **verdicts(images, some, metrics, batch)}
        kls = {name: round(kl, 4) for name, kl in kls.items()}
        return Measurement(some, images, values, noisy, plain, kls, guidance)

    each = [(places, of_one_size(some)) for places, some in by_size(policy.backbone, prompts)]
    return each[0][1] if len(each) == 1 else _together(prompts, each)


def _together(prompts: Prompts, each: Sequence[tuple[Sequence[int], Measurement]]) -> Measurement:
    """Measurements of some of the prompts each as that of all."""
    first, count = each[0][1], len(prompts)
    return Measurement(
        prompts=prompts,
        images=on_canvas([(places, one.images) for places, one in each]),
        values={
            name: in_place([(places, one.values[name]) for places, one in each])
            for name in first.values
        },
        stochastic=in_place([(places, one.stochastic) for places, one in each]),
        ode=in_place([(places, one.ode) for places, one in each]),
        kls={
            name: round(sum(one.kls[name] * len(places) for places, one in each) / count, 4)
            for name in first.kls
        },
        guidance=first.guidance,
        parts=tuple(each),
    )


def evaluation_line(
    measured: Measurement,
    evaluation: Evaluation,
    sampling: Sampling,
    *,
    update: int,
    seconds: float,
    network_evaluations: int,
) -> dict[str, Any]:
    """An evaluation as a line of `evaluations.jsonl`.

    Two numbers hide in the difference of the two samplers' rewards: `gap`, the stochastic sampler
    less the ODE (ddim) on the same training grid and from the same noise (arXiv 2510.10767), and
    `bias`, that ODE less the deterministic sampler of the evaluation: what the number of steps
    does. Their sum is the difference.
    """
    tasks, rewards = measured.prompts.tasks, measured.values["reward"]
    line: dict[str, Any] = {
        "update": update,
        "network_evaluations": network_evaluations,
        "seconds": round(seconds, 2),
        "sampler": f"{evaluation.solver}, {evaluation.steps} steps",
        "guidance": measured.guidance,
        "reward": {
            "stochastic": rounded(float(measured.stochastic.mean())),
            "deterministic": rounded(float(rewards.mean())),
        },
        "gap": {
            **score(measured.stochastic - measured.ode, tasks).as_gain(),
            "steps": sampling.steps,
            **noise_of(sampling),
        },
        "bias": score(measured.ode - rewards, tasks).as_gain(),
    }
    line |= measured.kls
    scores = {n: score(v, tasks).as_dict() for n, v in measured.values.items() if n != "reward"}
    return line | scores


def noise_of(sampling: Sampling) -> dict[str, float]:
    """How noisy a sampler is, by its right name: `eta` where all its steps have that η, and the
    `level` of the paper where `sampling.eta` is one (`diffusion.scales`)."""
    if sampling.noise in ("constant", "ramp"):
        return {"eta": sampling.eta}
    flow = {"eta": sampling.eta / math.sqrt(2)} if sampling.noise == "flow" else {}
    return {**flow, "level": sampling.eta}


# --------------------------------------------------------------------------- before and after


@dataclass(frozen=True)
class Verdicts:
    """What remains of an evaluation: one value a prompt [B] of each metric, and the log's line."""

    tasks: tuple[str, ...]
    values: Mapping[str, Tensor]
    line: dict[str, Any]

    def score(self, name: str) -> Score:
        return score(self.values[name], self.tasks)

    def save(self, path: Path) -> None:
        """Keep the base model's verdicts: a resumed run compares with them."""
        values = {name: value.tolist() for name, value in self.values.items()}
        plain = {"tasks": self.tasks, "values": values, "line": self.line}
        files.write_whole(path, json.dumps(plain) + "\n")

    @staticmethod
    def load(path: Path) -> Verdicts:
        plain = json.loads(path.read_text(encoding="utf-8"))
        values = {name: torch.tensor(value) for name, value in plain["values"].items()}
        return Verdicts(tuple(plain["tasks"]), values, plain["line"])


def compare(base: Verdicts, final: Verdicts) -> dict[str, Any]:
    """The result of a run: scores before and after, the paired gain with its interval, and the
    share of prompts on which the tuned model wins from the same noise; a tie is half a win."""
    result: dict[str, Any] = {}
    gains: dict[str, Any] = {}
    wins: dict[str, Any] = {}
    for name in final.values:
        gain = final.values[name] - base.values[name]
        gains[name] = score(gain, final.tasks).as_gain()
        wins[name] = score(gain.sign() / 2 + 0.5, final.tasks).as_dict()
        if name == "reward":  # its levels, under both samplers, are below
            continue
        result[name] = {"base": base.score(name).as_dict(), "final": final.score(name).as_dict()}
    result["reward"] = final.line["reward"]
    result["reward_base"] = base.line["reward"]
    for name in ("chain_kl", "girsanov_kl", "guidance"):
        result[name] = final.line.get(name)
    for name in ("gap", "bias"):  # a base that was measured by an older version has neither
        result[name] = {"base": base.line.get(name), "final": final.line.get(name)}
    result |= {"gain": gains, "wins": wins}
    return result
