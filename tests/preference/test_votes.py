"""Votes and rankings as formulas: ties, fits with errors, calibration, and what to ask next."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor

from scoretune.preference import (
    expected_calibration_error,
    fit_scale,
    fit_scores,
    fit_votes,
    next_pairs,
    outcome_log_probs,
    pair_information,
    reliability,
    vote_loss,
)
from scoretune.preference.listwise import plackett_luce, tied_plackett_luce
from scoretune.preference.ties import TieModel

F64 = torch.float64
MODELS: tuple[TieModel, ...] = get_args(TieModel)


def law(gap: float, model: TieModel, tie: float) -> list[float]:
    return outcome_log_probs(torch.tensor(gap, dtype=F64), model, tie).exp().tolist()


def draw(gaps: Tensor, votes: int, model: TieModel, tie: float, seed: int) -> Tensor:
    """Counts [n, 3] of so many votes a pair."""
    p = outcome_log_probs(gaps.double(), model, tie).exp()
    generator = torch.Generator().manual_seed(seed)
    drawn = p.multinomial(votes, replacement=True, generator=generator)
    return torch.nn.functional.one_hot(drawn, 3).sum(1)


def test_golden_laws() -> None:
    """Worths 3 and 1, θ = 2 and ν = 1, by hand."""
    gap = math.log(3)
    assert law(gap, "bradley_terry", 1.0) == pytest.approx([3 / 4, 0, 1 / 4])
    assert law(gap, "rao_kupper", math.log(2)) == pytest.approx([3 / 5, 9 / 35, 1 / 7])
    root = math.sqrt(3)
    assert law(gap, "davidson", 1.0) == pytest.approx(
        [3 / (4 + root), root / (4 + root), 1 / (4 + root)]
    )


@pytest.mark.parametrize("model", MODELS)
def test_laws_of_outcomes(model: TieModel) -> None:
    gaps = torch.linspace(-8, 8, 41, dtype=F64)
    log_probs = outcome_log_probs(gaps, model, 0.7)
    assert torch.allclose(log_probs.exp().sum(-1), torch.ones_like(gaps), atol=1e-12)
    assert torch.allclose(log_probs.flip(0).flip(-1), log_probs, atol=1e-12)  # sides exchanged
    without = outcome_log_probs(gaps, model, 1e-9).exp()
    assert torch.allclose(without[:, 0], torch.sigmoid(gaps), atol=1e-7)  # no ties: Bradley–Terry
    ties = log_probs[:, 1].exp()
    assert ties.argmax() == 20 or model == "bradley_terry"  # likeliest between equals


def test_a_tie_counts_half_for_either_side_without_ties() -> None:
    gap = torch.tensor([0.4], dtype=F64)
    tie = vote_loss(gap, torch.tensor([[0.0, 1, 0]]), "bradley_terry")
    halves = vote_loss(gap, torch.tensor([[0.5, 0, 0.5]]), "bradley_terry")
    assert torch.equal(tie, halves)
    assert float(tie) == pytest.approx(-0.5 * math.log(0.5986876601) - 0.5 * math.log(0.4013123399))


def test_ties_are_refused_where_they_make_no_sense() -> None:
    with pytest.raises(ValueError, match="tie parameter must be > 0"):
        outcome_log_probs(torch.zeros(2), "davidson", 0.0)
    with pytest.raises(ValueError, match="first, tie, second"):
        vote_loss(torch.zeros(2), torch.zeros(2, 2))


# ------------------------------------------------------------------------------ fits


def test_golden_fit() -> None:
    """Three wins of four: ln 3, with the error √(1/3 + 1/1), whatever the start."""
    fit = fit_votes(torch.ones(1, 1), torch.tensor([[3, 0, 1]]), model="bradley_terry")
    assert float(fit.estimates) == pytest.approx(math.log(3))
    assert float(fit.errors) == pytest.approx(math.sqrt(4 / 3))
    assert fit.loss == pytest.approx(-3 * math.log(0.75) - math.log(0.25))


def test_davidson_of_one_pair_by_hand() -> None:
    """Shares 4 : 2 : 1 are fitted exactly: gap ln 4 and ν = 2/√(4·1)."""
    fit = fit_votes(torch.ones(1, 1), torch.tensor([[4, 2, 1]]))
    assert float(fit.estimates) == pytest.approx(math.log(4))
    assert fit.tie == pytest.approx(1.0)


@pytest.mark.parametrize("model", MODELS)
def test_known_scores_and_ties_come_back_within_their_errors(model: TieModel) -> None:
    """z = (estimate − truth)/error has mean square 1 over scores and seeds."""
    truth = torch.linspace(-1.5, 1.5, 8, dtype=F64)
    pairs = torch.combinations(torch.arange(8))
    gaps = truth[pairs[:, 0]] - truth[pairs[:, 1]]
    squares, ties = [], []
    for seed in range(12):
        counts = draw(gaps, 40, model, 0.6, seed)
        fit = fit_scores(pairs, counts, 8, model=model, ridge=1e-6)
        gap = fit.estimates - fit.estimates[0] - (truth - truth[0])
        contrast = torch.eye(8, dtype=F64) - torch.eye(8, dtype=F64)[:1]
        error = (contrast @ fit.covariance @ contrast.T).diagonal().sqrt()
        squares.append((gap[1:] / error[1:]).square())
        if fit.tie is not None and fit.tie_error is not None:
            ties.append(((fit.tie - 0.6) / fit.tie_error) ** 2)
    assert 0.5 < float(torch.cat(squares).mean()) < 1.8
    assert not ties or sum(ties) / len(ties) < 3


def test_the_scale_of_raters_comes_back_within_its_error() -> None:
    """Raters who see a gap through logistic noise of scale τ: the factor is 1/τ."""
    gaps = torch.linspace(-1, 1, 101, dtype=F64)
    for tau in (0.1, 0.4, 2.0):
        z = []
        for seed in range(8):
            fit = fit_scale(gaps, draw(gaps / tau, 10, "rao_kupper", 0.5, seed), model="rao_kupper")
            z.append(float((fit.estimates - 1 / tau) / fit.errors))
        assert max(map(abs, z)) < 3.5
        assert sum(value**2 for value in z) / len(z) < 2.7  # 1 on average; 99.9 % of χ²₈/8 is 3.3


def test_a_ridge_bounds_what_always_won_and_centres_scores() -> None:
    fit = fit_scores(torch.tensor([[0, 1]]), torch.tensor([[5, 0, 0]]), 3, model="bradley_terry")
    assert float(fit.estimates.sum()) == pytest.approx(0, abs=1e-9)
    assert 0 < float(fit.estimates[0]) < 10
    assert float(fit.estimates[2]) == pytest.approx(0, abs=1e-9)
    assert float(fit.errors[2]) == pytest.approx(10)  # nothing was voted on it: the prior's
    with pytest.raises(ValueError, match="ridge"):
        fit_votes(torch.ones(1, 1), torch.tensor([[5, 0, 0]]), model="bradley_terry")
    with pytest.raises(ValueError, match="ties and choices"):
        fit_votes(torch.ones(1, 1), torch.tensor([[5, 0, 2]]))
    with pytest.raises(ValueError, match="from 0 to 1"):
        fit_scores(torch.tensor([[0, 2]]), torch.tensor([[1, 0, 1]]), 2, model="bradley_terry")


def test_draws_have_the_law_of_the_fit() -> None:
    pairs = torch.combinations(torch.arange(3))
    counts = torch.tensor([[8, 3, 2], [9, 1, 1], [4, 3, 3]])
    fit = fit_scores(pairs, counts, 3, ridge=0.1)
    drawn = fit.draw(40_000, torch.Generator().manual_seed(0))
    assert torch.allclose(drawn.mean(0), fit.estimates, atol=0.05)
    assert torch.allclose(torch.cov(drawn.T), fit.covariance, atol=0.12)


def test_draws_do_not_depend_on_rounding() -> None:
    """Where votes say nothing all variances are equal, and any basis has them."""
    design = torch.cat([torch.ones(3, 1), torch.zeros(3, 11)], 1)
    votes = torch.tensor([[1, 0, 0], [1, 0, 0], [0, 0, 1]])
    fit = fit_votes(design, votes, model="bradley_terry", ridge=1.0)
    noise = 1e-15 * torch.randn(12, 12, dtype=F64)
    rounded = replace(fit, covariance=fit.covariance + noise + noise.T)
    first, again = (each.draw(5, torch.Generator().manual_seed(0)) for each in (fit, rounded))
    assert torch.allclose(first, again, atol=1e-9)


# ------------------------------------------------------------------------------ rankings


def test_tied_rankings() -> None:
    scores = torch.tensor([[0.3, 1.2, -0.4, 0.9]], dtype=F64)
    order = torch.tensor([[2, 0, 3, 1]])
    strict = tied_plackett_luce(scores, order)
    assert torch.allclose(strict, plackett_luce(scores.gather(1, order.argsort(1))))
    two = torch.tensor([[0.7, -0.2]], dtype=F64)
    pair = tied_plackett_luce(two, torch.tensor([[1, 2]]))
    assert float(pair) == pytest.approx(-math.log(1 / (1 + math.exp(-0.9))))
    every = tied_plackett_luce(torch.zeros(1, 4, dtype=F64), torch.ones(1, 4))
    assert float(every) == pytest.approx(math.log(24))  # 4! orders alike


def test_efron_is_the_mean_over_orders_of_equals() -> None:
    """Tied things of one score: P(weak order)/m! by enumeration."""
    scores = torch.tensor([[1.1, 0.2, 0.2, 0.2, -0.5]], dtype=F64)
    tied = torch.tensor([[0, 1, 1, 1, 2]])
    orders = [
        plackett_luce(scores[:, [0, *middle, 4]]) for middle in itertools.permutations((1, 2, 3))
    ]
    mean = torch.stack(orders).mean(0)
    assert torch.allclose(tied_plackett_luce(scores, tied), mean)


def test_masked_things_take_no_part() -> None:
    scores = torch.tensor([[0.3, 1.2, 9.0]], dtype=F64, requires_grad=True)
    mask = torch.tensor([[True, True, False]])
    value = tied_plackett_luce(scores, torch.tensor([[0, 1, 0]]), mask)
    assert float(value.detach()) == pytest.approx(math.log1p(math.exp(0.9)))
    value.sum().backward()
    assert scores.grad is not None and scores.grad[0, 2] == 0
    assert bool(torch.isfinite(scores.grad).all())


# ------------------------------------------------------------------------------ calibration


def test_golden_calibration_error() -> None:
    """0.97 twice with one right (½: off by 0.47), 0.62 twice with one and a tie (¾: by 0.13)."""
    p = torch.tensor([0.97, 0.03, 0.62, 0.38])
    label = torch.tensor([1.0, 1.0, 1.0, 0.5])
    assert expected_calibration_error(p, label) == pytest.approx((0.47 + 0.13) / 2)
    assert reliability(p.double(), label.double(), bins=1).share.tolist() == [0.625]


def test_calibration_does_not_know_which_side_is_first() -> None:
    p = torch.linspace(0.01, 0.99, 60)
    label = (torch.arange(60) % 3 == 0).float()
    flipped = expected_calibration_error(1 - p, 1 - label)
    assert flipped == pytest.approx(expected_calibration_error(p, label), abs=1e-7)


def test_true_probabilities_are_calibrated_and_doubled_gaps_are_not() -> None:
    generator = torch.Generator().manual_seed(0)
    gaps = torch.randn(40_000, generator=generator)
    votes = (torch.rand(40_000, generator=generator) < torch.sigmoid(gaps)).float()
    assert expected_calibration_error(torch.sigmoid(gaps), votes) < 0.012
    assert expected_calibration_error(torch.sigmoid(3 * gaps), votes) > 0.1
    with pytest.raises(ValueError, match="probabilities"):
        reliability(gaps, votes)


# ------------------------------------------------------------------------------ what to ask next


def test_information_of_a_pair() -> None:
    """Members that agree say nothing; two that are sure of opposites, ln 2; both by definition."""
    gaps = torch.tensor([[0.0, 2.0, 50.0, 1.0], [0.0, 2.0, -50.0, -1.0]])
    information = pair_information(gaps)
    p = 1 / (1 + math.exp(-1))
    between = math.log(2) + p * math.log(p) + (1 - p) * math.log(1 - p)
    assert information.tolist() == pytest.approx([0, 0, math.log(2), between], abs=1e-9)


def test_next_pairs_are_informative_and_never_seen() -> None:
    scores = torch.tensor([[0.0, 3, 0, 0, 1], [0, -3, 0, 0, -1], [0, 0, 0, 0, 0]])
    pairs = torch.combinations(torch.arange(5))
    first = next_pairs(scores, pairs, 1)
    assert pairs[first].tolist() != [[2, 3]]
    assert 1 in pairs[first].flatten()
    seen = (pairs == 1).any(1)
    later = next_pairs(scores, pairs, 20, seen=seen)
    assert len(later) == len(set(later.tolist())) == 6
    assert 4 in pairs[later[:1]].flatten()
    assert not bool(seen[later].any())
    batch = pairs[next_pairs(scores, pairs, 2)].flatten().tolist()
    assert len(set(batch)) == 4  # a thing is once in a batch, while others are left
    assert len(next_pairs(scores, pairs, 3, seen=torch.ones(10, dtype=torch.bool))) == 0
