"""What sources share: rounds dealt out in minibatches, over processes too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from scoretune.core import distributed
from scoretune.core.config import Sizes
from scoretune.core.distributed import Deal
from scoretune.core.records import Minibatches, Scores, Starts, Steps
from scoretune.data.prompts import identity
from scoretune.diffusion.noise import Rows


class Dealt(NamedTuple):
    """Minibatches, and the sizes of the whole ones, of which each process has a part."""

    minibatches: Minibatches
    counts: tuple[int, ...]


def deal_out(batch: Steps | Starts, sizes: Sizes, generator: torch.Generator, deal: Deal) -> Dealt:
    """Transitions or starts in random order, cut into minibatches, for each epoch anew: this
    process's part of each, and the sizes of the whole ones."""
    rows, counts = dealt_rows(sizes, generator, deal)
    return Dealt(Minibatches(batch, together(rows, batch.x.device)), counts)


def dealt_rows(
    sizes: Sizes, generator: torch.Generator, deal: Deal
) -> tuple[list[Tensor], tuple[int, ...]]:
    """`deal_out` of the numbers of the rows, on the CPU."""
    rows: list[Tensor] = []
    counts: list[int] = []
    for _ in range(sizes.epochs):
        order = torch.randperm(deal.whole, generator=generator)
        for part, count in deal.chunks(order, sizes.minibatch):
            rows.append(part)
            counts.append(count)
    return rows, tuple(counts)


def update_generator(seed: int, update: int) -> Rows:
    """Of an update's random numbers, which follow from (seed, update): this process's rows of what
    is drawn for all."""
    rows, team = Rows(), distributed.team()
    rows.part, rows.parts = team.rank, team.size
    rows.manual_seed(seed * 1_000_003 + update)
    return rows


def together(parts: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Tensors [M], [M'], … of one kind on another device, by one copy."""
    return list(torch.cat(list(parts)).to(device).split([len(part) for part in parts]))


def mean_over_processes(metrics: Mapping[str, float]) -> dict[str, float]:
    """The means of metrics of equal shares of a round."""
    size, totals = distributed.team().size, distributed.total(metrics)
    return {name: value / size for name, value in totals.items()}


def gathered(scores: Scores) -> Scores:
    """The scores of all processes, of which this one's are `mine`; prompts by what tells them
    apart."""
    team, prompts = distributed.team(), tuple(identity(prompt) for prompt in scores.prompts)
    if team.size == 1:
        return replace(scores, prompts=prompts)
    return Scores(
        distributed.gather(scores.total),
        tuple(distributed.gather_texts(prompts)),
        {name: distributed.gather(part) for name, part in scores.parts.items()},
        team.rows(len(scores) * team.size),
    )
