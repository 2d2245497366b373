"""Pairs in the smallest world of pictures, and Diffusion-DPO on them.

Two of the base model's own pictures of a prompt, or a picture and what an editor makes of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from scoretune.commands.reproduce import patch_world
from scoretune.commands.reproduce.base import Numbers
from scoretune.core import config
from scoretune.core.records import PairExamples, Round, Stateless
from scoretune.diffusion import noise
from scoretune.policy import Policy
from scoretune.training.engine import TorchEngine
from scoretune.training.loop import train
from scoretune.training.objectives.preference_losses import loss_of
from scoretune.training.sources.base import update_generator

BATCH = 32
LAST = 20
"""Updates over which `tuned` takes means."""
NUDGE, WEAK, STRONG = 0.35, 0.75, 0.25
LEAST_GAIN = 0.05
"""Of the reward: what an edit must gain to be kept."""


class PicturePairs(NamedTuple):
    """Preferred and other pictures [n, 3, 8, 8] of one prompt each."""

    better: Tensor
    worse: Tensor
    prompts: list[str]


def two_of_a_prompt(policy: Policy, count: int, generator: torch.Generator) -> PicturePairs:
    """The better and the worse of two pictures of the base model's a pair."""
    prompts = [patch_world.PROMPTS[i % 3] for i in range(count)]
    one, other = (patch_world.drawn(policy, prompts, generator) for _ in range(2))
    return ranked(one, other, prompts)


def ranked(one: Tensor, other: Tensor, prompts: list[str]) -> PicturePairs:
    """Pairs of two pictures each, the one with more reward before the other."""
    ahead = patch_world.reward(one, prompts) >= patch_world.reward(other, prompts)
    ahead = ahead[:, None, None, None]
    return PicturePairs(torch.where(ahead, one, other), torch.where(ahead, other, one), prompts)


def edits(policy: Policy, count: int, generator: torch.Generator) -> PicturePairs:
    """Edits of the base model's pictures that gain enough of the reward, and the pictures."""
    better: list[Tensor] = []
    worse: list[Tensor] = []
    prompts: list[str] = []
    while len(prompts) < count:
        some = [patch_world.PROMPTS[i % 3] for i in range(count)]
        images = patch_world.drawn(policy, some, generator)
        changed = edited(images, some, generator)
        gain = patch_world.reward(changed, some) - patch_world.reward(images, some)
        for place in (gain > LEAST_GAIN).nonzero().flatten().tolist():
            better.append(changed[place])
            worse.append(images[place])
            prompts.append(some[place])
    return PicturePairs(torch.stack(better[:count]), torch.stack(worse[:count]), prompts[:count])


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

    def __init__(self, policy: Policy, made: PicturePairs, seed: int) -> None:
        self.first, self.second = policy.embed(made.better), policy.embed(made.worse)
        self.condition, self.seed = policy.encode(made.prompts), seed

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


def tuned(
    policy: Policy, made: PicturePairs, *, beta: float, rate: float, updates: int, seed: int
) -> Numbers:
    """Diffusion-DPO at B = `beta` on every weight. Of the last updates: how often pairs are told
    apart, and the error on preferred pictures over the base model's."""
    seen: list[Mapping[str, float]] = []
    train(
        Pairs(policy, made, seed),
        loss_of(config.Preference(preset="dpo", beta=beta), policy),
        torch.optim.Adam(policy.parameters(), rate),
        TorchEngine(),
        updates=range(updates),
        hooks=[lambda _, metrics: seen.append(metrics)],
    )
    accuracy, error, base = (
        sum(metrics[name] for metrics in seen[-LAST:])
        for name in ("implicit_accuracy", "error_chosen", "error_pretrained")
    )
    return {"implicit accuracy": accuracy / len(seen[-LAST:]), "error ratio": error / base}
