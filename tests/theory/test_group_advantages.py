"""What a deviation does to the gradient: by each group's own, prompts of small spread count most.

Group-relative advantages (arXiv 2402.03300) divided by the group's own deviation follow another
objective than the mean reward (arXiv 2503.20783 §3.1); one deviation for all keeps its direction.

The bed: actions a ~ N(θ, σ²), prompts with rewards c_i + s_i a, so ∂θ E[r_i] = s_i. With groups of
n and S the deviation of a group's actions, E[mean_j A_j ∂θ log π(a_j)] is exactly

    own:     sign(s_i) (n−1)/n E[S]/σ²,  E[S] = σ √(2/(n−1)) Γ(n/2)/Γ((n−1)/2)
    shared:  s_i √((n−1)/n) / (σ √mean s²)   in the limit of many groups
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from scoretune.training.credit.outcome import group_advantage, running_advantage

F64 = torch.float64
THETA, SIGMA, GROUP, COUNT = 0.3, 0.5, 4, 40_000
OFFSETS = torch.tensor([5.0, 0.0, -7.0], dtype=F64)
SLOPES = torch.tensor([1.0, 1.0, -10.0], dtype=F64)  # the mean reward falls with θ


def actions_and_rewards(seed: int) -> tuple[Tensor, Tensor]:
    """Of COUNT groups of each of the three prompts: [COUNT, 3, GROUP]."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(COUNT, 3, GROUP, generator=generator, dtype=F64)
    actions = THETA + SIGMA * noise
    return actions, OFFSETS[:, None] + SLOPES[:, None] * actions


def gradients(seed: int, deviation: str) -> tuple[Tensor, Tensor]:
    """Each prompt's mean policy gradient [3], and its standard error [3]."""
    actions, rewards = actions_and_rewards(seed)
    advantage = group_advantage(rewards.flatten(), GROUP, deviation).view(rewards.shape)
    computed = (advantage * (actions - THETA) / SIGMA**2).mean(2)
    return computed.mean(0), computed.std(0) / COUNT**0.5


@pytest.mark.parametrize("seed", range(3))
def test_by_its_own_deviation_every_prompt_pulls_alike(seed):
    computed, error = gradients(seed, "group")
    ratio = math.gamma(GROUP / 2) / math.gamma((GROUP - 1) / 2)
    deviation = SIGMA * (2 / (GROUP - 1)) ** 0.5 * ratio
    expected = SLOPES.sign() * (GROUP - 1) / GROUP * deviation / SIGMA**2
    assert bool(((computed - expected).abs() < 4 * error).all()), (computed, expected, error)


@pytest.mark.parametrize("seed", range(3))
def test_by_one_deviation_every_prompt_pulls_by_its_slope(seed):
    computed, error = gradients(seed, "within")
    spread = SIGMA * float((SLOPES**2).mean()) ** 0.5
    expected = SLOPES * ((GROUP - 1) / GROUP) ** 0.5 / spread
    assert bool(((computed - expected).abs() < 4 * error).all()), (computed, expected, error)


@pytest.mark.parametrize("seed", range(3))
def test_its_own_deviation_can_turn_the_gradient_round(seed):
    """Two prompts that gain a little outvote one that loses ten times as much."""
    truth = float(SLOPES.mean())
    by_group, shared = (gradients(seed, each) for each in ("group", "within"))
    assert truth < 0
    assert float(by_group[0].mean()) > 4 * float(by_group[1].max())
    assert float(shared[0].mean()) < -4 * float(shared[1].max())


@pytest.mark.parametrize("group", [4, 16, 64])
def test_prompts_nearly_solved_or_hopeless_count_most(group):
    """For rewards 0 or 1 of probability p, by enumeration of every group.

    The gradient by the logit of p is p(1 − p). Its weight in the estimate tends to 1/√(p(1 − p)),
    2.3 times as much at p = .05 as at ½; in a small group, which often has no difference, to less.
    """
    chances = torch.tensor([0.05, 0.2, 0.5, 0.8, 0.95], dtype=F64)
    hits = torch.arange(group + 1)
    rewards = (torch.arange(group) < hits[:, None]).to(F64)
    advantage = group_advantage(rewards.flatten(), group, deviation="group").view(rewards.shape)
    law = torch.distributions.Binomial(group, chances[:, None]).log_prob(hits.to(F64)).exp()
    pull = (advantage[None] * (rewards[None] - chances[:, None, None])).mean(2)
    weight = (law * pull).sum(1) / (chances * (1 - chances))
    torch.testing.assert_close(weight, weight.flip(0))  # p and 1 − p alike
    assert bool((weight[:2] > weight[2]).all())
    limit = (chances * (1 - chances)) ** -0.5
    away = float((weight / limit - 1).abs().max())
    assert away < {4: 0.7, 16: 0.35, 64: 0.07}[group]


def test_a_prompts_own_past_weighs_prompts_as_its_own_group_does():
    """DDPO's deviation per prompt (arXiv 2305.13301), with an ample memory: 1/σ, whatever s_i."""
    actions, rewards = actions_and_rewards(0)
    prompts = ("a", "b", "c")
    memory = {p: rewards[:, i, 1:].flatten().tolist() for i, p in enumerate(prompts)}
    everyone = rewards[:4000, :, 0]
    advantage = running_advantage(everyone.flatten(), prompts * len(everyone), memory, 16)
    computed = advantage.view(-1, 3) * (actions[:4000, :, 0] - THETA) / SIGMA**2
    error = computed.std(0) / len(computed) ** 0.5
    assert bool(((computed.mean(0) - SLOPES.sign() / SIGMA).abs() < 4 * error).all())
