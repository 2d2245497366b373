"""Votes on two things with ties: how probable first, tie and second are by the gap of their scores.

With worths w = e^r and the gap g = r₁ − r₂ of two scores:

* Bradley–Terry (Biometrika 39, 1952): P(first) = w₁/(w₁ + w₂) = σ(g), and there are no ties; one
  that was voted counts as half a vote for either side.
* Rao–Kupper (JASA 62, 1967): P(first) = w₁/(w₁ + θw₂) = σ(g − ln θ), P(second) = σ(−g − ln θ) and
  P(tie) = (θ² − 1)·P(first)·P(second): a rater sees no difference of less than ln θ.
* Davidson (JASA 65, 1970): P(first) : P(tie) : P(second) = w₁ : ν√(w₁w₂) : w₂.

`tie` is ln θ of Rao–Kupper and ν of Davidson: above 0, and ties vanish as it goes to 0.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

TieModel = Literal["bradley_terry", "rao_kupper", "davidson"]


def outcome_log_probs(
    gap: Tensor, model: TieModel = "davidson", tie: Tensor | float = 1.0
) -> Tensor:
    """ln P of first, tie and second, [..., 3], by the gap [...] of their scores; `tie` > 0 is a
    number or of the gap's shape. Bradley–Terry's tie has −∞."""
    if model == "bradley_terry":
        ends = logsigmoid(gap), logsigmoid(-gap)
        return torch.stack([ends[0], torch.full_like(gap, -torch.inf), ends[1]], -1)
    tie = torch.as_tensor(tie, dtype=gap.dtype, device=gap.device)
    if not bool((tie > 0).all()):
        raise ValueError(f"{model}'s tie parameter must be > 0, got {float(tie.min()):g}")
    if model == "davidson":
        logits = torch.stack([gap / 2, tie.log().expand_as(gap), -gap / 2], -1)
        return logits.log_softmax(-1)
    first, second = logsigmoid(gap - tie), logsigmoid(-gap - tie)
    return torch.stack([first, torch.expm1(2 * tie).log() + first + second, second], -1)


def vote_loss(
    gap: Tensor, counts: Tensor, model: TieModel = "davidson", tie: Tensor | float = 1.0
) -> Tensor:
    """−Σ n·ln P of the votes for first, tie and second, `counts` [..., 3], by the gap [...].

    Counts need not be whole: a soft label p of n votes is (np, 0, n(1 − p)).
    """
    if counts.shape != (*gap.shape, 3):
        raise ValueError(
            f"counts {list(counts.shape)} must be {[*gap.shape, 3]}: votes for first, tie, second"
        )
    log_probs = outcome_log_probs(gap, model, tie)
    if model == "bradley_terry":
        half = counts[..., 1] / 2
        return (
            -(counts[..., 0] + half) * log_probs[..., 0]
            - (counts[..., 2] + half) * log_probs[..., 2]
        )
    return -(counts * log_probs).sum(-1)
