"""Objectives against gradients known in closed form.

Data N(1, ¼), policies s_pre + θh, which are exact scores of N(1 + θ, ¼), reward w·x, KL weight κ:
η(θ) = w(1 + θ) − κθ²/(2S₀) and ∇η = w − κθ/S₀ in continuous time (arXiv 2409.08400). Every step is
affine, so a sampler's own η_N is known without Monte Carlo, and so is its gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from scoretune.backbones import toy
from scoretune.batches import Condition, Examples, Steps
from scoretune.credit import TerminalCredit
from scoretune.data import Prompts
from scoretune.diffusion import grids
from scoretune.diffusion.kernels import GDDIM, EulerMaruyama, Kernel, Memoryless, Transition
from scoretune.diffusion.processes import VP
from scoretune.errors import UserError
from scoretune.objectives.base import path_kl
from scoretune.objectives.matching import Matching
from scoretune.objectives.policy_gradient import PolicyGradient
from scoretune.objectives.score_action import ScoreAction
from scoretune.policy import Policy
from scoretune.rl import td_advantage
from scoretune.rollout import pairs, prior, rollout
from scoretune.sources import OnPolicy, Sizes
from scoretune.train import train

PROCESS, MEAN, S0 = VP(), 1.0, 0.25
SLOPE, KAPPA = 1.2, 0.5  # the reward is SLOPE · x
KERNELS = [GDDIM(1.0), EulerMaruyama(Memoryless())]
every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=["gddim", "euler-maruyama"])


def policy_at(theta: float, kernel: Kernel, dimension: int = 1) -> Policy:
    backbone = toy.Gaussian(PROCESS, MEAN, S0, dimension)
    with torch.no_grad():
        backbone.network.shift.fill_(theta)
    return Policy(backbone, kernel)


def act(policy: Policy, times: Tensor, batch: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return rollout(policy, Condition.none(batch), times, generator, prior(policy, batch, generator))


def flat(path, advantage: Tensor, reference: Policy | None = None, slopes: Tensor | None = None):
    """All transitions [N·B] of a path as Steps, in order."""
    steps, batch = path.log_probs.shape
    index = torch.arange(steps).repeat_interleave(batch)
    x, condition = path.states[:-1].flatten(0, 1), Condition.none(steps * batch)
    t, t_next = path.times[index], path.times[index + 1]
    means = None
    if reference is not None:
        with torch.no_grad():
            means = reference.transition(x, t, t_next, condition).mean
    return Steps(
        x=x,
        x_next=path.states[1:].flatten(0, 1),
        t=t,
        t_next=t_next,
        condition=condition,
        log_prob=path.log_probs.flatten(),
        advantage=advantage.flatten(),
        value_slope=None if slopes is None else slopes.flatten(0, 1),
        reference_mean=means,
        path_steps=steps,
    )


def gradient(policy: Policy, loss: Tensor) -> float:
    """d loss / d shift."""
    shift = policy.backbone.network.shift
    return float(torch.autograd.grad(loss, shift)[0])


def laws(policy: Policy, times: Tensor):
    """Every step as x' = a x + b + c ξ: (a, b, its Transition at x = 0, 1) in float64."""
    x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    for t, t_next in pairs(times.double(), x):
        step = policy.transition(x, t, t_next, Condition.none(2))
        b, top = step.mean[:, 0]
        yield top - b, b, step


def objective_of(policy: Policy, reference: Policy, times: Tensor) -> Tensor:
    """η_N(θ) = w E[x_N] − κ Σ KL of the discrete sampler, exactly, differentiable in θ."""
    mean, kl = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for (a, b, step), (_, _, pretrained) in zip(
        laws(policy, times), laws(reference, times), strict=True
    ):
        mean = a * mean + b
        kl = kl + step.kl(pretrained)[0]
    return SLOPE * mean - KAPPA * kl


def value_slopes(policy: Policy, times: Tensor) -> list[float]:
    """∂V_k/∂x for k = 0..N: w times the product of the a's still to come."""
    with torch.no_grad():
        rates = [float(a) for a, _, _ in laws(policy, times)]
    slopes = [SLOPE]
    for a in reversed(rates):
        slopes.append(slopes[-1] * a)
    return slopes[::-1]


def estimate(make: Callable[[int], tuple[Policy, Tensor]], batches: int) -> tuple[float, float]:
    """Mean of −∂loss/∂θ over seeds, and its standard error."""
    found = torch.tensor([-gradient(*make(seed)) for seed in range(batches)])
    return float(found.mean()), float(found.std()) / batches**0.5


# ---------------------------------------------------------------------------- ratio one


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_ppo_at_ratio_one_is_reinforce(temperature):
    policy = policy_at(0.2, GDDIM(1.0), dimension=4)
    path = act(policy, grids.uniform(PROCESS, 5), 64)
    steps = flat(path, torch.randn(5, 64))
    ppo = gradient(policy, PolicyGradient(policy, temperature=temperature)(steps).value)
    transition = policy.transition(steps.x, steps.t, steps.t_next, steps.condition)
    reinforce = -5 * (steps.advantage * transition.log_prob(steps.x_next)).mean() / temperature
    assert ppo == pytest.approx(gradient(policy, reinforce), rel=1e-5)
    assert abs(ppo) > 1e-3


def test_score_action_at_ratio_one_is_reinforce_too():
    policy = policy_at(0.2, GDDIM(1.0), dimension=4)
    steps = flat(act(policy, grids.uniform(PROCESS, 5), 64), torch.randn(5, 64))
    one = gradient(policy, ScoreAction(policy, kl_weight=0.0)(steps).value)
    other = gradient(policy, PolicyGradient(policy)(steps).value)
    assert one == pytest.approx(other, rel=1e-6)


def test_a_moved_policy_is_clipped():
    acting, moved = policy_at(0.0, GDDIM(1.0), 4), policy_at(3.0, GDDIM(1.0), 4)
    steps = flat(act(acting, grids.karras(PROCESS, 8), 64), torch.ones(8, 64))
    loss = PolicyGradient(moved, clip=0.05)(steps)
    assert loss.metrics["clipped_share"] > 0.3
    assert loss.metrics["update_kl"] > 0.01
    assert float(loss.value.detach()) >= -8 * 1.05  # ratios above 1.05 gain nothing


# ---------------------------------------------------------------------------- exact gradients


@pytest.mark.parametrize("theta", [0.1, 0.9])
def test_the_sampler_tends_to_the_closed_form(theta):
    times = grids.uniform(PROCESS, 1000, t_end=1e-5)
    policy, reference = policy_at(theta, KERNELS[1]), policy_at(0.0, KERNELS[1])
    exact = objective_of(policy, reference, times)
    assert float(exact.detach()) == pytest.approx(
        SLOPE * (MEAN + theta) - KAPPA * theta**2 / (2 * S0), abs=0.02
    )
    assert gradient(policy, exact) == pytest.approx(SLOPE - KAPPA * theta / S0, abs=0.02)


@every_kernel
@pytest.mark.parametrize("theta", [0.1, 0.9])
def test_policy_gradient_of_terminal_rewards(kernel, theta):
    times = grids.karras(PROCESS, 20)
    policy, reference = policy_at(theta, kernel), policy_at(0.0, kernel)
    exact = gradient(policy, objective_of(policy, reference, times))
    objective = PolicyGradient(policy, kl_weight=KAPPA)

    def batch(seed: int):
        path = act(policy, times, 2000, seed)
        rewards = SLOPE * path.final[:, 0]
        steps = flat(path, (rewards - rewards.mean()).expand(20, -1), reference)
        return policy, objective(steps).value

    found, error = estimate(batch, 16)
    assert error < 0.03
    assert found == pytest.approx(exact, abs=4 * error)


@every_kernel
@pytest.mark.parametrize("theta", [0.1, 0.9])
def test_score_action_with_a_critic_that_knows(kernel, theta):
    times = grids.karras(PROCESS, 20)
    policy, reference = policy_at(theta, kernel), policy_at(0.0, kernel)
    exact = gradient(policy, objective_of(policy, reference, times))
    objective = ScoreAction(policy, kl_weight=KAPPA)
    with torch.no_grad():
        kls = [
            float(s.kl(r)[0])
            for (_, _, s), (_, _, r) in zip(
                laws(policy, times), laws(reference, times), strict=True
            )
        ]
    slopes, offset, intercepts = value_slopes(policy, times), 0.0, [0.0]
    with torch.no_grad():
        shifts = [float(b) for _, b, _ in laws(policy, times)]
    for k in reversed(range(20)):  # V_k(x) = slope_k x + intercept_k
        offset += slopes[k + 1] * shifts[k] - KAPPA * kls[k]
        intercepts.append(offset)
    level = torch.tensor(intercepts[::-1])[:, None]
    costs = -KAPPA * torch.tensor(kls)

    def batch(seed: int):
        path = act(policy, times, 2000, seed)
        values = torch.tensor(slopes)[:, None] * path.states[:, :, 0] + level
        advantage = td_advantage(values.T, costs.expand(2000, -1), torch.ones(20)).T
        return policy, objective(flat(path, advantage, reference)).value

    found, error = estimate(batch, 16)
    assert error < 0.02
    assert found == pytest.approx(exact, abs=4 * error)


@every_kernel
@pytest.mark.parametrize("theta", [0.1, 0.9])
def test_score_action_by_the_slope_of_the_value(kernel, theta):
    times = grids.karras(PROCESS, 20)
    policy, reference = policy_at(theta, kernel), policy_at(0.0, kernel)
    exact = gradient(policy, objective_of(policy, reference, times))
    slopes = torch.tensor(value_slopes(policy, times)[1:])[:, None, None].expand(20, 50, 1)
    path = act(policy, times, 50)
    steps = flat(path, torch.zeros(20, 50), reference, slopes)
    objective = ScoreAction(policy, kl_weight=KAPPA, slope_weight=1.0)
    assert -gradient(policy, objective(steps).value) == pytest.approx(exact, rel=1e-4)


def test_the_critic_lowers_the_variance():
    """A critic's TD advantage has a smaller gradient error than the reward of the whole path."""
    times, policy = grids.karras(PROCESS, 20), policy_at(0.1, GDDIM(1.0))
    slopes = torch.tensor(value_slopes(policy, times))[:, None]
    objective = PolicyGradient(policy)

    def terminal(seed: int):
        path = act(policy, times, 300, seed)
        rewards = SLOPE * path.final[:, 0]
        return policy, objective(flat(path, (rewards - rewards.mean()).expand(20, -1))).value

    def critic(seed: int):
        path = act(policy, times, 300, seed)
        with torch.no_grad():
            shifts = torch.tensor([float(b) for _, b, _ in laws(policy, times)])[:, None]
        gained = (
            slopes[1:] * (path.states[1:, :, 0] - shifts) - slopes[:-1] * path.states[:-1, :, 0]
        )
        return policy, objective(flat(path, gained)).value

    assert estimate(critic, 20)[1] < 0.8 * estimate(terminal, 20)[1]


# ---------------------------------------------------------------------------- path KL


def kl_of(policy: Policy, reference: Policy, times: Tensor, batch: int = 50) -> float:
    """The path KL of a rollout's states, through the transitions of both policies."""
    steps = flat(act(policy, times, batch), torch.zeros(len(times) - 1, batch))
    place = (steps.x, steps.t, steps.t_next, steps.condition)
    with torch.no_grad():
        kls = policy.transition(*place).kl(reference.transition(*place))
    return float(kls.sum()) / batch


@every_kernel
def test_path_kl_of_rollouts(kernel):
    theta = 0.7
    times = grids.uniform(PROCESS, 4000, t_end=1e-5)
    found = kl_of(policy_at(theta, kernel), policy_at(0.0, kernel), times, 5)
    assert found == pytest.approx(theta**2 / (2 * S0), rel=0.01)


def test_path_kl_hardly_depends_on_the_grid():
    theta, kernel = 0.7, EulerMaruyama(Memoryless())
    policy, reference = policy_at(theta, kernel), policy_at(0.0, kernel)
    found = {n: kl_of(policy, reference, grids.uniform(PROCESS, n)) for n in (20, 200)}
    assert found[20] == pytest.approx(found[200], rel=0.04)
    assert found[200] == pytest.approx(theta**2 / (2 * S0), rel=0.01)


def test_path_kl_of_an_objective_is_the_kl_of_transitions():
    policy, reference = policy_at(0.7, GDDIM(1.0), 3), policy_at(0.0, GDDIM(1.0), 3)
    times = grids.karras(PROCESS, 6)
    path = act(policy, times, 5)
    steps = flat(path, torch.zeros(6, 5), reference)
    with torch.no_grad():
        transition = policy.transition(steps.x, steps.t, steps.t_next, steps.condition)
    total = float(path_kl(transition, steps).view(6, 5).sum(0).mean())
    assert total == pytest.approx(kl_of(policy, reference, times, 5), rel=1e-5)
    loss = PolicyGradient(policy, kl_weight=2.0)(steps)
    assert float(loss.value.detach()) == pytest.approx(2.0 * total, rel=1e-5)


def test_what_is_missing_is_named():
    policy = policy_at(0.1, GDDIM(1.0))
    steps = flat(act(policy, grids.uniform(PROCESS, 3), 4), torch.zeros(3, 4))
    with pytest.raises(UserError, match=r"reference"):
        PolicyGradient(policy, kl_weight=0.1)(steps)
    with pytest.raises(UserError, match="slopes of the value"):
        ScoreAction(policy, kl_weight=0.0, slope_weight=0.5)(steps)
    with pytest.raises(UserError, match=r"reference"):
        path_kl(Transition(steps.x, torch.ones(1, 1)), steps)


# ---------------------------------------------------------------------------- matching


def floor_of(t_min: float) -> float:
    """E_t Var(ε | x) = E_t α²S₀/(α²S₀ + σ²): what no network can predict."""
    t = torch.linspace(t_min, 1, 200001, dtype=torch.float64)
    signal = PROCESS.alpha(t) ** 2 * S0
    return float((signal / (signal + PROCESS.sigma(t) ** 2)).mean())


def matching_loss(theta: float, count: int = 200_000) -> tuple[float, float]:
    policy = policy_at(theta, GDDIM(1.0))
    x0 = MEAN + math.sqrt(S0) * torch.randn(count, 1)
    torch.manual_seed(1)
    loss = Matching(policy)(Examples(x0, Condition.none(count), torch.ones(count)))
    return float(loss.value.detach()), gradient(policy, loss.value)


def test_matching_of_the_exact_score_is_at_its_floor():
    value, slope = matching_loss(0.0)
    assert value == pytest.approx(floor_of(1e-3), rel=0.02)
    assert abs(slope) < 0.01
    assert matching_loss(0.5)[0] > value + 0.02
    assert matching_loss(0.5)[1] > 0.05 > -0.05 > matching_loss(-0.5)[1]


def test_matching_weighs_examples():
    policy = policy_at(0.0, GDDIM(1.0))
    x0 = torch.randn(100, 1)
    torch.manual_seed(1)
    plain = Matching(policy)(Examples(x0, Condition.none(100), torch.ones(100)))
    torch.manual_seed(1)
    double = Matching(policy)(Examples(x0, Condition.none(100), torch.full((100,), 2.0)))
    assert float(double.value.detach()) == pytest.approx(2 * float(plain.value.detach()))
    assert double.metrics == plain.metrics


# ---------------------------------------------------------------------------- the loop


class PlainAccelerator:
    """What `train` asks of accelerate, without it."""

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def clip_grad_norm_(self, parameters: list[Tensor], norm: float) -> Tensor:
        return torch.nn.utils.clip_grad_norm_(parameters, norm)


def test_the_loop_climbs_the_reward():
    policy = policy_at(0.0, GDDIM(1.0))
    source = OnPolicy(
        policy=policy,
        prompts=Prompts(("go",), ("all",)),
        reward=lambda x, prompts: -((x[:, 0] - 2) ** 2),
        reward_name="distance",
        credit=TerminalCredit(group=64),
        times=grids.karras(PROCESS, 10),
        sizes=Sizes(prompts=1, group=64, minibatch=640),
        seed=0,
    )
    seen: list[dict[str, float]] = []
    train(
        source,
        PolicyGradient(policy),
        torch.optim.Adam(policy.parameters(), lr=0.05),
        PlainAccelerator(),
        updates=range(40),
        hooks=[lambda update, metrics: seen.append({"update": update, **metrics})],
    )
    assert [line["update"] for line in seen] == list(range(1, 41))
    assert seen[-1]["reward"] > seen[0]["reward"] + 0.4
    assert 0.6 < float(policy.backbone.network.shift.detach()) < 1.6
    assert policy.calls == 40 * (640 + 640)  # acting and learning
