"""How far people disagree: entropies of tokens, votes and samples, and the scale that follows."""

from __future__ import annotations

import math

import pytest
import torch

from scoretune.preference import (
    dispersion,
    mallows_probability,
    pair_entropy,
    pairwise_loss,
    phi_star,
    preference_entropy,
    sample_spread,
    token_entropy,
    vote_agreement,
    vote_entropy,
)
from scoretune.preference.mallows import ranking_law

F64 = torch.float64


def random_logits(temperature=1.0, batch=6, tokens=9, words=43):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, tokens, words, generator=generator, dtype=F64) / temperature
    lengths = torch.tensor([9, 4, 7, 1, 5, 8])
    return logits, (torch.arange(tokens) < lengths[:, None]).double()


def test_token_entropy_is_the_mean_over_tokens_and_falls_as_logits_sharpen():
    logits, mask = random_logits()
    entropy = token_entropy(logits, mask)
    law = torch.distributions.Categorical(logits=logits)
    for row in range(6):
        tokens = int(mask[row].sum())
        expected = law.entropy()[row, :tokens].mean() / math.log(43)
        assert float(entropy[row]) == pytest.approx(float(expected), rel=1e-12)
    levels = [token_entropy(*random_logits(t)).mean() for t in (10, 1, 0.3, 0.1, 0.01)]
    assert all(0 < float(level) <= 1 for level in levels)
    assert levels == sorted(levels, reverse=True)
    flat = token_entropy(torch.zeros_like(logits), mask)
    torch.testing.assert_close(flat, torch.ones_like(flat))


def test_token_entropy_does_not_depend_on_padding_and_order():
    logits, mask = random_logits()
    entropy = token_entropy(logits, mask)
    padded = torch.cat([logits, torch.full((6, 3, 43), 9.0, dtype=F64)], 1)
    more = torch.cat([mask, torch.zeros(6, 3, dtype=F64)], 1)
    torch.testing.assert_close(token_entropy(padded, more), entropy)
    nan = torch.where(mask[..., None] > 0, logits, math.nan)  # what stands in padding is not read
    torch.testing.assert_close(token_entropy(nan, mask), entropy)
    order = torch.tensor([3, 1, 0, 5, 4, 2])
    torch.testing.assert_close(token_entropy(logits[order], mask[order]), entropy[order])
    torch.testing.assert_close(token_entropy(logits.bfloat16(), mask).double(), entropy,
                               rtol=0, atol=1e-3)  # fmt: skip


def test_the_scale_is_one_on_average_and_agreement_pushes_harder():
    entropies = token_entropy(*random_logits(0.3))
    star = phi_star(entropies)
    scale = dispersion(entropies, star)
    assert float(scale.mean()) == pytest.approx(1, abs=1e-12)
    order = entropies.argsort()
    assert torch.equal(scale.argsort(descending=True), order)
    assert float(dispersion(torch.tensor(0.032, dtype=F64), 0.29)) == pytest.approx(0.998, abs=1e-3)


def test_a_batch_of_one_entropy_is_dpo():
    """M5: with the scale of equal entropies, value and gradient are DPO's."""
    entropies = torch.full((5,), 0.4, dtype=F64)
    star = 1 / -math.log(0.4)
    sides = -10 * torch.rand(4, 5, generator=torch.Generator().manual_seed(1), dtype=F64)
    slopes = []
    for preset, scale in (("mallows_theta", dispersion(entropies, star)), ("dpo", None)):
        w = sides[0].clone().requires_grad_()
        loss = pairwise_loss(w, *sides[1:], preset=preset, scale=scale)
        slopes.append(torch.autograd.grad(loss.sum(), w)[0])
    torch.testing.assert_close(*slopes, rtol=1e-12, atol=1e-14)


def test_a_constant_dispersion_is_refused():
    with pytest.raises(ValueError, match=r"every entropy is 0.4: a dispersion that is the same"):
        phi_star(torch.full((5,), 0.4))
    with pytest.raises(ValueError, match="is the same for all prompts"):
        phi_star(torch.tensor([0.4]))


@pytest.mark.parametrize("wrong", [1.5, -0.1, math.nan])
def test_a_sum_of_entropies_is_refused(wrong):
    with pytest.raises(ValueError, match=r"lies in \[0, 1\]: the mean over tokens"):
        dispersion(torch.tensor([0.4, wrong]), 0.29)


def test_edges_stay_positive_and_finite():
    scale = dispersion(torch.tensor([0.0, 1e-9, 1.0, 1 + 1e-6]), 1.0)
    assert bool((scale > 0).all()) and bool(torch.isfinite(scale).all())
    with pytest.raises(ValueError, match="phi_star must be > 0, got 0"):
        dispersion(torch.tensor([0.5]), 0)


def test_votes():
    first, second = (
        torch.tensor(votes, dtype=F64) for votes in ([5, 9, 10, 0, 1], [5, 1, 0, 10, 0])
    )
    entropy = vote_entropy(first, second)
    assert float(entropy[0]) == pytest.approx(1)
    assert float(entropy[2]) == pytest.approx(float(entropy[3]))  # whichever side
    assert float(entropy[2]) < float(entropy[1]) < float(entropy[4]) < float(entropy[0])
    share = 9.5 / 11
    expected = -(share * math.log2(share) + (1 - share) * math.log2(1 - share))
    assert float(entropy[1]) == pytest.approx(expected)
    with pytest.raises(ValueError, match="votes are counts"):
        vote_entropy(-first, second)


def test_agreement_of_votes_is_proportional_to_the_dispersion():
    """Of many raters by Mallows-θ: |log odds| are −2 ln φ times the distance in ranks."""
    gap = torch.tensor([1.0, 2.0, 4.0], dtype=F64)
    for phi in (0.3, 0.6, 0.95):
        share = mallows_probability(gap, phi, "theta")
        agreement = vote_agreement(1e9 * share, 1e9 * (1 - share))
        torch.testing.assert_close(agreement, -2 * math.log(phi) * gap, rtol=1e-3, atol=1e-6)
    one, other = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 3.0])
    torch.testing.assert_close(vote_agreement(one, other), torch.full((2,), math.log(7)))
    assert float(vote_agreement(one, one).max()) == 0
    with pytest.raises(ValueError, match="votes are counts"):
        vote_agreement(-one, other)


def test_opinions_of_judges_and_of_draws():
    opinions = torch.tensor([[1.0, 0.9, 0.5, 1.0], [1.0, 0.8, 0.5, 0.0]], dtype=F64)
    entropy = preference_entropy(opinions)
    torch.testing.assert_close(entropy[[0, 2, 3]], torch.tensor([0.0, 1.0, 1.0], dtype=F64))
    assert 0 < float(entropy[1]) < 1
    # Counts without a prior are opinions of 0 and 1.
    votes = vote_entropy(torch.tensor([3.0]), torch.tensor([1.0]), prior=0)
    ones = torch.tensor([[1.0], [1.0], [1.0], [0.0]])
    torch.testing.assert_close(votes, preference_entropy(ones))
    with pytest.raises(ValueError, match="must be probabilities"):
        preference_entropy(2 * opinions)


def test_the_spread_of_samples():
    generator = torch.Generator().manual_seed(0)
    stds = torch.tensor([0.1, 0.5, 1.0])
    noise = torch.randn(4000, 3, 2, 5, generator=generator)
    spread = sample_spread(noise * stds[:, None, None])
    expected = stds**2 / (stds**2).mean()
    torch.testing.assert_close(spread, expected.clamp(max=1), rtol=0.03, atol=0)
    assert torch.equal(spread.argsort(), torch.arange(3))
    with pytest.raises(ValueError, match="two or more samples"):
        sample_spread(noise[:1])


def test_the_entropy_of_a_pair():
    one, other = torch.tensor([0.2, 0.4]), torch.tensor([0.4, 0.8])
    torch.testing.assert_close(pair_entropy(one, other), torch.tensor([0.3, 0.6]))


@pytest.mark.parametrize("n", [4, 5, 6])
@pytest.mark.parametrize("rankings", [True, False])
def test_entropy_tells_the_dispersion_of_a_mallows_model(n, rankings):
    """M4: −ln H̄ rises with −ln φ, nearly in proportion; of whole rankings and of the top choice."""
    phis = torch.linspace(0.05, 0.95, 19, dtype=F64)
    entropies = []
    for phi in phis.tolist():
        if rankings:
            law, most = ranking_law(n, phi)[1], math.lgamma(n + 1)
        else:
            law, most = torch.softmax(math.log(phi) * torch.arange(n, dtype=F64), 0), math.log(n)
        entropies.append(torch.special.entr(law).sum() / most)
    x, y = -torch.log(torch.stack(entropies)), -torch.log(phis)
    assert float(torch.corrcoef(torch.stack([x, y]))[0, 1]) > 0.98
    assert bool((x.diff() < 0).all())
    slope = float(x @ y / (x @ x))
    assert 1 < slope < 2.5
    disordered = phis > 0.7
    assert bool((slope * x[disordered] < y[disordered]).all())
