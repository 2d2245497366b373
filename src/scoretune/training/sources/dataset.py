"""Weighted examples of data: the source of score matching and consistency."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scoretune.core import distributed
from scoretune.core.records import Condition, Examples, Round, Stateless


@dataclass
class Dataset(Stateless):
    """Draws weighted examples of clean states with their conditions."""

    x0: Tensor
    condition: Condition
    weight: Tensor
    batch: int
    seed: int

    def __call__(self, update: int) -> Round:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + update)
        index = torch.randint(len(self.x0), (self.batch,), generator=generator)
        team = distributed.team()
        # The objective draws times and noise; those of several processes must not be alike.
        torch.manual_seed(self.seed * 1_000_003 + update + 7_368_787 * team.rank)
        index = index[team.rows(self.batch)]
        batch = Examples(self.x0[index], self.condition.take(index), self.weight[index])
        return Round([batch], {}, counts=(self.batch,))
