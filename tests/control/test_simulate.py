"""Paths: their law, their shapes, their seed; policies and critics as pieces."""

from __future__ import annotations

import math

import pytest
import torch

from scoretune.control import CLSTD, ControlledSDE, GaussianLinear, quadratic, simulate
from scoretune.control.experience import Explorer
from scoretune.control.policies import act
from scoretune.control.problems import LQ, PairTrading
from scoretune.rl import gaussian_kl, occupation_weights


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_paths_have_the_moments_of_the_closed_form():
    problem = LQ(start_mean=0.5)
    policy = GaussianLinear(slope=0.3, intercept=-0.2, variance=0.5)
    paths = simulate(problem, policy, dt=0.02, count=4000, generator=seeded(), until=7.0)
    assert paths.states.shape == (4000, 351, 1) and paths.actions.shape == (4000, 350, 1)
    assert paths.rewards.shape == (4000, 350) and paths.times.shape == (351,)
    weights = occupation_weights(350, 0.02, 1.0)
    x = paths.states[:, :-1, 0]
    for power, exact in zip((1, 2), problem.evaluate(0.3, -0.2, 0.5).moments(), strict=True):
        sums = x**power @ weights
        error = float(sums.std()) / 4000**0.5
        assert abs(float(sums.mean()) - exact) < 3 * error + 0.015  # δt/2 of the Riemann sum


def test_the_return_of_pair_trading_is_its_value():
    problem = PairTrading()
    best = problem.optimum()
    policy = GaussianLinear(
        slope=best.slope, intercept=best.intercept, variance=best.variance
    ).requires_grad_(False)
    paths = simulate(problem, policy, dt=0.05, count=2000, generator=seeded(), until=20.0)
    entropy = math.log(2 * math.pi * math.e * best.variance) / 2
    rates = paths.rewards + problem.temperature * entropy
    returns = rates @ occupation_weights(400, 0.05, problem.discount)
    error = float(returns.std()) / 2000**0.5
    assert abs(float(returns.mean()) - best.objective) < 3 * error + 0.03


class Rotating(ControlledSDE):
    """Two coordinates and one noise, through a matrix; a horizon that is no multiple of dt."""

    discount, horizon, state_dim = 0.0, 1.0, 2

    def start(self, count, generator):
        return torch.zeros(count, 2)

    def drift(self, x, a):
        return torch.zeros_like(x)

    def diffusion(self, x, a):
        return torch.tensor([[0.6], [0.8]]).expand(x.shape[0], 2, 1)

    def reward(self, x, a):
        return x[:, 0]


def test_a_matrix_of_noise_and_a_horizon():
    paths = simulate(Rotating(), GaussianLinear(3), dt=0.3, count=5000, generator=seeded())
    assert paths.times.tolist() == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert paths.dt.tolist() == pytest.approx([0.25] * 4)
    x, y = paths.states[:, -1].T
    torch.testing.assert_close(y, x * 0.8 / 0.6)
    assert float(x.var()) == pytest.approx(0.36, rel=0.06)


def test_paths_follow_from_the_generator_alone():
    first, second, other = (
        simulate(LQ(), GaussianLinear(), dt=0.1, count=3, generator=seeded(s), until=1.0)
        for s in (1, 1, 2)
    )
    assert torch.equal(first.states, second.states)
    assert not torch.equal(first.states, other.states)


def test_whitening_changes_no_action_and_makes_the_fisher_information_the_identity():
    policy = GaussianLinear(2, slope=0.7, intercept=-2.0, variance=0.3)
    seen = torch.randn(2000, 2, generator=seeded()) @ torch.tensor([[3.0, 1.0], [0.0, 0.02]]) + 5
    weight = torch.rand(2000, generator=seeded(1))
    before = act(policy, seen)
    policy.whiten(seen, weight)
    after = act(policy, seen)
    torch.testing.assert_close(after.mean, before.mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(after.std, before.std)
    parameters = tuple(policy.parameters())
    share = weight / weight.sum()

    def kl(*moved):
        named = dict(zip(("weight", "bias", "log_scale"), moved, strict=True))
        law = torch.func.functional_call(policy, named, seen)
        return (share * gaussian_kl(after.mean.detach(), after.std.detach(), *law)).sum()

    hessian = torch.autograd.functional.hessian(kl, parameters)
    fisher = torch.cat(
        [
            torch.cat([b.reshape(p.numel(), -1) for b in row], 1)
            for p, row in zip(parameters, hessian, strict=True)
        ]
    )
    torch.testing.assert_close(fisher, torch.eye(4), atol=2e-3, rtol=0)


def test_whitening_leaves_what_never_varies_alone():
    policy = GaussianLinear(2, slope=0.5, intercept=1.0)
    seen = torch.randn(100, 2, generator=seeded()) * torch.tensor([1.0, 0.0]) + 3
    before = act(policy, seen).mean
    policy.whiten(seen, torch.ones(100))
    torch.testing.assert_close(act(policy, seen).mean, before)
    assert all(bool(torch.isfinite(p).all()) for p in policy.parameters())


def test_numbers_of_policies():
    policy = GaussianLinear(slope=-0.5, intercept=2.0, variance=0.25)
    assert (policy.slope, policy.intercept, policy.variance) == (-0.5, 2.0, 0.25)
    wide = GaussianLinear(3, 2, slope=1.0)
    assert wide.slope.shape == (2, 3) and wide.intercept.shape == (2,)
    mean, std = act(wide, torch.ones(5, 4, 3))
    assert mean.shape == std.shape == (5, 4, 2)


def test_quadratic_features():
    assert quadratic(torch.tensor([[2.0, 3.0]])).tolist() == [[1, 2, 3, 4, 6, 9]]


def test_clstd_finds_the_value_of_a_policy():
    problem, policy = LQ(), GaussianLinear(slope=-0.2, intercept=-0.5, variance=0.3)
    exact = problem.evaluate(-0.2, -0.5, 0.3)
    critic = CLSTD()
    Explorer(
        problem=problem,
        policy=policy,
        critic=critic,
        dt=0.02,
        trajectories=2000,
        truncation=None,
        clocks=None,
        generator=seeded(),
    ).explore()
    with torch.no_grad():
        computed = critic(torch.tensor([[-1.0], [0.0], [1.0]]))
    values = [exact.value(x) for x in (-1.0, 0.0, 1.0)]
    assert computed.tolist() == pytest.approx(values, abs=0.06)


def test_an_unfitted_critic_says_so():
    with pytest.raises(ValueError, match="has not been fitted"):
        CLSTD()(torch.zeros(1, 1))
