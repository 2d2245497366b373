"""Rejection sampling: the law of the published algorithm, its limits, and pairs of its samples."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from scoretune.preference import best_and_worst, percentiles, rejection_sample, tournament
from scoretune.preference.rejection import acceptance

F64 = torch.float64
SCORES = torch.tensor([0.3, 1.0, -0.5, 0.7], dtype=F64)


def law_of_the_algorithm(scores, k, temperature):
    """P(accepted in this order) of the published loop, exactly: a proposal is uniform over those
    left and kept with probability e^{(r − r_max)/τ}, and rejected ones are proposed again."""
    law = {}
    for order in itertools.permutations(range(len(scores)), k):
        left, probability = list(range(len(scores))), 1.0
        for index in order:
            top = max(scores[j] for j in left)
            kept = {j: math.exp((scores[j] - top) / temperature) / len(left) for j in left}
            probability *= kept[index] / sum(kept.values())
            left.remove(index)
        law[order] = probability
    return law


@pytest.mark.parametrize("temperature", [0.4, 2.0])
def test_it_draws_the_law_of_the_algorithm(temperature):
    draws = 20_000
    pools = SCORES.expand(draws, 4)
    drawn = rejection_sample(pools, 2, temperature, torch.Generator().manual_seed(0))
    law = law_of_the_algorithm(SCORES.tolist(), 2, temperature)
    assert sum(law.values()) == pytest.approx(1)
    for order, probability in law.items():
        share = float((drawn == torch.tensor(order)).all(1).double().mean())
        error = math.sqrt(probability * (1 - probability) / draws)
        assert abs(share - probability) < 4 * error


def test_two_candidates_follow_the_acceptance():
    """R5: the worse of two comes first e^{−Δ/τ} as often as the better."""
    draws, temperature = 40_000, 0.5
    pools = torch.tensor([0.0, 0.4], dtype=F64).expand(draws, 2)
    first = rejection_sample(pools, 1, temperature, torch.Generator().manual_seed(1))[:, 0]
    accepted = acceptance(torch.tensor([0.0, 0.4]), temperature)
    torch.testing.assert_close(accepted, torch.tensor([math.exp(-0.8), 1.0], dtype=F64))
    share = float((first == 0).double().mean())
    expected = float(accepted[0] / accepted.sum())
    assert abs(share - expected) < 3 * math.sqrt(expected * (1 - expected) / draws)


def test_limits():
    generator = torch.Generator().manual_seed(2)
    scores = torch.randn(200, 7, generator=generator, dtype=F64)
    best = scores.topk(3).indices
    for cold in (0.0, 1e-9):
        assert torch.equal(rejection_sample(scores, 3, cold, generator), best)
    hot = rejection_sample(scores, 3, 1e6, generator)
    taken = scores.gather(1, hot)
    assert float(acceptance(scores, 1e6).min()) > 0.99999
    error = float(scores.std()) / math.sqrt(taken.numel())
    assert abs(float(taken.mean() - scores.mean())) < 3 * error
    assert all(len(set(row)) == 3 for row in hot.tolist())
    assert torch.equal(
        rejection_sample(scores, 7, 1.0).sort().values, torch.arange(7).expand(200, 7)
    )


def test_percentiles_ignore_what_scores_mean():
    scores = torch.tensor([0.1, 5.0, 5.0, -2.0], dtype=F64)
    torch.testing.assert_close(
        percentiles(scores), torch.tensor([1 / 3, 5 / 6, 5 / 6, 0], dtype=F64)
    )
    drawn = [
        rejection_sample(s, 3, 0.2, torch.Generator().manual_seed(3), percentile=True)
        for s in (SCORES, torch.exp(3 * SCORES), SCORES**3 - 7)
    ]
    assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[0], drawn[2])
    pools = SCORES.expand(500, 4)
    raw = rejection_sample(100 * pools, 1, 0.2, torch.Generator().manual_seed(4))
    ranked = rejection_sample(
        100 * pools, 1, 0.2, torch.Generator().manual_seed(4), percentile=True
    )
    assert bool((raw == 1).all()) and not bool((ranked == 1).all())


def test_the_same_seed_draws_the_same():
    drawn = [rejection_sample(SCORES, 3, 1.0, torch.Generator().manual_seed(5)) for _ in range(2)]
    assert torch.equal(*drawn)


def test_pairs_of_what_was_accepted():
    accepted = torch.tensor([2, 0, 3])
    assert best_and_worst(SCORES, accepted) == (3, 2)
    assert best_and_worst(torch.zeros(4), accepted) == (2, 3)
    assert tournament(SCORES, torch.tensor([2, 0, 3, 1])) == [(0, 2), (1, 3), (1, 0)]
    assert tournament(SCORES, accepted) == [(0, 2), (3, 0)]
    pairs = tournament(SCORES, torch.tensor([0, 1, 2, 3]))
    assert len(pairs) == 3 and all(SCORES[w] > SCORES[l] for w, l in pairs)


@pytest.mark.parametrize(
    ("message", "scores", "k", "temperature"),
    [
        ("k must be from 1 to the number of candidates 4, got 5", SCORES, 5, 1.0),
        ("k must be from 1", SCORES, 0, 1.0),
        ("temperature must be >= 0", SCORES, 1, -1.0),
        ("finite score", torch.tensor([0.0, math.nan]), 1, 1.0),
        ("1 or more dimensions", torch.tensor(0.0), 1, 1.0),
    ],
)
def test_bad_input(message, scores, k, temperature):
    with pytest.raises(ValueError, match=message):
        rejection_sample(scores, k, temperature)
