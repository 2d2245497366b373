"""Losses of many samples of a prompt: reward models and likelihoods that learn a ranking."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from scoretune.shapes import check_same_shape


def bradley_terry(chosen: Tensor, rejected: Tensor, label: Tensor | None = None) -> Tensor:
    """−ln σ(r_w − r_l), [B], of a reward model's scores; `label` in [0, 1] mixes both orders."""
    check_same_shape(chosen=chosen, rejected=rejected)
    gap = chosen - rejected
    if label is None:
        return -logsigmoid(gap)
    return -label * logsigmoid(gap) - (1 - label) * logsigmoid(-gap)


def best_of(scores: Tensor, best: Tensor) -> Tensor:
    """−ln softmax(scores)[best], [B], of scores [B, n]: which of n candidates was chosen."""
    return -scores.log_softmax(-1).gather(-1, best[:, None])[:, 0]


def plackett_luce(scores: Tensor) -> Tensor:
    """−Σ_i ln softmax over those not yet placed, [B], of scores [B, n] in their true order, best
    first: PRO's ranking loss (arXiv 2306.17492) on rewards or mean log-likelihoods."""
    rest = torch.logcumsumexp(scores.flip(-1), -1).flip(-1)
    return (rest - scores)[..., :-1].sum(-1)


def tied_plackett_luce(scores: Tensor, ranks: Tensor, mask: Tensor | None = None) -> Tensor:
    """−ln P of a ranking with ties under Plackett–Luce, [B], of scores [B, n] with their `ranks`
    [B, n], the smallest best; `mask` [B, n] is True on the things that were ranked.

    m tied things are in one of m! orders that nobody told: Efron's mean over them (JASA 72, 1977)
    takes each from what is left while the group shrinks evenly, Σ_l ln(R − (l/m)·G), R the worth of
    the group and all behind it and G the group's. Exact where tied things have one score.
    """
    check_same_shape(scores=scores, ranks=ranks)
    there = torch.ones_like(ranks, dtype=torch.bool) if mask is None else mask
    same = (ranks[:, :, None] == ranks[:, None, :]) & there[:, None, :]
    behind = (ranks[:, None, :] > ranks[:, :, None]) & there[:, None, :]
    before = torch.ones(ranks.shape[1], ranks.shape[1], dtype=torch.bool).tril(-1).to(same.device)
    placed = (same & before).sum(-1) / same.sum(-1).clamp(min=1)  # l/m of each thing
    left = behind + same * (1 - placed)[..., None].to(scores.dtype)
    rest = (scores[:, None, :] + left.log()).masked_fill(left == 0, -torch.inf)
    terms = torch.where(there, rest.masked_fill(~there[..., None], 0).logsumexp(-1) - scores, 0)
    return terms.sum(-1)


def rrhf(log_probs: Tensor, lengths: Tensor, rewards: Tensor, sft_weight: float = 1.0) -> Tensor:
    """RRHF, [B], of n answers to each prompt, all [B, n] (arXiv 2304.05302):
    Σ_{r_i < r_j} max(0, p_i − p_j), p = lp/|y|, plus the likelihood of the best, −lp."""
    check_same_shape(log_probs=log_probs, lengths=lengths, rewards=rewards)
    per_token = log_probs / lengths
    worse = rewards[..., :, None] < rewards[..., None, :]
    wrong = torch.relu(per_token[..., :, None] - per_token[..., None, :])
    best = rewards.argmax(-1, keepdim=True)
    return (worse * wrong).sum((-2, -1)) - sft_weight * log_probs.gather(-1, best)[..., 0]


def exponential_weights(rewards: Tensor, temperature: float) -> Tensor:
    """e^{r/β} with mean 1, [B]: weights of a supervised loss whose optimum is the tilt (HIVE,
    arXiv 2303.09618)."""
    return torch.softmax(rewards / temperature, -1) * rewards.shape[-1]
