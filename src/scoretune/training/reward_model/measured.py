"""How good a reward model is: agreement with held-out votes, and whether its odds are true."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from scoretune.preference import (
    Reliability,
    VoteFit,
    fit_votes,
    outcome_log_probs,
    reliability,
)
from scoretune.training.reward_model.learning import RIDGE, Lessons, gaps_of


def fitted(fit: VoteFit | None) -> dict[str, Any]:
    """The scale and the tie parameter with their standard errors, None where there is none."""
    if fit is None:
        return {"scale": None, "scale_error": None, "tie": None, "tie_error": None}
    scale, error = float(fit.estimates), float(fit.errors)
    return {"scale": scale, "scale_error": error, "tie": fit.tie, "tie_error": fit.tie_error}


def held_out(
    heads: nn.ModuleList, lessons: Lessons, scale: float, fit: VoteFit | None
) -> dict[str, Any]:
    """Accuracy with its 95 % interval over prompts, calibration error, loss a vote, and the factor
    by which the held-out votes would have the scores, which is 1 where the scale is right."""
    places, gaps, counts = _held_out(heads, lessons, scale)
    sides = counts[:, [0, 2]]
    decided = sides.sum(1)
    right = torch.where(gaps >= 0, sides[:, 0], sides[:, 1])
    groups = [lessons.votes.groups[int(place)] for place in places]
    accuracy, low, high = share_with_interval(right, decided, groups)
    numbers: dict[str, Any] = {
        "pairs": len(places),
        "prompts": len(set(groups)),
        "votes": float(counts.sum()),
        "accuracy": accuracy,
        "low": low,
        "high": high,
        "majority": _ratio(sides.amax(1).sum(), decided.sum()),
    }
    if float(decided.sum()):
        numbers["calibration_error"] = calibration(heads, lessons, scale, fit).error
    tie = 1.0 if fit is None or fit.tie is None else fit.tie
    log_probs = outcome_log_probs(gaps, lessons.ties, tie)
    counted = counts[:, 1] if lessons.ties == "bradley_terry" else torch.zeros_like(counts[:, 1])
    used = torch.stack([counts[:, 0] + counted / 2, counts[:, 2] + counted / 2], 1)
    loss = -(used * log_probs[:, [0, 2]]).sum()
    if lessons.ties != "bradley_terry":
        loss = loss - (counts[:, 1] * log_probs[:, 1]).sum()
    numbers["loss"] = _ratio(loss, counts.sum())
    try:
        again = fit_votes(gaps[:, None], counts, model=lessons.ties, ridge=RIDGE)
        numbers["factor"], numbers["factor_error"] = float(again.estimates), float(again.errors)
    except ValueError:
        numbers["factor"] = numbers["factor_error"] = None
    return numbers


def calibration(
    heads: nn.ModuleList, lessons: Lessons, scale: float, fit: VoteFit | None
) -> Reliability:
    """Predicted against voted shares of the first, among held-out votes that decided."""
    _, gaps, counts = _held_out(heads, lessons, scale)
    tie = 1.0 if fit is None or fit.tie is None else fit.tie
    odds = outcome_log_probs(gaps, lessons.ties, tie)[:, [0, 2]].softmax(1)[:, 0]
    decided = counts[:, [0, 2]].sum(1)
    some = decided > 0
    return reliability(odds[some], counts[some, 0] / decided[some], decided[some])


def _held_out(heads: nn.ModuleList, lessons: Lessons, scale: float) -> tuple[Tensor, ...]:
    """The held-out pairs, the ensemble's gaps on the scale of the votes, and the votes."""
    places = (lessons.folds < 0).nonzero()[:, 0]
    each = [gaps_of(head, lessons.votes, places) for head in heads]
    gaps = scale * torch.stack(each).mean(0).double()
    return places, gaps, lessons.votes.counts[places].double()


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
