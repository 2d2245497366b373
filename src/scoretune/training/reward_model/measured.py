"""How good a reward model is: agreement with held-out votes, and whether its odds are true."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scoretune.preference import (
    Reliability,
    TieModel,
    VoteFit,
    fit_votes,
    outcome_log_probs,
    reliability,
    vote_loss,
)
from scoretune.training.reward_model.learning import RIDGE, Lessons, gaps_of


def fitted(fit: VoteFit | None) -> dict[str, Any]:
    """The scale and the tie parameter with their standard errors, None where there is none."""
    if fit is None:
        return {"scale": None, "scale_error": None, "tie": None, "tie_error": None}
    scale, error = float(fit.estimates), float(fit.errors)
    return {"scale": scale, "scale_error": error, "tie": fit.tie, "tie_error": fit.tie_error}


@dataclass(frozen=True)
class HeldOut:
    """The ensemble on the pairs that nobody learned from: its `gaps` [k] on the scale of the votes,
    their `counts` [k, 3] and prompts."""

    gaps: Tensor
    counts: Tensor
    groups: list[str]
    ties: TieModel
    tie: float

    @classmethod
    def of(
        cls, heads: nn.ModuleList, lessons: Lessons, scale: float, fit: VoteFit | None
    ) -> HeldOut:
        places = (lessons.folds < 0).nonzero()[:, 0]
        each = [gaps_of(head, lessons.votes, places) for head in heads]
        return cls(
            gaps=scale * torch.stack(each).mean(0).double(),
            counts=lessons.votes.counts[places].double(),
            groups=[lessons.votes.groups[int(place)] for place in places],
            ties=lessons.ties,
            tie=1.0 if fit is None or fit.tie is None else fit.tie,
        )

    @property
    def sides(self) -> Tensor:
        """The votes that decided, [k, 2]."""
        return self.counts[:, [0, 2]]

    def calibration(self) -> Reliability:
        """Predicted against voted shares of the first, among votes that decided."""
        odds = outcome_log_probs(self.gaps, self.ties, self.tie)[:, [0, 2]].softmax(1)[:, 0]
        decided = self.sides.sum(1)
        some = decided > 0
        return reliability(odds[some], self.counts[some, 0] / decided[some], decided[some])

    def numbers(self) -> dict[str, Any]:
        """Accuracy with its 95 % interval over prompts, calibration error, loss a vote, and the
        factor by which these votes would have the scores, which is 1 where the scale is right.

        A perfect reward's accuracy is between `raters`, how often two raters of a pair agree, and
        `majority`, what the votes themselves could be fitted to."""
        sides, decided = self.sides, self.sides.sum(1)
        right = torch.where(self.gaps >= 0, sides[:, 0], sides[:, 1])
        accuracy, low, high = share_with_interval(right, decided, self.groups)
        numbers: dict[str, Any] = {
            "pairs": len(self.gaps),
            "prompts": len(set(self.groups)),
            "votes": float(self.counts.sum()),
            "accuracy": accuracy,
            "low": low,
            "high": high,
            "majority": _ratio(sides.amax(1).sum(), decided.sum()),
            "raters": agreement_of_raters(sides),
        }
        if float(decided.sum()):
            numbers["calibration_error"] = self.calibration().error
        loss = vote_loss(self.gaps, self.counts, self.ties, self.tie).sum()
        numbers["loss"] = _ratio(loss, self.counts.sum())
        try:
            again = fit_votes(self.gaps[:, None], self.counts, model=self.ties, ridge=RIDGE)
            numbers["factor"], numbers["factor_error"] = float(again.estimates), float(again.errors)
        except ValueError:
            numbers["factor"] = numbers["factor_error"] = None
        return numbers


def agreement_of_raters(sides: Tensor) -> float | None:
    """How often two votes on one pair are for the same side, Σ n_s(n_s − 1)/Σ n(n − 1), of votes
    `sides` [k, 2]; None where no pair has two."""
    decided = sides.sum(1)
    of = float((decided * (decided - 1)).clamp(min=0).sum())
    return float((sides * (sides - 1)).clamp(min=0).sum()) / of if of else None


def share_with_interval(right: Tensor, of: Tensor, groups: list[str]) -> tuple[float, float, float]:
    """Σ right/Σ of, and its 95 % interval, where what is of one group (a prompt) hangs together:
    the ratio estimator's variance over groups, Σ_g (right_g − share·of_g)²·G/(G − 1)/(Σ of)²
    (Cochran, Sampling Techniques, eq. 6.13)."""
    total = float(of.sum())
    if not total:
        return math.nan, math.nan, math.nan
    share = float(right.sum()) / total
    names = {group: place for place, group in enumerate(dict.fromkeys(groups))}
    places = torch.tensor([names[group] for group in groups])
    residual = torch.zeros(len(names), dtype=torch.float64)
    residual.index_add_(0, places, (right - share * of).double())
    many = len(names)
    variance = float(residual.square().sum()) * many / max(many - 1, 1) / total**2
    error = 1.96 * variance**0.5
    return share, max(0.0, share - error), min(1.0, share + error)


def _ratio(of: Tensor, total: Tensor) -> float:
    return float(of) / float(total) if float(total) else math.nan
