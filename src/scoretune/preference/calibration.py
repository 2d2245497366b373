"""Are probabilities of preference true? Reliability, and the expected calibration error.

A pair has no natural order, so every prediction is turned to its likelier side first: a confidence
in [½, 1], and the share of votes that were for that side. Pairs are put into bins of equal width by
confidence (Naeini et al., AAAI 2015; Guo et al., arXiv 1706.04599 eq. 3):

    ECE = Σ_b (n_b/n)·|share_b − confidence_b|.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scoretune.shapes import check_same_shape


@dataclass(frozen=True)
class Reliability:
    """By bin of confidence: the `weight` of the pairs in it, their mean `confidence`, and the mean
    `share` of votes for the likelier side; all [bins], and NaN in bins without pairs."""

    weight: Tensor
    confidence: Tensor
    share: Tensor

    @property
    def error(self) -> float:
        """The expected calibration error, in [0, 1]."""
        filled = self.weight > 0
        gaps = (self.share - self.confidence)[filled].abs()
        return float((self.weight[filled] * gaps).sum() / self.weight.sum())


def reliability(
    probabilities: Tensor, labels: Tensor, weights: Tensor | None = None, bins: int = 10
) -> Reliability:
    """How predicted `probabilities` that the first is preferred, [n], agree with `labels` [n] in
    [0, 1], the shares of votes for the first; `weights` [n], such as numbers of votes."""
    weights = torch.ones_like(probabilities) if weights is None else weights
    check_same_shape(probabilities=probabilities, labels=labels, weights=weights)
    if not len(probabilities) or not bool(((probabilities >= 0) & (probabilities <= 1)).all()):
        raise ValueError("a reliability needs probabilities, in [0, 1], of at least one pair")
    p, label, weight = probabilities.double(), labels.double(), weights.double()
    second = p < 0.5
    confidence = torch.where(second, 1 - p, p)
    share = torch.where(second, 1 - label, label)
    places = ((confidence - 0.5) * 2 * bins).long().clamp(0, bins - 1)
    count, sure, right = (
        torch.zeros(bins, dtype=torch.float64).index_add_(0, places, values)
        for values in (weight, weight * confidence, weight * share)
    )
    return Reliability(count, sure / count, right / count)


def expected_calibration_error(
    probabilities: Tensor, labels: Tensor, weights: Tensor | None = None, bins: int = 10
) -> float:
    """Σ_b (n_b/n)·|share − confidence|, in [0, 1], of predictions as `reliability` takes them."""
    return reliability(probabilities, labels, weights, bins).error
