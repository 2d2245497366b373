"""What sources share: rounds dealt out in minibatches, over processes too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch

from scoretune.core import distributed
from scoretune.core.distributed import Deal
from scoretune.core.records import Scores, Starts, Steps

Dealt = TypeVar("Dealt", Steps, Starts)


def deal_out(
    batch: Dealt, minibatch: int, generator: torch.Generator, deal: Deal
) -> tuple[list[Dealt], tuple[int, ...]]:
    """Transitions or starts in random order, cut into minibatches: this process's part of each, and
    the sizes of the whole ones."""
    chunks = deal.chunks(torch.randperm(deal.whole, generator=generator), minibatch)
    batches = [batch.take(rows.to(batch.x.device)) for rows, _ in chunks]
    return batches, tuple(count for _, count in chunks)


def mean_over_processes(metrics: Mapping[str, float]) -> dict[str, float]:
    """The means of metrics of equal shares of a round."""
    size, totals = distributed.team().size, distributed.total(metrics)
    return {name: value / size for name, value in totals.items()}


def gathered(scores: Scores) -> Scores:
    """The scores of all processes, of which this one's are `mine`."""
    team = distributed.team()
    if team.size == 1:
        return scores
    return Scores(
        distributed.gather(scores.total),
        tuple(distributed.gather_texts(scores.prompts)),
        {name: distributed.gather(part) for name, part in scores.parts.items()},
        team.rows(len(scores) * team.size),
    )
