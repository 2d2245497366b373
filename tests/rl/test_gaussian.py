"""Diagonal Gaussians against torch.distributions, and against each other."""

import torch
from torch.distributions import Independent, Normal, kl_divergence

from scoretune.rl import gaussian_entropy, gaussian_kl, gaussian_log_prob

F64 = torch.float64


def draw(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, mean, other = torch.randn(3, 7, 4, generator=generator, dtype=F64)
    std, other_std = torch.rand(2, 7, 4, generator=generator, dtype=F64) + 0.1
    return x, mean, std, other, other_std


def test_they_are_those_of_torch_distributions():
    x, mean, std, other, other_std = draw()
    law = Independent(Normal(mean, std), 1)
    torch.testing.assert_close(gaussian_log_prob(x, mean, std), law.log_prob(x))
    torch.testing.assert_close(gaussian_entropy(std), law.entropy())
    torch.testing.assert_close(
        gaussian_kl(mean, std, other, other_std),
        kl_divergence(law, Independent(Normal(other, other_std), 1)),
    )


def test_kl_is_what_entropy_and_cross_entropy_leave():
    # Gauss–Hermite with two nodes is exact for the quadratic log-probability.
    _, mean, std, other, other_std = draw(1)
    mean, std, other, other_std = (v[:, :1] for v in (mean, std, other, other_std))
    cross = sum(gaussian_log_prob(mean + node * std, other, other_std) for node in (-1, 1)) / 2
    kl = gaussian_kl(mean, std, other, other_std)
    torch.testing.assert_close(kl, -gaussian_entropy(std) - cross)
    assert (kl >= 0).all()
    zero = gaussian_kl(mean, std, mean, std)
    assert torch.equal(zero, torch.zeros_like(zero))


def test_score_has_mean_zero_and_the_fisher_information():
    mean = torch.zeros(1, 1, dtype=F64, requires_grad=True)
    std = torch.full((1, 1), 0.3, dtype=F64)
    scores = [
        float(torch.autograd.grad(gaussian_log_prob(node * std, mean, std).sum(), mean)[0])
        for node in (-1, 1)
    ]
    assert sum(scores) == 0
    assert abs(sum(s**2 for s in scores) / 2 - 1 / 0.09) < 1e-12
