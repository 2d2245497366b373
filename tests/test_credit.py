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
from scoretune.errors import UserError
from scoretune.policy import Policy
from scoretune.rollout import prior, rollout
from scoretune.sources import chosen_steps, reward_metrics, shuffled, transitions

STEPS, BATCH = 6, 64


def path_of(batch: int = BATCH, seed: int = 0, dimension: int = 1) -> Trajectory:
    policy = Policy(toy.Gaussian(VP(), 0.0, 1.0, dimension), GDDIM(1.0))
    generator = torch.Generator().manual_seed(seed)
    times = grids.karras(VP(), STEPS)
    noise = prior(policy, batch, generator)
    return rollout(policy, Condition.none(batch), times, generator, noise)


def square(x: Tensor, who: Tensor | None = None) -> Tensor:
    return x[:, 0] ** 2


def every_step(path: Trajectory) -> tuple[Tensor, Tensor]:
    """The numbers k, b [N·B] of all steps of all samples, in order."""
    steps, batch = path.log_probs.shape
    return torch.arange(steps).repeat_interleave(batch), torch.arange(batch).repeat(steps)


def advantages(credit, path: Trajectory, rewards: Tensor) -> Tensor:
    """The advantages [N, B] of a path."""
    credited = credit(path, rewards, square, *every_step(path))
    return credited.advantage.view(path.log_probs.shape)


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
    advantage = advantages(TerminalCredit(group=1), path_of(len(rewards)), rewards)
    assert torch.equal(advantage, torch.zeros(STEPS, len(rewards)))


def test_terminal_credit_is_the_same_at_every_step_and_bounded():
    rewards = torch.zeros(BATCH)
    rewards[0] = 1e6
    path = path_of()
    advantage = advantages(TerminalCredit(group=BATCH, bound=5.0), path, rewards)
    assert torch.equal(advantage, advantage[:1].expand(STEPS, -1))
    assert float(advantage.max()) == float(advantage[0, 0]) == 5.0
    assert TerminalCredit(group=BATCH)(path, rewards, square, *every_step(path)).slope is None


# ---------------------------------------------------------------------------- of single steps


def test_td_advantages_telescope():
    path, credit = path_of(), critic_credit()
    rewards = square(path.final)
    with torch.no_grad():
        start = credit.critic(
            path.states[0],
            path.data[0],
            path.times[0].expand(BATCH),
            path.condition.tokens,
            square(path.data[0]),
        )
    summed = advantages(credit, path, rewards).sum(0)
    torch.testing.assert_close(summed, rewards - start, rtol=1e-4, atol=1e-5)


def test_the_kl_is_a_running_cost():
    path, kls = path_of(), torch.rand(STEPS, BATCH)
    with_kl = Trajectory(**{**vars(path), "kls": kls})
    plain = advantages(critic_credit(), path, square(path.final))
    costly = advantages(critic_credit(0.3), with_kl, square(path.final))
    torch.testing.assert_close(costly, plain - 0.3 * kls, rtol=1e-4, atol=1e-5)


def test_the_critic_learns_of_the_cost_still_to_come():
    """A constant reward and a KL of 1 a step: V = 2 − 0.1·(steps left)."""
    path = Trajectory(**{**vars(path_of()), "kls": torch.ones(STEPS, BATCH)})
    credit = critic_credit(0.1)
    rewards, steps = torch.full((BATCH,), 2.0), every_step(path)

    def two(x: Tensor, who: Tensor) -> Tensor:
        return torch.full((len(x),), 2.0)

    first = credit(path, rewards, two, *steps).metrics["critic_loss"]
    for _ in range(40):
        last = credit(path, rewards, two, *steps).metrics["critic_loss"]
    assert last < 0.05 * first


def test_credit_comes_before_the_fit():
    path = path_of()
    found = [
        advantages(critic_credit(passes=passes), path, square(path.final)) for passes in (1, 9)
    ]
    assert torch.equal(*found)


def test_some_steps_are_credited_as_among_all():
    path = path_of()
    whole = advantages(critic_credit(), path, square(path.final))
    k, b = torch.tensor([5, 0, 3]), torch.tensor([7, 63, 0])
    some = critic_credit()(path, square(path.final), square, k, b).advantage
    torch.testing.assert_close(some, whole[k, b])


def test_slopes_are_the_gradient_of_the_value():
    """On Gaussian data V = reward(x̂0) is exact for a linear reward, and so is its slope."""
    path, credit = path_of(40), critic_credit(slopes=True)
    for parameter in credit.critic.parameters():
        torch.nn.init.zeros_(parameter)
    factors = torch.arange(40.0)  # a reward of one's own each: the judge must know who is who
    k, b = every_step(path)
    credited = credit(path, factors * path.final[:, 0], lambda x, who: factors[who] * x[:, 0], k, b)
    t = path.times[1:]
    alpha, sigma = VP().alpha(t), VP().sigma(t)
    exact = torch.cos(t * torch.pi / 2) * alpha / (alpha**2 + sigma**2)
    exact[-1] = 1.0  # the finished sample's slope is the reward's own
    expected = exact[k] * factors[b]
    torch.testing.assert_close(credited.slope[:, 0], expected, rtol=1e-3, atol=1e-6)
    assert not credited.slope.requires_grad
    assert credit.policy.calls == STEPS * 40


def test_slopes_need_a_reward_with_a_gradient():
    path = path_of()
    with pytest.raises(UserError, match=r"objective\.slope_weight=0"):
        critic_credit(slopes=True)(
            path, square(path.final), lambda x, who: torch.zeros(len(x)), *every_step(path)
        )


# ---------------------------------------------------------------------------- to minibatches


def learned(path: Trajectory, share: float, seed: int = 0):
    """What a source makes of a path: (k, b, Steps)."""
    rewards, group = square(path.final), path.log_probs.shape[1]
    k, b = chosen_steps(path, share, torch.Generator().manual_seed(seed))
    credited = TerminalCredit(group)(path, rewards, square, k, b)
    return k, b, transitions(path, credited, k, b)


def test_every_transition_is_learned_once():
    path = path_of(5)
    k, b, steps = learned(path, 1.0)
    batches = shuffled(steps, 7, torch.Generator().manual_seed(0))
    assert [len(batch) for batch in batches] == [7, 7, 7, 7, 2]
    assert all(batch.path_steps == STEPS for batch in batches)
    found = torch.cat([batch.x for batch in batches]).flatten()
    assert not torch.equal(found, steps.x.flatten())
    torch.testing.assert_close(found.sort().values, path.states[:-1].flatten().sort().values)
    advantage = TerminalCredit(5)(path, square(path.final), square, k, b).advantage
    for row in range(len(steps)):  # what belongs together stays together
        assert torch.equal(steps.x[row], path.states[k[row], b[row]])
        assert torch.equal(steps.x_next[row], path.states[k[row] + 1, b[row]])
        assert steps.t[row] == path.times[k[row]]
        assert steps.t_next[row] == path.times[k[row] + 1]
        assert steps.log_prob[row] == path.log_probs[k[row], b[row]]
        assert steps.advantage[row] == advantage[row]


def test_a_share_of_the_steps():
    k, b, steps = learned(path_of(10), 0.5)
    assert len(steps) == 30
    assert steps.path_steps == STEPS  # a mean times this still estimates the sum over the path
    assert len({(int(i), int(j)) for i, j in zip(k, b, strict=True)}) == 30  # none twice
    assert b.bincount().tolist() == [3] * 10  # as many of each path
    assert len(k.unique()) > 3


def test_reward_metrics_golden():
    found = reward_metrics(torch.tensor([1.0, 2.0, 3.0]))
    half = 1.96 * 1.0 / 3**0.5
    assert found == pytest.approx({"reward": 2, "reward_low": 2 - half, "reward_high": 2 + half})
    assert reward_metrics(torch.tensor([2.0])) == {
        "reward": 2.0,
        "reward_low": 2.0,
        "reward_high": 2.0,
    }
