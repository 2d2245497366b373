"""Which of a policy's own samples is preferred to which, by their rewards."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from scoretune.core import distributed
from scoretune.core.config import Ranking
from scoretune.diffusion.noise import rand
from scoretune.preference import agreement_scale, dispersion, phi_star, vote_agreement


class RankedPairs(NamedTuple):
    """Pairs of the samples `first` and `second` [P], numbers in their batch, of which the first has
    no lower reward, by `gap` [P], and is preferred with probability `label` [P]. A pair counts
    `weight` [P], 0 for a tie that is dropped. `prompt` and `row` [P] say whose pair it is, and
    which of that prompt's: the first of all prompts come first. All on the CPU."""

    first: Tensor
    second: Tensor
    gap: Tensor
    label: Tensor
    weight: Tensor
    prompt: Tensor
    row: Tensor

    def take(self, index: Tensor) -> RankedPairs:
        """Some of the pairs."""
        return RankedPairs(*(part[index] for part in self))


def ranked_pairs(
    rewards: Tensor, group: int, ranking: Ranking, generator: torch.Generator
) -> RankedPairs:
    """The pairs of samples with rewards [n·group], the groups contiguous: of each group the best
    and the worst, or every two."""
    grouped = rewards.cpu().double().view(-1, group)
    order = grouped.argsort(dim=1, stable=True)
    places = _places(group, ranking)
    low, high = (order[:, places[side]].T.flatten() for side in (0, 1))
    prompt = torch.arange(len(grouped)).repeat(places.shape[1])
    row = torch.arange(places.shape[1]).repeat_interleave(len(grouped))
    gap = grouped[prompt, high] - grouped[prompt, low]
    label, weight = labels(gap.view(-1, len(grouped)), ranking, generator)
    start = group * prompt
    label, weight = label.flatten(), weight.flatten()
    return RankedPairs(start + high, start + low, gap, label, weight, prompt, row)


def _places(group: int, ranking: Ranking) -> Tensor:
    """The places of the lower and the higher of each pair [2, n] among a group's ascending
    rewards."""
    if ranking.pairing == "extremes":
        return torch.tensor([[0], [group - 1]])
    return torch.triu_indices(group, group, 1)


def rows_of(pairs: RankedPairs) -> int:
    """How many pairs each prompt has, where none is left out."""
    return int(pairs.row.max()) + 1


def pairs_a_sample(group: int, ranking: Ranking) -> float:
    """How many pairs there are for each sample of a group, ties among them."""
    return _places(group, ranking).shape[1] / group


def labels(gap: Tensor, ranking: Ranking, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The probability that the side with the higher reward is preferred, and the weight, [R, n]
    each, of R pairs of n prompts or samples, whose rewards differ by `gap` [R, n] ≥ 0.

    σ(gap/temperature) is the Bradley–Terry law (Biometrika 39, 1952) of a rater who sees the reward
    with logistic noise; `votes` draws the raters of a pair from it independently.
    """
    if ranking.label == "hard":
        label = torch.where(gap > 0, 1.0, 0.5).to(gap)
    else:
        label = torch.sigmoid(gap / ranking.temperature)
    if ranking.label == "votes":
        drawn = rand((*gap.shape, ranking.raters), generator, dim=1, dtype=gap.dtype)
        label = (drawn < label[..., None]).to(gap).mean(2)
    weight = torch.ones_like(label)
    if ranking.ties == "drop":
        weight = (label != 0.5).to(gap)
    return label.float(), weight.float()


def kept(pairs: RankedPairs) -> Tensor:
    """The numbers of the pairs that count; if none of any process does, of the first one, which
    counts 0: a round is never empty."""
    counts = pairs.weight > 0
    if not distributed.count(int(counts.sum())):
        counts[:1] = True
    return counts.nonzero()[:, 0]


def ranking_metrics(pairs: RankedPairs) -> dict[str, float]:
    """Numbers to log of a process's pairs: the mean gap of rewards, and the share that is not
    dropped as a tie."""
    return {
        "reward_gap": float(pairs.gap.mean()),
        "untied": float((pairs.weight > 0).float().mean()),
    }


# --------------------------------------------------------------------------- how disputed


def vote_scales(pairs: RankedPairs, raters: int) -> Tensor:
    """c(x) of this process's prompts, [n]: how far the raters of its pairs agree, as
    `sources.pairs.vote_scales` of data; of mean 1 over all prompts."""
    first = pairs.label.double() * raters
    agreed = vote_agreement(first, raters - first).view(rows_of(pairs), -1).mean(0)
    mean = float(distributed.gather(agreed).mean())
    return agreement_scale(agreed, mean) if mean > 0 else torch.ones_like(agreed)


def reward_entropies(rewards: Tensor, group: int, temperature: float) -> Tensor:
    """How alike the samples of each prompt are to who sees their rewards, [n] in (0, 1]: the
    entropy of the softmax of rewards [n·group] at a temperature, over that of a group of equals."""
    odds = (rewards.cpu().double().view(-1, group) / temperature).log_softmax(1)
    return -(odds.exp() * odds).sum(1) / math.log(group)


def reward_scales(rewards: Tensor, group: int, temperature: float) -> Tensor:
    """c(x) of this process's prompts, [n], by how alike the rewards [n·group] of their samples are:
    of mean 1 over all prompts (arXiv 2410.04203), and 1 where all are alike in that."""
    entropies = reward_entropies(rewards, group, temperature)
    everyone = distributed.gather(entropies)
    if not bool((everyone != everyone[0]).any()):
        return torch.ones_like(entropies)
    return dispersion(entropies, phi_star(everyone))
