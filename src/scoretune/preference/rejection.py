"""Statistical rejection sampling: pairs as the optimal policy would have drawn them (RSO).

RSO (arXiv 2309.06657, algorithm 1) proposes a candidate that is not yet accepted, uniformly, and
accepts it with probability e^{(r − r_max)/τ}, r_max being the best of those that are left. The next
to be accepted is therefore i with probability ∝ e^{r_i/τ} among those left: sampling without
replacement, which perturbed scores do at once (r/τ plus Gumbel noise, the k largest), with neither
proposals nor waiting. τ → 0 takes the k best, τ → ∞ any k.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scoretune.shapes import check_rank


def rejection_sample(
    scores: Tensor,
    k: int,
    temperature: float,
    generator: torch.Generator | None = None,
    *,
    percentile: bool = False,
) -> Tensor:
    """Indices [..., k] of k of the n candidates with `scores` [..., n], in order of acceptance.

    `percentile` puts the rank of a score within its pool, in [0, 1], in its place, so that one
    temperature suits prompts with scores of different spread (RainbowPO's variant).
    """
    check_rank(1, scores=scores)
    candidates = scores.shape[-1]
    if not 1 <= k <= candidates:
        raise ValueError(f"k must be from 1 to the number of candidates {candidates}, got {k}")
    if not temperature >= 0:
        raise ValueError(f"the temperature must be >= 0, got {temperature}")
    if not bool(torch.isfinite(scores).all()):
        raise ValueError("every candidate needs a finite score")
    used = percentiles(scores) if percentile else scores.double()
    if temperature == 0:
        return used.argsort(dim=-1, descending=True, stable=True)[..., :k]
    gaps = (used - used.amax(-1, keepdim=True)) / temperature
    waits = torch.empty(gaps.shape, dtype=gaps.dtype, device=gaps.device)
    waits.exponential_(generator=generator)
    return (gaps - torch.log(waits)).argsort(dim=-1, descending=True)[..., :k]


def acceptance(scores: Tensor, temperature: float) -> Tensor:
    """e^{(r − r_max)/τ}, [..., n]: how likely a proposed candidate is accepted first."""
    scores = scores.double()
    return torch.exp((scores - scores.amax(-1, keepdim=True)) / temperature)


def percentiles(scores: Tensor) -> Tensor:
    """Ranks of scores [..., n] within their pool, from 0 (worst) to 1 (best); ties share theirs."""
    check_rank(1, scores=scores)
    below = (scores[..., :, None] > scores[..., None, :]).double().sum(-1)
    level = (scores[..., :, None] == scores[..., None, :]).double().sum(-1)
    return (below + (level - 1) / 2) / max(scores.shape[-1] - 1, 1)


def best_and_worst(scores: Tensor, accepted: Tensor) -> tuple[int, int]:
    """The accepted candidates with the highest and the lowest score, of one pool.

    Of equal scores the first accepted is taken as the best, the last as the worst.
    """
    order = scores[accepted].argsort(descending=True, stable=True)
    return int(accepted[order[0]]), int(accepted[order[-1]])


def tournament(scores: Tensor, accepted: Tensor) -> list[tuple[int, int]]:
    """RSO's tournament of k accepted candidates of one pool: its k − 1 pairs (winner, loser).

    Neighbours in order of acceptance meet, and the winners meet again; an odd one goes through.
    """
    playing = [int(index) for index in accepted]
    pairs: list[tuple[int, int]] = []
    while len(playing) > 1:
        winners = []
        for one, other in zip(playing[::2], playing[1::2], strict=False):
            won = (one, other) if scores[one] >= scores[other] else (other, one)
            pairs.append(won)
            winners.append(won[0])
        playing = winners + playing[2 * len(winners) :]
    return pairs
