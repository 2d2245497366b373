"""Preferences by steps of a sampler: log-ratios kept near 1, as D3PO, SPO and PRDP do.

The log-ratio of a step, ln π_θ(x_{t−1}|x_t) − ln π_ref(x_{t−1}|x_t), goes into `pairwise_loss` as
`chosen` or `rejected`, with references of 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoretune.shapes import check_same_shape


def clamped_log_ratio(log_ratio: Tensor, clip: float) -> Tensor:
    """ln clamp(e^lr, 1 − ε, 1 + ε), of the shape of `log_ratio`: without gradient outside the band
    (D3PO, arXiv 2311.13231; SPO, arXiv 2406.04314). ε = ∞ is the identity."""
    if not clip > 0:
        raise ValueError(f"clip must be > 0, got {clip}")
    low = math.log1p(-clip) if clip < 1 else -math.inf
    return log_ratio.clamp(low, math.log1p(clip))


def prdp(
    log_ratios: tuple[Tensor, Tensor],
    rewards: tuple[Tensor, Tensor],
    beta: float,
    *,
    old_log_ratios: tuple[Tensor, Tensor] | None = None,
    clip: float | None = None,
) -> Tensor:
    """(β(lr₁ − lr₂) − (r₁ − r₂))², [B]: regression of differences of rewards (PRDP,
    arXiv 2402.08714), 0 at π ∝ π_ref e^{r/β}.

    With `clip`, each log-ratio may leave its value of the last round by no more than ε, and the
    larger of both losses counts, as in PPO. Log-ratios are sums over a sample's steps.
    """
    check_same_shape(one=log_ratios[0], other=log_ratios[1], reward=rewards[0], lost=rewards[1])
    goal = rewards[0] - rewards[1]
    loss = (beta * (log_ratios[0] - log_ratios[1]) - goal) ** 2
    if clip is None or old_log_ratios is None:
        return loss
    one, other = (
        old.detach() + (new - old.detach()).clamp(-clip, clip)
        for new, old in zip(log_ratios, old_log_ratios, strict=True)
    )
    return torch.maximum(loss, (beta * (one - other) - goal) ** 2)
