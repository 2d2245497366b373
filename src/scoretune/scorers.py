"""Rewards by name: what a configuration calls a reward, and what a run reports beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from scoretune.errors import unknown
from scoretune.rewards import pixels, python, reader, weighted
from scoretune.rewards.base import Reward
from scoretune.scenes import world

REWARDS: dict[str, Callable[[], Reward]] = {
    "reader": lambda: reader.Reading(reader.load(world.shipped(), "reader")),
    "compressibility": lambda: pixels.Compressibility(),
    "incompressibility": lambda: pixels.Compressibility(sign=-1.0),
    "brightness": lambda: pixels.brightness,
}


def named_reward(name: str) -> Reward:
    """The reward of that name, a user's `module:function`, or a weighted sum of such.

    A sum looks like `reader + 0.5*compressibility - 0.1*my_module:function`.
    """
    terms = weighted.terms(name, REWARDS)
    if len(terms) > 1 or terms[0][0] != 1:
        return weighted.Weighted(
            tuple(weighted.Part(part, weight, _single(part)) for weight, part in terms)
        )
    return _single(terms[0][1])


def _single(name: str) -> Reward:
    if ":" in name:
        return python.from_path(name)
    if name not in REWARDS:
        raise unknown("reward", name, [*REWARDS, "module:function"])
    return REWARDS[name]()


def verdict_metrics(model: str) -> dict[str, Reward]:
    """For models of the shipped world: does the reader, does the judge, find what was asked?

    Each gives 0 or 1. A model folder that `scoretune pretrain scenes` made holds its own two.
    """
    folder = world.shipped() if model in world.SHIPPED else Path(model)
    if not (folder / "judge.safetensors").exists():
        return {}
    return {n: reader.Reading(reader.load(folder, n), soft=False) for n in ("reader", "judge")}
