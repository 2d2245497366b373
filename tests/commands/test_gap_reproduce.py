"""The reward gap where it is known: the numbers behind its pages."""

from __future__ import annotations

import pytest
import torch

from scoretune.commands.reproduce import gap_laws, gap_theory, gap_toy
from scoretune.diffusion.kernels import GDDIM
from scoretune.diffusion.theory import gaussian, reward_gap


def test_pooled_deviations_golden():
    runs = [{"x": [1.0, 0.3, 1.5]}, {"x": [2.0, 0.4, 1.5]}]
    found = gap_theory.pooled(runs)["x"]
    assert found["mean"] == 1.5
    assert found["error"] == pytest.approx(0.25)
    assert found["deviations"] == 0
    assert gap_theory.pooled(runs[:1])["x"]["deviations"] == pytest.approx(-0.5 / 0.3)


def test_the_law_with_two_modes_says_its_score():
    x, t = torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None], torch.full((7,), 0.8).double()
    noise = gap_laws.pair_estimate(x, t).noise
    score = gap_laws.PAIR.diffused(1.0, 0.8).score(x)
    torch.testing.assert_close(noise, -0.8 * score)


# Gaps before the first update, and what 150 updates come to, by η at 20 steps.
STARTS = {0.3: 0.0114, 0.7: 0.0645, 1.0: 0.1262, 1.2: 0.1713, 1.5: 0.2370, 2.0: 0.3242}


def test_the_gap_before_learning_golden():
    times = gap_toy.grid_of(20)
    for eta, golden in STARTS.items():
        found: dict[str, list[float]] = {"ode": [], "gap": [], "exact": [], "variance": []}
        gap_toy.note(found, eta, times, 0.0, 1.0)
        assert found["gap"][0] == pytest.approx(golden, abs=5.1e-5)
        # Without steps the ODE is better: it is narrower by q_0², as nothing is off centre.
        q = [(1 / 101) ** ((1 + e**2) / 2) for e in (0.0, eta)]
        assert found["exact"][0] == pytest.approx(q[1] ** 2 - q[0] ** 2)


@pytest.mark.slow
@pytest.mark.parametrize("eta", [0.3, 2.0])
def test_learning_closes_the_gap(eta):
    """By less than a tenth of what it was, and to about the known numbers: two seeds."""
    runs = [gap_toy.learned(eta, 10, seed, updates=150, batch=256) for seed in range(2)]
    for run in runs:
        assert len(run["gap"]) == 151
        assert run["gap"][149] < 0.1 * run["gap"][0]
        assert run["ode"][150] > -0.06 > run["ode"][0]
    assert runs[0] != runs[1]


def test_log_probabilities_of_paths_are_those_of_their_steps():
    times, generator = gap_toy.grid_of(3), torch.Generator().manual_seed(0)
    mean, spread = torch.tensor(0.3).double(), torch.tensor(-0.2).double()
    states = gap_toy.rolled(0.7, times, mean, spread, 5, generator)
    found = gap_toy.path_log_prob(0.7, times, states, mean, spread)
    by_steps = torch.zeros(5, dtype=torch.float64)
    field = gaussian.exact(gap_toy.PROCESS, mean=0.3, variance=float(torch.exp(spread)))
    for k in range(3):
        t, t_next = times[k].expand(5), times[k + 1].expand(5)
        step = GDDIM(0.7)(gap_toy.PROCESS, states[k], field(states[k], t), t, t_next)
        by_steps += step.log_prob(states[k + 1])
    torch.testing.assert_close(found, by_steps)
    assert reward_gap.expected((0.3, 0.2), 1.0) == pytest.approx(-0.69)
