"""What some presets want to be given for each pair: offsets, scales of the batch, weights."""

from __future__ import annotations

import torch
from torch import Tensor

from scoretune.shapes import check_same_shape


def score_offset(first: Tensor, second: Tensor, factor: float, *, log: bool = False) -> Tensor:
    """ODPO's margin a·g(score₁ − score₂), [B] (arXiv 2402.10571); g is odd: d, or, with
    `log`, sign(d)·ln(1 + |d|), which has the paper's growth and is 0 at 0."""
    check_same_shape(first=first, second=second)
    gap = first - second
    return factor * (torch.sign(gap) * torch.log1p(gap.abs()) if log else gap)


def adaptive_scale(gaps: Tensor, mean: float, *, sensitivity: float = 0.6) -> Tensor:
    """β-DPO's factor of β, the same for the batch: 1 + a·(mean of gaps − M0), [B]
    (arXiv 2407.08639).

    `gaps` [B] are the margins β₀ρ of the batch, without gradient, `mean` M0 their running mean over
    batches. It is kept above 10⁻³, since a scale of 0 or less would unlearn.
    """
    factor = 1 + sensitivity * (gaps.detach().mean() - mean)
    return factor.clamp(min=1e-3).expand(gaps.shape)


def typical_pairs(
    gaps: Tensor, mean: float, std: float, keep: int, generator: torch.Generator | None = None
) -> Tensor:
    """β-DPO's filter: `keep` pairs drawn without replacement, a gap M with weight N(M; M0, σ²).

    Returns their indices, sorted; `mean` and `std` are running ones over batches.
    """
    if not 1 <= keep <= len(gaps):
        raise ValueError(f"keep must be from 1 to the number of pairs {len(gaps)}, got {keep}")
    log_weight = -(((gaps.detach().double() - mean) / std) ** 2) / 2
    waits = torch.empty_like(log_weight).exponential_(generator=generator)
    return (log_weight - torch.log(waits)).topk(keep).indices.sort().values


def on_policy_weight(
    log_probs: Tensor, lengths: Tensor, log_collisions: Tensor | None = None
) -> Tensor:
    """WPO's weight of a completion, exp(mean over tokens of ln π(y_t) − ln Σ_v π(v)²), [B], without
    gradient (arXiv 2406.11827 eq. 2); that of a pair is the product of both.

    `log_probs` and `log_collisions` [B] are sums over tokens. Without the latter it is the
    paper's unaligned form, exp(lp/|y|).
    """
    check_same_shape(log_probs=log_probs, lengths=lengths)
    aligned = log_probs if log_collisions is None else log_probs - log_collisions
    return torch.exp(aligned.detach() / lengths)
