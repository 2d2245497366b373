"""PPO's surrogate and the penalties."""

import math

import pytest
import torch

from scoretune.rl import adapted_coefficient, clipped_surrogate, kl_penalty, sqrt_kl_penalty


def test_gradient_at_ratio_one_is_reinforce():
    mean = torch.randn(64, dtype=torch.float64, requires_grad=True)
    action, advantage = torch.randn(2, 64, dtype=torch.float64)

    def log_prob():
        return -((action - mean) ** 2) / 2

    clipped_surrogate(log_prob(), log_prob(), advantage, 1e-4).mean().backward()
    ppo = mean.grad.clone()
    mean.grad = None
    (advantage * log_prob()).mean().backward()
    torch.testing.assert_close(ppo, mean.grad, rtol=0, atol=1e-15)


def test_clipping_is_pessimistic():
    log_ratio = torch.log(torch.tensor([1.5, 1.5, 0.5, 0.5])).requires_grad_()
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0])
    value = clipped_surrogate(log_ratio, torch.zeros(4), advantage, 0.2)
    torch.testing.assert_close(value, torch.tensor([1.2, -1.5, 0.5, -0.8]))
    value.sum().backward()
    torch.testing.assert_close(log_ratio.grad, torch.tensor([0.0, -1.5, 0.5, 0.0]))


def test_old_policy_and_advantage_are_constants():
    tensors = [torch.zeros(3, requires_grad=True) for _ in range(3)]
    clipped_surrogate(*tensors, 0.2).sum().backward()
    assert tensors[0].grad is not None
    assert tensors[1].grad is None
    assert tensors[2].grad is None


@pytest.mark.parametrize("clip", [0.0, -1.0, math.nan])
def test_clip_must_be_positive(clip):
    with pytest.raises(ValueError, match="clip must be > 0"):
        clipped_surrogate(torch.zeros(1), torch.zeros(1), torch.ones(1), clip)


def test_penalties():
    kl = torch.tensor([0.0, 0.04], requires_grad=True)
    torch.testing.assert_close(kl_penalty(kl, 3.0), torch.tensor([0.0, 0.12]))
    root = sqrt_kl_penalty(kl, 3.0)
    torch.testing.assert_close(root, torch.tensor([0.0, 0.6]), atol=1e-5, rtol=1e-5)
    root.sum().backward()
    assert torch.isfinite(kl.grad).all()


def test_coefficient_follows_the_distance():
    assert adapted_coefficient(1.0, 0.2, 0.1) == 2
    assert adapted_coefficient(1.0, 0.05, 0.1) == 0.5
    assert adapted_coefficient(1.0, 0.1, 0.1) == 1
    assert adapted_coefficient(1.0, 0.2, 0.1, 0.1, 1.5) == 1.5
