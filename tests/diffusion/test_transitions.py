"""The Gaussian of a step: sums over dimensions, and clear refusals."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from scoretune.diffusion.kernels import Transition

F64 = torch.float64


def _pair():
    mean, other = torch.randn(2, 3, 4, 2, dtype=F64)
    std = torch.tensor([0.1, 1.0, 2.0], dtype=F64).reshape(3, 1, 1)
    return Transition(mean, std), Transition(other, std * torch.tensor(1.7, dtype=F64))


def test_log_prob_kl_and_entropy_are_sums():
    p, q = _pair()
    x = torch.randn(3, 4, 2, dtype=F64)
    full = Normal(p.mean, p.std.expand(3, 4, 2))
    other = Normal(q.mean, q.std.expand(3, 4, 2))
    torch.testing.assert_close(p.log_prob(x), full.log_prob(x).sum((1, 2)))
    torch.testing.assert_close(p.kl(q), kl_divergence(full, other).sum((1, 2)))
    torch.testing.assert_close(p.entropy(), full.entropy().sum((1, 2)))


def test_kl_with_equal_stds_is_the_squared_shift():
    p, _ = _pair()
    q = Transition(p.mean + 0.3, p.std)
    torch.testing.assert_close(p.kl(q), 8 * 0.09 / (2 * p.std.flatten() ** 2))
    assert torch.equal(p.kl(p), torch.zeros(3, dtype=F64))


def test_draws_follow_the_generator():
    p, _ = _pair()
    draws = [p.draw(torch.Generator().manual_seed(k)) for k in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert p.draw().shape == p.mean.shape
    noise = torch.randn(3, 4, 2, dtype=F64)
    assert torch.equal(p.draw_with(noise), p.mean + p.std * noise)


def test_half_precision_scores_in_float32():
    wide = Transition(torch.randn(2, 4096), torch.full((2, 1), 0.5))
    x = wide.draw().bfloat16()
    narrow = Transition(wide.mean.bfloat16(), wide.std.bfloat16())
    expected = Transition(wide.mean.bfloat16().float(), wide.std).log_prob(x.float())
    assert narrow.log_prob(x).dtype == torch.float32
    torch.testing.assert_close(narrow.log_prob(x), expected)


def test_log_prob_passes_gradients():
    mean = torch.zeros(2, 3, requires_grad=True)
    std = torch.ones(2, 1)
    Transition(mean, std).log_prob(torch.ones(2, 3)).sum().backward()
    assert torch.equal(mean.grad, torch.ones(2, 3))


@pytest.mark.parametrize("std", [torch.zeros(2, 1), torch.tensor([[0.0], [1.0]])])
def test_deterministic_steps_have_no_probability(std):
    step = Transition(torch.ones(2, 3), std)
    assert step.deterministic.tolist() == [value == 0 for value in std.flatten().tolist()]
    calls = {
        "log-probability": lambda: step.log_prob(step.mean),
        "KL": lambda: step.kl(Transition(step.mean, torch.ones(2, 1))),
        "entropy": step.entropy,
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=rf"deterministic \(std 0\) and has no {name}: use"):
            call()
    assert math.isfinite(float(step.draw()[0, 0]))
