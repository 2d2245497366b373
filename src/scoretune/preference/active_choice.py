"""Which pair to ask about next: the one whose answer says most about the scores.

By an ensemble of scores the answer Y to a pair tells of which member is right as much as

    I(Y; member) = H(mean_k p_k) − mean_k H(p_k),

in nats (BALD, arXiv 1112.5745 eq. 2), p_k the law of the answer by member k. It is large where the
members are sure and differ, and 0 where they agree, also where all agree that nobody can tell.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scoretune.preference.ties import TieModel, outcome_log_probs
from scoretune.shapes import check_rank, check_shape


def pair_information(
    gaps: Tensor, model: TieModel = "bradley_terry", tie: Tensor | float = 1.0
) -> Tensor:
    """I(answer; member) of each pair, [B] in nats, by the K members' gaps of scores [K, B].

    At most ln 2 without ties, ln 3 with them, and at most ln K.
    """
    check_rank(2, 2, gaps=gaps)
    law = outcome_log_probs(gaps.double(), model, tie).exp()
    each = torch.special.entr(law).sum(-1).mean(0)
    information: Tensor = torch.special.entr(law.mean(0)).sum(-1) - each
    return information.clamp(min=0)


def next_pairs(
    scores: Tensor,
    pairs: Tensor,
    count: int,
    *,
    seen: Tensor | None = None,
    model: TieModel = "bradley_terry",
    tie: Tensor | float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Places in `pairs` [n, 2] of the `count` pairs to ask about next, the most informative first.

    `scores` [K, items] are those of an ensemble (a reward's members, or `VoteFit.draw`). A pair is
    given once at most, and none that is `seen` [n]: there are fewer than `count` where no more are
    left. Of pairs with the same information, chance decides. A thing is in one pair of a batch
    only, while there are others to take: the second answer about it would tell less.
    """
    check_shape((len(pairs), 2), pairs=pairs)
    gaps = scores[:, pairs[:, 0]] - scores[:, pairs[:, 1]]
    information = pair_information(gaps, model, tie)
    free = torch.ones(len(pairs), dtype=torch.bool) if seen is None else ~seen
    shuffled = torch.randperm(len(pairs), generator=generator)
    order = shuffled[information[shuffled].argsort(descending=True, stable=True)]
    order = order[free[order]]
    taken: set[int] = set()
    fresh: list[int] = []
    later: list[int] = []
    for place, (first, second) in zip(order.tolist(), pairs[order].tolist(), strict=True):
        if len(fresh) == count:
            break
        if taken & {first, second}:
            later.append(place)
            continue
        fresh.append(place)
        taken |= {first, second}
    return torch.tensor((fresh + later)[:count], dtype=torch.long)
