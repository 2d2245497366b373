"""Learning where the optimum is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from scoretune.control import (
    CTD0,
    KL,
    Clip,
    ControlledSDE,
    GaussianLinear,
    MartingaleLoss,
    Quadratic,
    Shrinking,
    SqrtKL,
    cpg,
    cppo,
)
from scoretune.control.problems import LQ, PairTrading

BEST = LQ().optimum()


def test_cpg_finds_the_optimum_of_lq():
    learned = cpg(LQ(), dt=0.1, iterations=120)
    assert abs(learned.value - BEST.objective) < 0.005
    assert learned.value_error == 0
    assert learned.policy.slope == pytest.approx(BEST.slope, abs=0.04)
    assert learned.policy.intercept == pytest.approx(BEST.intercept, abs=0.04)
    assert learned.policy.variance == pytest.approx(BEST.variance, abs=0.01)
    assert len(learned.history) == 120
    assert learned.history[-1]["value"] == learned.value
    assert learned.history[9]["value"] > 0.3


@pytest.mark.slow  # that it learns, the networks of one's own below show quickly
@pytest.mark.parametrize("trust", [SqrtKL(), KL(), Clip()], ids=lambda t: type(t).__name__)
def test_cppo_finds_the_optimum_of_lq(trust):
    learned = cppo(
        LQ(), dt=0.1, iterations=40, trajectories=200, clocks=4000, trust=trust, learning_rate=0.01
    )
    assert abs(learned.value - BEST.objective) < 0.02
    steps = [record["kl"] for record in learned.history]
    assert max(steps) < 0.2
    if not isinstance(trust, Clip):
        assert {"coefficient", "distance", "radius"} <= learned.history[0].keys()


def test_the_coefficient_follows_the_distance():
    learned = cppo(LQ(), dt=0.1, iterations=12, trajectories=200, clocks=2000)
    coefficient = 1.0
    for record in learned.history:
        assert record["coefficient"] == coefficient
        if record["distance"] > 1.5 * record["radius"]:
            coefficient *= 2
        elif record["distance"] < record["radius"] / 1.5:
            coefficient /= 2


@pytest.mark.slow
def test_cpg_finds_the_optimum_of_pair_trading():
    best = PairTrading().optimum()
    learned = cpg(PairTrading(), dt=0.1, iterations=120, step=Shrinking(1.0, 50))
    assert learned.policy.slope == pytest.approx(best.slope, abs=0.6)
    assert learned.policy.intercept == pytest.approx(best.intercept, abs=0.15)
    assert learned.policy.variance == pytest.approx(best.variance, abs=0.03)
    assert abs(learned.value - best.objective) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("kind", [CTD0, MartingaleLoss], ids=["ctd0", "martingale loss"])
def test_incremental_critics_lead_to_the_optimum_too(kind):
    network = Quadratic()
    critic = kind(network, torch.optim.Adam(network.parameters(), lr=0.05), sweeps=5)
    learned = cpg(LQ(), dt=0.1, iterations=80, critic=critic)
    assert abs(learned.value - BEST.objective) < 0.01


@pytest.mark.slow  # `cppo` takes its states by such clocks always
def test_exponential_clocks_lead_there_too():
    learned = cpg(LQ(), dt=0.1, iterations=80, clocks=8000)
    assert abs(learned.value - BEST.objective) < 0.01


class Network(nn.Module):
    """A policy of one's own: mean and std by a perceptron."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 2))

    def forward(self, seen):
        mean, log_std = self.layers(seen).chunk(2, dim=-1)
        return mean, log_std.exp()


@pytest.mark.parametrize("learn", [cpg, cppo])
def test_networks_of_ones_own(learn):
    torch.manual_seed(0)
    policy = Network()
    critic = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))
    options = {"step": 0.03} if learn is cpg else {"learning_rate": 0.01, "clocks": 2000}
    learned = learn(
        LQ(), dt=0.2, iterations=15, policy=policy, critic=critic, trajectories=100, **options
    )
    assert learned.policy is policy
    assert learned.value_error > 0  # no closed form for a network: fresh paths
    assert learned.value > LQ().evaluate(0.0, 0.0, 1.0).objective + 0.5


class Regulator(ControlledSDE):
    """Finite horizon, no discount: V = −½x² + c(t) and π* = N(−x, γ) at every time."""

    discount, horizon, temperature = 0.0, 1.0, 0.1

    def start(self, count, generator):
        return torch.randn(count, 1, generator=generator)

    def drift(self, x, a):
        return a

    def diffusion(self, x, a):
        return 0.5 * torch.ones_like(x)

    def reward(self, x, a):
        return -(x**2 + a**2)[:, 0] / 2

    def terminal(self, x):
        return -(x[:, 0] ** 2) / 2


def test_a_finite_horizon():
    learned = cpg(Regulator(), dt=0.05, iterations=100, trajectories=200)
    slope, drift = learned.policy.slope[0].tolist()  # in the state and in time
    assert slope == pytest.approx(-1, abs=0.1)
    assert drift == pytest.approx(0, abs=0.15)
    assert learned.policy.variance == pytest.approx(0.1, abs=0.03)
    best = -0.5 - 0.125 + 0.05 * math.log(2 * math.pi * 0.1)
    assert abs(learned.value - best) < 3 * learned.value_error + 0.03
    # The critic's terminal value is exact by construction, so value is plain return there.
    assert learned.history[-1]["value"] == pytest.approx(best, abs=0.25)


class Plane(ControlledSDE):
    """Two states, two actions, independent: a* = −x/(…) in each; slopes are a matrix."""

    discount, temperature, state_dim, action_dim = 1.0, 0.2, 2, 2

    def start(self, count, generator):
        return torch.randn(count, 2, generator=generator)

    def drift(self, x, a):
        return a

    def diffusion(self, x, a):
        return 0.5 * torch.ones_like(x)

    def reward(self, x, a):
        return -(x**2 + a**2).sum(1)


@pytest.mark.slow
def test_more_dimensions():
    learned = cpg(Plane(), dt=0.1, iterations=100, trajectories=200)
    golden = (1 - math.sqrt(5)) / 2  # ½ρk₂ = −1 + k₂²/4, slope k₂/2
    target = golden * torch.eye(2)
    torch.testing.assert_close(learned.policy.slope, target, atol=0.12, rtol=0)
    assert learned.policy.variance.tolist() == pytest.approx([0.1, 0.1], abs=0.03)


def test_the_same_seed_gives_the_same_run():
    values = [cpg(LQ(), dt=0.2, iterations=5, trajectories=20, seed=s).value for s in (3, 3, 4)]
    assert values[0] == values[1] != values[2]


def test_units_do_not_matter():
    """Actions, rewards and temperature in other units: the same run in those units."""
    first = cpg(LQ(), dt=0.2, iterations=20, trajectories=50)
    # Rewards and temperature times 8; actions a' = 4a, hence B, D, R and Q by 4, N by 16.
    problem = LQ(D=0.25, N=1.0, M=16.0, R=2.0, P=8.0, Q=4.0, temperature=0.8)
    second = cpg(
        problem, dt=0.2, iterations=20, trajectories=50, policy=GaussianLinear(variance=16)
    )
    assert second.policy.slope == pytest.approx(4 * first.policy.slope, rel=1e-2)
    assert second.policy.variance == pytest.approx(16 * first.policy.variance, rel=1e-2)


def test_every_iteration_is_told():
    seen = []
    learned = cpg(
        LQ(), dt=0.2, iterations=3, trajectories=10, on_iteration=lambda k, r: seen.append((k, r))
    )
    assert [k for k, _ in seen] == [0, 1, 2]
    assert [r for _, r in seen] == learned.history
    assert all(math.isfinite(v) for r in learned.history for v in r.values())
