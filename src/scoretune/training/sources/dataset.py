"""Weighted examples of data: the source of score matching and consistency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from scoretune.core import distributed
from scoretune.core.conditions import Condition
from scoretune.core.records import Examples, Round, Stateless, spans
from scoretune.policy import Policy

AT_ONCE = 64
"""Pictures that are encoded at once where nothing else is said."""


@dataclass
class Dataset(Stateless):
    """Draws weighted examples of clean states with their conditions; if it `draws`, with what
    chance decides about each, else the objective draws that."""

    x0: Tensor
    condition: Condition
    weight: Tensor
    batch: int
    seed: int
    draws: bool = False

    def __call__(self, update: int) -> Round:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + update)
        index = torch.randint(len(self.x0), (self.batch,), generator=generator)
        team = distributed.team()
        # Times and noise follow; those of several processes must not be alike.
        torch.manual_seed(self.seed * 1_000_003 + update + 7_368_787 * team.rank)
        index = index[team.rows(self.batch)]
        batch = Examples(self.x0[index], self.condition.take(index), self.weight[index])
        if self.draws:
            share, noise = torch.rand(len(index)), torch.randn_like(batch.x0)
            batch = replace(batch, share=share, noise=noise, coin=torch.rand(len(index)))
        return Round([batch], {}, counts=(self.batch,))


def encoded(policy: Policy, images: Tensor, captions: Sequence[str]) -> tuple[Tensor, Condition]:
    """Pictures as clean states [n, *S] and their captions as conditions, both in the computer's
    memory: the device sees a few at a time, and no more than the policy's `at_once`."""
    states, conditions = [], []
    for s in spans(len(images), policy.at_most(AT_ONCE)):
        states.append(policy.embed(images[s].to(policy.device)).cpu())
        conditions.append(policy.encode(captions[s]).to(torch.device("cpu")))
    return torch.cat(states), Condition.joined(conditions)
