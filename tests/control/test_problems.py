"""Closed forms: Riccati, policy evaluation, performance difference, gradients, pair trading."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from scoretune.commands.doctor.laws.learning import LAWS
from scoretune.control.critics import Outcomes
from scoretune.control.experience import Explorer
from scoretune.control.learning import _first_order
from scoretune.control.policies import GaussianLinear
from scoretune.control.problems import LQ, PairTrading
from scoretune.core.errors import UserError

EXPECTED = {law.name: law.expected for law in LAWS}  # the golden numbers of the doctor

SHIFTED = LQ(start_mean=0.5)  # X_0 ~ N(½, 1)
HERE, THERE = (0.3, -0.2, 0.5), (-0.4, -0.6, 0.1)
GRADIENT = (-1.49326886, -1.88058419, -0.68883162)  # in slope, intercept, log variance


def entropy(variance):
    return math.log(2 * math.pi * math.e * variance) / 2


def expected(function, moments, policy):
    """E function(x, a) for a quadratic function: two nodes each match mean and variance."""
    (first, second), (slope, intercept, variance) = moments, policy
    deviation, std = math.sqrt(second - first**2), math.sqrt(variance)
    nodes = [(first + i * deviation, j * std) for i in (-1, 1) for j in (-1, 1)]
    return sum(function(x, slope * x + intercept + noise) for x, noise in nodes) / 4


def local_objective(problem, policy, other):
    """L^π(π̂) = η(π) + (1/ρ) E_{x ~ ρd^π, a ~ π̂}[q(x, a; π) + γp(x, a, π̂)]."""
    mine = problem.evaluate(*policy)
    gain = expected(mine.rate, mine.moments(), other) + problem.temperature * entropy(other[2])
    return mine.objective + gain / problem.discount


def slope_of(function, policy, size=1e-5):
    """Central differences in (slope, intercept, log variance)."""
    computed = []
    for i in range(3):
        ends = []
        for sign in (1, -1):
            moved = [*policy[:2], math.log(policy[2])]
            moved[i] += sign * size
            ends.append(function((*moved[:2], math.exp(moved[2]))))
        computed.append((ends[0] - ends[1]) / (2 * size))
    return computed


# ---------------------------------------------------------------------------- LQ


def test_riccati():
    best = LQ().optimum()
    assert (best.k2, best.k1, best.k0) == pytest.approx(
        (EXPECTED["LQ optimum: k₂"], -0.1055512755, 0.7191487416), abs=1e-10
    )
    assert (best.slope, best.intercept, best.variance) == pytest.approx(
        (EXPECTED["LQ optimum: slope"], -0.7888974491, 0.0394448724), abs=1e-10
    )
    assert best.objective == pytest.approx(EXPECTED["LQ optimum: objective"], abs=1e-10)
    assert best.value(0.0) == best.k0
    assert best.value(torch.tensor([0.0, 1.0])).tolist() == pytest.approx(
        [best.k0, best.k0 + best.k1 + best.k2 / 2]
    )


def test_policy_iteration_converges_at_once():
    problem, policy = LQ(), (0.0, 0.0, 1.0)
    for value in (-1.191439, 0.717067, 0.719149):
        computed = problem.evaluate(*policy)
        assert computed.value(0.0) == pytest.approx(value, abs=1e-6)
        # π' ∝ e^{q/γ}: q = −½n(a − mean)² + what doesn't depend on a.
        n = problem.N - computed.k2 * problem.D**2
        slope = (computed.k2 * (problem.B + problem.C * problem.D) - problem.R) / n
        policy = (slope, (problem.B * computed.k1 - problem.Q) / n, problem.temperature / n)
    assert problem.evaluate(*policy).value(0.0) == pytest.approx(problem.optimum().k0, abs=1e-8)


@pytest.mark.parametrize("policy", [HERE, THERE, (0.0, 0.0, 1.0), (-0.5, 0.3, 0.02)])
@pytest.mark.parametrize("problem", [LQ(), LQ(A=-2.0, B=0.7, C=0.3, D=0.4, P=-1.0)])
def test_the_rate_is_centred(problem, policy):
    """E_{a ~ π(·|x)}[q + γp] = 0 at every x."""
    mine = problem.evaluate(*policy)
    for x in (-3.0, 0.0, 0.7, 10.0):
        rate = expected(mine.rate, (x, x**2), policy)
        scale = 1 + abs(mine.rate(x, 0.0))
        assert abs(rate + problem.temperature * entropy(policy[2])) < 1e-12 * scale


@pytest.mark.parametrize("problem", [LQ(), LQ(A=-2.0, B=0.7, C=0.3, D=0.4), LQ(D=0.0, B=1.0)])
def test_at_the_optimum_the_rate_is_the_log_policy(problem):
    best = problem.optimum()
    for x, a in ((0.0, 0.0), (1.0, -2.0), (-0.5, 0.4)):
        mean = best.slope * x + best.intercept
        log_prob = -((a - mean) ** 2) / (2 * best.variance) - entropy(best.variance) + 0.5
        rate = problem.temperature * log_prob
        assert best.rate(x, a) == pytest.approx(rate, abs=1e-10, rel=1e-10)
    nearby = (best.slope + 0.01, best.intercept - 0.01, best.variance * 1.1)
    assert problem.evaluate(*nearby).objective < best.objective


def test_performance_difference():
    """η(π̂) − η(π) = (1/ρ) E under π̂ of q of π."""
    mine, other = SHIFTED.evaluate(*HERE), SHIFTED.evaluate(*THERE)
    gain = expected(mine.rate, other.moments(), THERE) + 0.1 * entropy(THERE[2])
    assert gain == pytest.approx(other.objective - mine.objective, abs=1e-12)
    assert gain == pytest.approx(1.4504970797, abs=1e-10)


def test_the_local_objective_has_the_value_and_the_gradient_of_the_true_one():
    assert local_objective(SHIFTED, HERE, HERE) == pytest.approx(
        SHIFTED.evaluate(*HERE).objective, abs=1e-12
    )
    true = slope_of(lambda policy: SHIFTED.evaluate(*policy).objective, HERE)
    local = slope_of(lambda policy: local_objective(SHIFTED, HERE, policy), HERE)
    assert true == pytest.approx(GRADIENT, abs=1e-7)
    assert local == pytest.approx(GRADIENT, abs=1e-7)


def test_the_gap_of_the_local_objective_is_of_second_order():
    for size, ratio in (
        (0.125, -0.0820),
        (0.0625, -0.0944),
        (0.02, -0.1032),
        (0.005, -0.1064),
        (0.002, -0.1070),
    ):
        moved = (HERE[0] - 0.5 * size, HERE[1] - 0.4 * size, HERE[2] * math.exp(-0.6 * size))
        gap = SHIFTED.evaluate(*moved).objective - local_objective(SHIFTED, HERE, moved)
        assert gap / size**2 == pytest.approx(ratio, abs=1e-4)


class Exact:
    """A critic that knows the value."""

    def __init__(self, evaluation):
        self.evaluation = evaluation

    def fit(self, outcomes: Outcomes) -> None:
        pass

    def __call__(self, inputs):
        return self.evaluation.value(inputs[..., 0])


@pytest.mark.parametrize("clocks", [None, 40_000])
def test_the_policy_gradient_from_paths(clocks):
    """Within 3 standard errors of ∇η, and of the O(δt) bias; clocks or weights alike."""
    computed = []
    for seed in range(8):
        policy = GaussianLinear(slope=HERE[0], intercept=HERE[1], variance=HERE[2])
        explorer = Explorer(
            problem=SHIFTED,
            policy=policy,
            critic=Exact(SHIFTED.evaluate(*HERE)),
            dt=0.02,
            trajectories=400,
            truncation=7.0,
            clocks=clocks,
            generator=torch.Generator().manual_seed(seed),
        )
        _first_order(explorer, explorer.explore()).backward()
        # The parameters are mean/s and √2·(log variance)/2.
        scale = math.sqrt(HERE[2])
        gradients = policy.weight.grad / scale, policy.bias.grad / scale, policy.log_scale.grad
        computed.append([float(gradients[0]), float(gradients[1]), float(gradients[2]) / 2**0.5])
    sample = torch.tensor(computed)
    error = sample.std(0) / len(computed) ** 0.5
    off = (sample.mean(0) - torch.tensor(GRADIENT)).abs()
    assert (off < 3 * error + torch.tensor([0.012, 0.004, 0.003])).all(), (off, error)
    assert (error < 0.15).all()


def test_without_temperature_the_optimum_is_deterministic():
    best = LQ(temperature=0.0).optimum()
    assert best.variance == 0
    assert best.slope == LQ().optimum().slope
    assert math.isfinite(best.objective)


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (lambda: LQ(N=-1.0, M=-1.0).optimum(), "has no optimum"),
        (lambda: LQ(A=0.7, B=0.0, D=0.0).optimum(), "has no optimum"),  # nothing steers, too fast
        (lambda: LQ(M=-4.0, B=1.0, D=0.2, A=0.0).optimum(), "has no optimum"),  # complex roots
        (lambda: LQ(N=0.0, B=0.0, D=0.0).optimum(), "has no optimum"),
        (lambda: LQ().evaluate(5.0, 0.0, 1.0), "slope 5 has no finite value"),
        (lambda: LQ().evaluate(0.0, 0.0, 0.0), "variance of a policy must be > 0, got 0"),
        (lambda: LQ(discount=0.0), "discount must be > 0"),
        (lambda: LQ(temperature=-1.0), "temperature"),
        (lambda: LQ(A=math.nan), "A must be finite"),
        (lambda: PairTrading(volatility=0.0), "volatility and discount must be > 0"),
        (lambda: PairTrading(mean_reversion=-1.0), "mean_reversion"),
        (lambda: PairTrading(drift=math.inf), "drift must be finite, got inf"),
        (lambda: PairTrading().evaluate(0.0, 0.0, -1.0), "variance of a policy must be > 0"),
    ],
)
def test_problems_without_an_answer_say_so(problem, message):
    with pytest.raises(UserError, match=message) as raised:
        problem()
    assert "\n" not in str(raised.value)


def test_a_policy_without_a_value_counts_as_minus_infinity():
    assert LQ().exact_value(GaussianLinear(slope=5.0)) == -math.inf
    assert LQ().exact_value(torch.nn.Linear(1, 1)) is None
    assert PairTrading().exact_value(torch.nn.Linear(1, 1)) is None


def test_no_other_policy_beats_the_optimum():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        a, b, c, d, r = (torch.rand(5, generator=generator) - 0.5).tolist()
        problem = LQ(A=a - 1, B=b, C=c, D=d, R=r)
        best = problem.optimum()
        moved = replace(best, slope=best.slope + 0.1, intercept=best.intercept + 0.1)
        other = problem.evaluate(moved.slope, moved.intercept, best.variance * 1.3)
        assert other.objective < best.objective


# ---------------------------------------------------------------------------- pair trading


def test_pair_trading_in_closed_form():
    best = PairTrading().optimum()
    assert (best.f2, best.f1, best.f0) == pytest.approx((8.8889, -1.62963, 1.0068871), abs=2e-5)
    assert best.f0 == pytest.approx(1.0068871, abs=5e-8)
    assert best.value(0.4, 1.0) == pytest.approx(1.0661464, abs=5e-8)
    assert (best.slope, best.intercept, best.variance) == pytest.approx((-100 / 9, 5 / 3, 1 / 9))
    assert best.value(0.4, math.e) == pytest.approx(best.value(0.4) + 1 / 0.5)
    grid = best.value(torch.tensor([0.4, 0.4]), torch.tensor([1.0, math.e]))
    assert grid.tolist() == pytest.approx([best.value(0.4), best.value(0.4) + 2], rel=1e-6)


def test_the_best_pair_trader_has_the_log_policy_as_rate():
    problem = PairTrading()
    best = problem.optimum()
    for x, a in ((0.0, 0.0), (0.4, -3.0), (-0.5, 7.0), (0.1, 0.2)):
        mean = best.slope * x + best.intercept
        log_prob = -((a - mean) ** 2) / (2 * best.variance) - entropy(best.variance) + 0.5
        assert best.rate(x, a) == pytest.approx(problem.temperature * log_prob, abs=1e-10)


@pytest.mark.parametrize("policy", [(0.0, 0.0, 1.0), (-3.0, 1.0, 0.4)])
def test_pair_trading_rates_are_centred_and_moves_are_worse(policy):
    problem = PairTrading()
    mine = problem.evaluate(*policy)
    for x in (-1.0, 0.1, 0.8):
        rate = expected(mine.rate, (x, x**2), policy)
        assert abs(rate + problem.temperature * entropy(policy[2])) < 1e-12
    assert mine.objective < problem.optimum().objective
