"""Policies of bounded actions, what they draw, and that they learn to trade."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from scoretune.commands.control.training import training
from scoretune.control import (
    BangBang,
    BetaLinear,
    Clip,
    GaussianLinear,
    SquashedGaussian,
    cpg,
    cppo,
)
from scoretune.control.bounded import saturation
from scoretune.control.laws import Beta, Gaussian, Squashed, TwoPoint, kl, part
from scoretune.control.problems import StakeTrading
from scoretune.control.problems.staking import (
    Leg,
    Price,
    RiskControl,
    StakeParity,
    Staking,
    Valuation,
    played,
)
from scoretune.core.errors import UserError

FAIR = StakeTrading(trading=Staking(price=Valuation(level=200)))
BEST, HOLD = FAIR.optimum().value, FAIR.trading.value([Leg(0.0, 0.0)])
MANY = 20_000


def like(number):
    return torch.full((MANY, 1), number)


@pytest.mark.parametrize(
    ("law", "other"),
    [
        (Gaussian(like(0.3), like(0.5)), Gaussian(like(0.5), like(0.4))),
        (Squashed(like(0.3), like(0.5), like(2.0)), Squashed(like(0.5), like(0.4), like(2.0))),
        (Beta(like(2.0), like(3.5), like(2.0)), Beta(like(3.0), like(3.0), like(2.0))),
        (TwoPoint(like(0.7), like(2.0)), TwoPoint(like(-0.4), like(2.0))),
    ],
    ids=lambda law: type(law).__name__,
)
def test_draws_follow_the_law(law, other):
    """−ln of their density is the entropy on average, less that of another law the divergence."""
    drawn = law.draw(torch.Generator().manual_seed(0))
    surprise = -law.log_prob(drawn)
    error = float(surprise.std()) / math.sqrt(MANY)
    assert float(surprise.mean()) == pytest.approx(float(law.entropy()[0]), abs=4 * error + 1e-4)
    ratio = -surprise - other.log_prob(drawn)
    error = float(ratio.std()) / math.sqrt(MANY)
    assert float(ratio.mean()) == pytest.approx(float(kl(law, other)[0]), abs=4 * error)
    assert float(kl(law, other)[0]) > 10 * error  # 0 would not do
    if not isinstance(law, Gaussian):
        assert float(drawn.abs().max()) <= 2
    index = torch.tensor([0, 5])
    assert float(kl(part(law, index), part(law, index)).abs().max()) < 1e-6
    with pytest.raises(ValueError, match="no divergence between"):
        kl(law, Gaussian(law[0], law[0]) if not isinstance(law, Gaussian) else TwoPoint(*law))


@pytest.mark.parametrize("kind", [SquashedGaussian, BetaLinear, BangBang])
def test_following_the_observations_changes_no_action(kind):
    torch.manual_seed(0)
    policy, seen = kind(2, cap=3.0), torch.randn(50, 2) * torch.tensor([5.0, 0.1]) + 2
    nn.init.normal_(policy.surface.weight)
    before = policy(seen)
    policy.surface.standardize(seen, torch.rand(50))
    for old, new in zip(before, policy(seen), strict=True):
        torch.testing.assert_close(old, new, atol=1e-4, rtol=1e-4)
    assert float(policy(seen).mode.detach().abs().max()) <= 3


def test_saturation_is_a_share_of_the_points():
    weight = torch.tensor([1.0, 1.0, 2.0])
    stuck = TwoPoint(torch.tensor([[11.0], [-11.0], [0.0]]), torch.ones(3, 1))
    assert saturation(stuck, weight) == (0.25, 0.25)
    sure = Squashed(torch.full((3, 1), 3.9), torch.full((3, 1), 0.1), torch.ones(3, 1))
    assert saturation(sure, weight) == (0.0, 1.0)
    open_minded = Beta(torch.full((3, 1), 1.5), torch.full((3, 1), 1.5), torch.ones(3, 1))
    assert saturation(open_minded, weight) == (0.0, 0.0)


class Rule(nn.Module):
    """Buy until a time, then sell."""

    def __init__(self, until):
        super().__init__()
        self.until = until

    def forward(self, seen):
        mean = torch.where(seen[..., -1:] < self.until, 2.0, -2.0)
        return mean, torch.ones_like(mean)


def test_the_environment_has_the_values_of_the_problem():
    """The discretised optimum, buying, selling: shares exact, rewards of second order."""
    for until, value in ((2.55, 53.44593), (9, 51.92379), (-1, 50.87619)):
        assert played(FAIR, Rule(until))[0] == pytest.approx(value, abs=3e-4)
    tight = StakeTrading(trading=Staking(stake=2, price=Price(start=3)))
    sold = played(tight, Rule(-1))[0]
    assert sold < tight.optimum().value  # 14.891 would be infeasible: it can't be earned
    volatile = StakeTrading(trading=Staking(price=Price(start=1.6, volatility=0.4)), step=0.25)
    values = played(volatile, Rule(9), paths=4000)
    exact = volatile.trading.value([Leg(0.0, 1.0)])
    assert values.mean() == pytest.approx(exact, abs=4 * values.std() / math.sqrt(4000) + 0.02)


@pytest.mark.parametrize(
    ("learn", "kind", "options", "score"),
    [
        (cpg, BangBang, {"step": 0.2, "iterations": 10}, 0.9),
        (cppo, SquashedGaussian, {"learning_rate": 0.04, "iterations": 8}, 0.8),
        (cppo, BetaLinear, {"learning_rate": 0.1, "iterations": 8}, 0.8),
    ],
)
def test_bounded_policies_learn_to_trade(learn, kind, options, score):
    policy = kind(2, cap=2.0)
    if learn is cppo:
        options = options | {"trust": Clip(), "inner_steps": 10, "clocks": None}
    learned = learn(FAIR, dt=0.1, policy=policy, trajectories=40, seed=11, **options)
    assert (played(FAIR, policy)[0] - HOLD) / (BEST - HOLD) > score
    assert learned.saturated is None
    assert {"stuck_low", "stuck_high"} <= learned.history[-1].keys()


def test_a_stuck_policy_is_said_to_be():
    policy = BangBang(2, cap=2.0)
    with torch.no_grad():
        policy.surface.bias.fill_(60.0)
    learned = cpg(FAIR, dt=0.1, policy=policy, trajectories=4, iterations=1, step=1e-3)
    assert learned.saturated == "high"


def test_exact_values_of_parity_and_risk_control():
    parity, risk = StakeParity(temperature=0), RiskControl()
    assert parity.best == pytest.approx(-0.989695, abs=1e-6)
    assert parity.objective([-0.2], 0.0, 0.5) == pytest.approx(-3.583, abs=1e-3)
    assert parity.objective([-parity.gain], 0.0, 0.5) == pytest.approx(-1.6147, abs=1e-4)
    assert parity.objective([0.5], 0.0) == -math.inf
    random = np.random.default_rng(0)
    states = zip(random.normal(5, 2, 4000), random.normal(0.9, 0.1414, 4000), strict=True)
    drawn = [risk.value(x, p) for x, p in states]
    error = np.std(drawn) / math.sqrt(4000)
    assert risk.best == pytest.approx(float(np.mean(drawn)), abs=4 * error)
    fixed = RiskControl(start_spread=0)
    around = fixed.solution().c * 0.02 / 2  # of the stationary price
    assert fixed.best - around == pytest.approx(fixed.value(5, 0.9), abs=1e-9)
    policy = GaussianLinear(2, variance=0.25)
    assert risk.exact_value(policy) == pytest.approx(risk.objective([0, 0], 0.0, 0.5))


@pytest.mark.parametrize(
    ("name", "nothing"), [("parity", ([-0.2], 0.0)), ("risk_control", ([0.0, 0.0], 0.0))]
)
def test_parity_and_risk_control_are_learned(name, nothing):
    """In a few iterations, half of the way from doing about nothing to the optimum."""
    job = training(name, ["iterations=4", "trajectories=60", "seed=11", "dt=0.1"])
    learned = job.run()
    value, error = job.deployed(learned)
    first = job.problem.objective(*nothing)
    assert error == 0 and job.best - value < 0.5 * (job.best - first)
    assert value < job.best


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: StakeTrading(step=0), "step must be > 0"),
        (lambda: StakeTrading(temperature=-1), "temperature must be >= 0"),
        (lambda: StakeParity(temperature=-1), "temperature must be >= 0"),
        (lambda: RiskControl(start_spread=-1), "start_spread must be >= 0"),
        (lambda: BangBang(2, cap=0), "cap of a policy must be finite and > 0"),
        (lambda: SquashedGaussian(2, std=0), "std of a policy must be finite and > 0"),
        (lambda: played(FAIR, BangBang(3, cap=2.0)), "looks at 3 numbers, the problem shows 2"),
        (lambda: played(FAIR, BangBang(2), paths=0), "paths must be at least 1"),
        (lambda: played(StakeTrading(step=0.3), BangBang(2)), "must be a multiple of the step"),
        (lambda: training("stakes", []), "unknown problem 'stakes'"),
        (lambda: training("staking", ["policy=bangbang"]), "bangbang"),
        (lambda: training("parity", ["valuation=3"]), "unknown setting of parity 'valuation'"),
    ],
)
def test_what_is_wrong_is_one_line(wrong, says):
    with pytest.raises(UserError, match=says) as caught:
        wrong()
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 300
