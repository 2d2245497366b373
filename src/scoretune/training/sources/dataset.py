"""Weighted examples of data: the source of score matching and consistency."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoretune.core import distributed
from scoretune.core.records import Condition, Examples, Round


@dataclass
class Dataset:
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
        index = index[team.own(self.batch)]
        batch = Examples(self.x0[index], self.condition.take(index), self.weight[index])
        return Round([batch], {}, counts=(self.batch,))

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass
