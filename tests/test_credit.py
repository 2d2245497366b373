"""Credit: golden numbers of group advantages, and TD advantages that add up to what happened."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scoretune.backbones import toy
from scoretune.batches import Condition, Trajectory
from scoretune.credit import (
    CriticCredit,
    TerminalCredit,
    group_advantage,
    standardise,
)
from scoretune.critic import critic_for
from scoretune.diffusion import grids
from scoretune.diffusion.kernels import GDDIM
from scoretune.diffusion.processes import VP
from scoretune.policy import Policy
from scoretune.rollout import prior, rollout
from scoretune.sources import reward_metrics, shuffled, transitions

STEPS, BATCH = 6, 64


def path_of(batch: int = BATCH, seed: int = 0, dimension: int = 1) -> Trajectory:
    policy = Policy(toy.Gaussian(VP(), 0.0, 1.0, dimension), GDDIM(1.0))
    generator = torch.Generator().manual_seed(seed)
    times = grids.karras(VP(), STEPS)
    noise = prior(policy, batch, generator)
    return rollout(policy, Condition.none(batch), times, generator, noise)


def square(x: Tensor, who: Tensor | None = None) -> Tensor:
    return x[:, 0] ** 2


def critic_credit(kl_weight: float = 0.0, **options) -> CriticCredit:
    torch.manual_seed(0)
    critic = critic_for((1,), 0, 1.0)
    optimiser = torch.optim.Adam(critic.parameters(), lr=3e-3)
    policy = Policy(toy.Gaussian(VP(), 0.0, 1.0), GDDIM(1.0))
    return CriticCredit(
        critic=critic, optimiser=optimiser, policy=policy, kl_weight=kl_weight, **options
    )


# ---------------------------------------------------------------------------- of whole paths


def test_group_advantages_golden():
    rewards = torch.tensor([1.0, 3.0, 10.0, 10.0, 0.0, 4.0])
    # Centred by prompt: −1, 1, 0, 0, −2, 2. Their deviation is √(10/5) = √2.
    shared = torch.tensor([-1.0, 1.0, 0.0, 0.0, -2.0, 2.0]) / 2**0.5
    torch.testing.assert_close(group_advantage(rewards, 2), shared, rtol=1e-5, atol=1e-6)
    # GRPO: by the group's own deviation, √2, 0 and 2√2, which makes the equal group 0.
    own = torch.tensor([-1.0, 1.0, 0.0, 0.0, -1.0, 1.0]) / 2**0.5
    torch.testing.assert_close(
        group_advantage(rewards, 2, shared_scale=False), own, rtol=1e-5, atol=1e-6
    )


def test_a_prompts_difficulty_does_not_matter():
    rewards = torch.randn(12)
    harder = rewards.view(3, 4) + torch.tensor([[0.0], [5.0], [-9.0]])
    torch.testing.assert_close(
        group_advantage(harder.flatten(), 4), group_advantage(rewards, 4), rtol=1e-4, atol=1e-5
    )


def test_standardise_golden():
    found = standardise(torch.tensor([0.0, 1.0, 2.0]))
    torch.testing.assert_close(found, torch.tensor([-1.0, 0.0, 1.0]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rewards", [torch.tensor([3.0]), torch.full((4,), 3.0)])
def test_without_a_difference_there_is_no_credit(rewards):
    credit = TerminalCredit(group=1)
    advantage = credit(path_of(len(rewards)), rewards, square).advantage
    assert torch.equal(advantage, torch.zeros(STEPS, len(rewards)))


def test_terminal_credit_is_the_same_at_every_step_and_bounded():
    rewards = torch.zeros(BATCH)
    rewards[0] = 1e6
    credited = TerminalCredit(group=BATCH, bound=5.0)(path_of(), rewards, square)
    assert credited.advantage.shape == (STEPS, BATCH)
    assert torch.equal(credited.advantage, credited.advantage[:1].expand(STEPS, -1))
    assert float(credited.advantage.max()) == 5.0
    assert credited.slopes is None


# ---------------------------------------------------------------------------- of single steps


def test_td_advantages_telescope():
    path = path_of()
    rewards, credit = square(path.final), critic_credit(standardised=False)
    with torch.no_grad():
        start = credit.critic(
            path.states[0],
            path.data[0],
            path.times[0].expand(BATCH),
            path.condition.tokens,
            square(path.data[0]),
        )
    advantage = credit(path, rewards, square).advantage
    torch.testing.assert_close(advantage.sum(0), rewards - start, rtol=1e-4, atol=1e-5)


def test_the_kl_is_a_running_cost():
    path, kls = path_of(), torch.rand(STEPS, BATCH)
    with_kl = Trajectory(**{**vars(path), "kls": kls})
    plain = critic_credit(standardised=False)(path, square(path.final), square).advantage
    costly = critic_credit(0.3, standardised=False)(with_kl, square(path.final), square).advantage
    torch.testing.assert_close(costly, plain - 0.3 * kls, rtol=1e-4, atol=1e-5)


def test_one_scale_for_the_whole_round():
    path = path_of()
    raw = critic_credit(standardised=False)(path, square(path.final), square).advantage
    scaled = critic_credit()(path, square(path.final), square).advantage
    ratio = scaled / raw
    torch.testing.assert_close(ratio, ratio[:1, :1].expand_as(ratio), rtol=1e-4, atol=0)
    assert float(scaled.square().sum(0).mean()) == pytest.approx(1.0, rel=1e-3)


def test_advantages_come_before_the_fit():
    path = path_of()
    first = critic_credit(standardised=False, passes=1)
    second = critic_credit(standardised=False, passes=9)
    advantages = [c(path, square(path.final), square).advantage for c in (first, second)]
    assert torch.equal(*advantages)


def test_slopes_are_the_gradient_of_the_value():
    """On Gaussian data V = reward(x̂0) is exact for a linear reward, and so is its slope."""
    path, credit = path_of(40), critic_credit(slopes=True, passes=0)
    for parameter in credit.critic.parameters():
        torch.nn.init.zeros_(parameter)
    factors = torch.arange(40.0)  # a reward of one's own each: the judge must know who is who
    credited = credit(path, factors * path.final[:, 0], lambda x, who: factors[who] * x[:, 0])
    t = path.times[1:]
    alpha, sigma = VP().alpha(t), VP().sigma(t)
    exact = torch.cos(t * torch.pi / 2) * alpha / (alpha**2 + sigma**2)
    exact[-1] = 1.0  # the finished sample's slope is the reward's own
    steps = transitions(path, credited, 1.0, torch.Generator().manual_seed(0))
    for row in range(len(steps)):
        k = int((path.times == steps.t[row]).nonzero())
        b = int((path.states[k, :, 0] == steps.x[row, 0]).nonzero())
        assert float(steps.value_slope[row, 0]) == pytest.approx(float(exact[k]) * b, rel=1e-3)


# ---------------------------------------------------------------------------- to minibatches


def test_every_transition_is_learned_once():
    path = path_of(5)
    credited = TerminalCredit(group=5)(path, square(path.final), square)
    generator = torch.Generator().manual_seed(0)
    steps = transitions(path, credited, 1.0, generator)
    batches = shuffled(steps, 7, generator)
    assert [len(b) for b in batches] == [7, 7, 7, 7, 2]
    assert all(b.path_steps == STEPS for b in batches)
    found = torch.cat([b.x for b in batches]).flatten().sort().values
    torch.testing.assert_close(found, path.states[:-1].flatten().sort().values)
    for k in range(STEPS):  # what belongs together stays together
        for b in range(5):
            row = (steps.x == path.states[k, b]).flatten().nonzero()[0]
            assert torch.equal(steps.x_next[row][0], path.states[k + 1, b])
            assert steps.t[row] == path.times[k]
            assert steps.t_next[row] == path.times[k + 1]
            assert steps.log_prob[row] == path.log_probs[k, b]
            assert steps.advantage[row] == credited.advantage[k, b]


def test_a_share_of_the_steps():
    path = path_of(10)
    credited = TerminalCredit(group=10)(path, square(path.final), square)
    steps = transitions(path, credited, 0.5, torch.Generator().manual_seed(0))
    assert len(steps) == 30
    assert steps.path_steps == STEPS  # a mean times this still estimates the sum over the path
    assert len(steps.x.unique()) == 30  # no transition twice
    assert len(steps.t.unique()) > 3


def test_reward_metrics_golden():
    found = reward_metrics(torch.tensor([1.0, 2.0, 3.0]))
    half = 1.96 * 1.0 / 3**0.5
    assert found == pytest.approx({"reward": 2, "reward_low": 2 - half, "reward_high": 2 + half})
    assert reward_metrics(torch.tensor([2.0])) == {
        "reward": 2.0,
        "reward_low": 2.0,
        "reward_high": 2.0,
    }
