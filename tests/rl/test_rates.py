"""The closed-form advantage rate on the Gaussian test bed (VP(.1, 20), data N(1, .25))."""

import math

import pytest
import torch

from scoretune.rl import advantage_rate

F64 = torch.float64
M0, S0, K, MU, KAPPA = 1.0, 0.25, 2.0, 2.0, 0.5  # reward −½K(x−μ)², KL weight κ


def _beta(u):
    return 0.1 + 19.9 * u


def _alpha(u):
    return torch.exp(-(0.1 * u + 19.9 * u**2 / 2) / 2)


def _variance(u):
    return _alpha(u) ** 2 * S0 + 1 - _alpha(u) ** 2


def _value(u, x, theta):
    """V^θ(u, x) = −½k((m_T − μ)² + v(u)) − (κθ²/2) I(u) for s_θ = s_pre + θ α/Σ."""
    alpha, total = _alpha(u), _variance(u)
    mean = M0 + theta + alpha * S0 / total * (x - alpha * (M0 + theta))
    variance = S0 * (1 - alpha**2) / total
    cost = (1 / (1 + (S0 - 1) * alpha**2) - 1 / S0) / (S0 - 1)
    return -K / 2 * ((mean - MU) ** 2 + variance) - KAPPA * theta**2 / 2 * cost


def _scores(u, x, theta):
    reference = -(x - _alpha(u) * M0) / _variance(u)
    return reference, reference + theta * _alpha(u) / _variance(u)


def _rate(u, x, theta, action):
    x = x.clone().requires_grad_()
    gradient = torch.autograd.grad(_value(u, x, theta).sum(), x)[0]
    reference, mean = _scores(u, x.detach(), theta)
    return advantage_rate(gradient, action, mean, reference, _beta(u).reshape(1), KAPPA)


def _number(value):
    return torch.tensor([[value]], dtype=F64)


def test_golden_rate_and_its_finite_difference():
    u, x, theta, a = torch.tensor(0.4, dtype=F64), _number(0.3), 0.2, _number(1.3)
    rate = float(_rate(u, x, theta, a))
    assert rate == pytest.approx(-0.7820961, abs=5e-8)
    reference, _ = _scores(u, x, theta)
    nodes = (-1.0, 0.0, 1.0)  # Gauss–Hermite with three nodes is exact for a quadratic value
    weights = (1 / 6, 2 / 3, 1 / 6)
    for delta, expected in ((1e-2, -0.70059), (1e-3, -0.77401), (1e-4, -0.78129)):
        g_sq = float(_beta(u))
        mean = x + (g_sq / 2 * x + g_sq * a) * delta
        ahead = sum(
            w * _value(u - delta, mean + math.sqrt(3 * g_sq * delta) * z, theta)
            for w, z in zip(weights, nodes, strict=True)
        )
        cost = KAPPA / 2 * g_sq * (a - reference) ** 2 * delta
        difference = float((ahead - cost - _value(u, x, theta)) / delta)
        assert difference == pytest.approx(expected, abs=6e-6)


def test_rate_is_centred_under_its_own_policy():
    # E_{a ~ N(s, Σ)} q = 0 with the trace of Σ; Gauss–Hermite is exact for a quadratic.
    gradient, mean, reference = torch.randn(3, 1, 1, dtype=F64)
    std = 0.8
    total = sum(
        weight
        * advantage_rate(
            gradient, mean + std * node, mean, reference, torch.tensor([2.0], dtype=F64), 0.5, 0.64
        )
        for weight, node in ((1 / 6, -math.sqrt(3)), (2 / 3, 0.0), (1 / 6, math.sqrt(3)))
    )
    assert float(total) == pytest.approx(0, abs=1e-12)


def test_rate_sums_over_dimensions_and_is_linear_in_g_sq():
    gradient, action, mean, reference = torch.randn(4, 5, 3, 2, dtype=F64)
    g_sq = torch.rand(5, dtype=F64)
    rate = advantage_rate(gradient, action, mean, reference, g_sq, 0.3)
    assert rate.shape == (5,)
    unit = advantage_rate(gradient, action, mean, reference, torch.ones(5, dtype=F64), 0.3)
    torch.testing.assert_close(rate, g_sq * unit)
    assert torch.equal(
        advantage_rate(gradient, mean, mean, reference, g_sq, 0.3), torch.zeros(5, dtype=F64)
    )
