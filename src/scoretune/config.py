"""The configuration tree: strict, typed, and changed by `a.b=c`.

A recipe returns a `Run`; nothing else configures a run. An unknown key is an error that names the
nearest key, and a value of the wrong kind is an error that names its place.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from scoretune.errors import UserError, unknown


class Strict(BaseModel):
    """Frozen, and without room for unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Model(Strict):
    """What is fine-tuned, and how much of it."""

    source: str = Field("scenes", description="'scenes', a folder, or a hub id")
    revision: str | None = None
    rank: int = Field(
        16, ge=0, description="of the LoRA; 0 trains every weight, at a far lower rate"
    )
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="of the frozen weights")
    guidance: float = Field(1.0, ge=0)


class Sampling(Strict):
    """How the policy acts while it trains."""

    kernel: Literal["gddim", "renoise", "euler_maruyama"] = "gddim"
    eta: float = Field(1.0, gt=0, description="stochasticity: 1 is the reverse SDE, 0 the ODE")
    steps: int = Field(10, ge=2)
    grid: Literal["karras", "uniform"] = "karras"


class Sizes(Strict):
    """How much is sampled and learned an update."""

    prompts: int = Field(16, ge=1)
    group: int = Field(8, ge=1, description="samples of each prompt")
    minibatch: int = Field(64, ge=1)
    share: float = Field(1.0, gt=0, le=1, description="of each path's steps that are learned from")


class Optimiser(Strict):
    """AdamW on the adapter."""

    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    decay: Literal["linear", "none"] = Field("linear", description="of the rate, to 0 at the end")


class Critic(Strict):
    """The value network of `score_action`."""

    learning_rate: float = Field(1e-3, gt=0)
    width: int = Field(48, ge=8, multiple_of=4)
    passes: int = Field(2, ge=1)
    warmup: int = Field(1, ge=0, description="rounds that only fit the critic, before update 1")


class Matching(Strict):
    """Denoising score matching on data."""

    kind: Literal["matching"] = "matching"
    t_min: float = Field(1e-3, gt=0)


class PolicyGradient(Strict):
    """DDPO and its kin."""

    kind: Literal["policy_gradient"] = "policy_gradient"
    clip: float = Field(0.2, gt=0)
    kl_weight: float = Field(0.0, ge=0)
    temperature: float = Field(1.0, gt=0)
    shared_scale: bool = True


class ScoreAction(Strict):
    """Continuous-time policy optimisation with a critic."""

    kind: Literal["score_action"] = "score_action"
    clip: float = Field(0.2, gt=0)
    kl_weight: float = Field(0.003, ge=0)
    slope_weight: float | None = Field(
        None, ge=0, le=1, description="of the value's slope; null: 1 if the reward has a gradient"
    )
    critic: Critic = Critic()


class Evaluation(Strict):
    """How progress is measured: held-out prompts, fixed noise, the deterministic sampler."""

    prompts: str | None = Field(
        None, description="as `prompts`; null: held-out scenes, or a user's model's own prompts"
    )
    per_task: int = Field(30, ge=0, description="scenes: prompts of each task; files: 0 takes all")
    solver: Literal["ddim", "heun", "dpmpp_2m"] = "ddim"
    steps: int = Field(20, ge=1)
    every: int = Field(14, ge=0, description="updates between evaluations; 0 only at both ends")
    seed: int = 20240


class Checkpoints(Strict):
    """When to save, and how many to keep."""

    every: int = Field(5, ge=1)
    keep: int = Field(2, ge=1)


class Run(Strict):
    """Everything that decides what a run does."""

    recipe: str
    seed: int = Field(0, ge=0, le=2**32 - 1)
    updates: int = Field(50, ge=1)
    model: Model = Model()
    prompts: str = Field("scenes", description="'scenes' or a text file with one prompt a line")
    prompts_per_task: int = Field(
        200, ge=0, description="scenes: as many of each task; 0 takes all"
    )
    data: str = Field("scenes", description="matching: 'scenes' or a folder of images and captions")
    reward: str = "reader"
    objective: Matching | PolicyGradient | ScoreAction = Field(discriminator="kind")
    sampling: Sampling = Sampling()
    sizes: Sizes = Sizes()
    optimiser: Optimiser = Optimiser()
    evaluation: Evaluation = Evaluation()
    checkpoints: Checkpoints = Checkpoints()


def changed(run: Run, assignments: Iterable[str]) -> Run:
    """The run with `a.b=c` applied. Raises UserError for unknown keys and unfit values."""
    tree = run.model_dump()
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise UserError(f"cannot read {assignment!r}: changes look like sampling.steps=20")
        _assign(tree, path, _literal(text))
    return validated(tree)


def validated(tree: dict[str, Any]) -> Run:
    """A Run from plain data, with one line on the first thing that does not fit."""
    try:
        return Run.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part not in _KINDS)
        if first["type"] == "extra_forbidden":
            raise UserError(f"unknown key {where!r}: not a setting of this recipe") from None
        raise UserError(f"{where}: {first['msg']}, got {first['input']!r}") from None


_KINDS = ("matching", "policy_gradient", "score_action")


def _assign(tree: dict[str, Any], path: str, value: Any) -> None:
    node, parts = tree, path.split(".")
    for depth, part in enumerate(parts):
        if not isinstance(node, dict) or part not in node:
            raise unknown("key", path, _keys(tree))
        if depth == len(parts) - 1:
            node[part] = value
        else:
            node = node[part]


def _keys(tree: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in tree.items():
        inner = _keys(value, f"{prefix}{key}.") if isinstance(value, dict) else []
        found += inner or [prefix + key]
    return found


def _literal(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
