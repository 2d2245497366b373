"""Laws of bounded actions: densities integrate to 1; entropies, divergences by quadrature."""

from __future__ import annotations

import math

import pytest
import torch

from scoretune.rl import (
    beta_entropy,
    beta_kl,
    beta_log_prob,
    squashed_entropy,
    squashed_log_prob,
    two_point_entropy,
    two_point_kl,
    two_point_log_prob,
)

CAP = 2.0
GRID = torch.linspace(-1, 1, 40_001, dtype=torch.float64)[1:-1, None] * CAP
CELL = float(GRID[1, 0] - GRID[0, 0])


def like(number):
    return torch.full_like(GRID, number)


def squashed(mean, std):
    return squashed_log_prob(GRID, like(mean), like(std), like(CAP))


def beta(a, b):
    return beta_log_prob(GRID, like(a), like(b), like(CAP))


@pytest.mark.parametrize(
    ("log_density", "entropy"),
    [
        (squashed(0.3, 0.6), squashed_entropy(*(like(x)[:1] for x in (0.3, 0.6, CAP)))),
        (squashed(-1.0, 0.4), squashed_entropy(*(like(x)[:1] for x in (-1.0, 0.4, CAP)))),
        (beta(2.0, 3.5), beta_entropy(*(like(x)[:1] for x in (2.0, 3.5, CAP)))),
        (beta(1.2, 6.0), beta_entropy(*(like(x)[:1] for x in (1.2, 6.0, CAP)))),
    ],
)
def test_densities_and_their_entropies(log_density, entropy):
    density = log_density.exp()
    assert float(density.sum()) * CELL == pytest.approx(1, abs=1e-4)
    assert -float((density * log_density).sum()) * CELL == pytest.approx(float(entropy), abs=1e-3)


def test_the_divergence_of_betas_is_that_of_the_quadrature():
    first, second = beta(2.0, 3.5), beta(3.0, 1.5)
    measured = float((first.exp() * (first - second)).sum()) * CELL
    exact = beta_kl(*(like(x)[:1] for x in (2.0, 3.5, 3.0, 1.5)))
    assert measured == pytest.approx(float(exact), abs=1e-4)


def test_golden_numbers():
    one = torch.ones(1, 1, dtype=torch.float64)
    # Beta(1, 1) is uniform on [−2, 2]; tanh 0 = 0 has the slope 1.
    assert float(beta_log_prob(0.3 * one, one, one, 2 * one)) == pytest.approx(-math.log(4))
    assert float(beta_entropy(one, one, 2 * one)) == pytest.approx(math.log(4))
    at_zero = squashed_log_prob(0 * one, 0 * one, one, 2 * one)
    assert float(at_zero) == pytest.approx(-math.log(2) - math.log(2 * math.pi) / 2)
    assert float(two_point_entropy(0 * one)) == pytest.approx(math.log(2))
    p = 1 / (1 + math.exp(-1))
    assert float(two_point_log_prob(2 * one, one)) == pytest.approx(math.log(p))
    assert float(two_point_log_prob(-2 * one, one)) == pytest.approx(math.log(1 - p))
    expected = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    assert float(two_point_kl(one, 0 * one)) == pytest.approx(expected)


def test_far_logits_and_ends_stay_finite():
    far = torch.tensor([[80.0], [-80.0]], requires_grad=True)
    ends = torch.tensor([[2.0], [-2.0]])
    cap, std = torch.full_like(ends, 2.0), torch.full_like(ends, 0.1)
    total = two_point_entropy(far).sum() + two_point_log_prob(ends, far).sum()
    total = total + squashed_log_prob(ends, 4 * torch.sign(far), std, cap).sum()
    total = total + squashed_entropy(far, std, cap).sum() + two_point_kl(far, -far).sum()
    total.backward()
    assert math.isfinite(total.item()) and bool(torch.isfinite(far.grad).all())
