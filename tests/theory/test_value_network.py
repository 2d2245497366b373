"""V = c_skip·R(x̂0) + c_out·F: what the skip saves F from learning (arXiv 2502.01819).

Data from the mixture .3 N(−2, .16) + .7 N(1, .16), reward −(x − 1.5)². The value of the pretrained
policy is exact by quadrature of its posterior; F is a polynomial of degree 4 in x and in t.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from tests.theory.conftest import expectation
from torch import Tensor

from scoretune.diffusion.processes import VP
from scoretune.rl import martingale_loss
from scoretune.rl.tilt import Mixture
from scoretune.training.credit.values import SKIPS

F64 = torch.float64
PROCESS, LAW = VP(), Mixture.of([0.3, 0.7], [[-2.0], [1.0]], 0.16)


def reward(x: Tensor) -> Tensor:
    return -((x[..., 0] - 1.5) ** 2)


class States(NamedTuple):
    """States, how much each counts (weights sum to 1), and the exact answers there."""

    x: Tensor
    t: Tensor
    weight: Tensor
    value: Tensor
    guess: Tensor
    posterior: Mixture


def look(x: Tensor, t: Tensor, weight: Tensor) -> States:
    posterior = LAW.posterior(x, PROCESS.alpha(t), PROCESS.sigma(t))
    return States(x, t, weight, expectation(posterior, reward), reward(posterior.mean), posterior)


@pytest.fixture(scope="module")
def everywhere() -> States:
    """All states under the marginals of t = (uniform)²: no Monte Carlo."""
    times = ((torch.arange(200, dtype=F64) + 0.5) / 200) ** 2
    grid = torch.linspace(-7, 7, 281, dtype=F64)
    t, x = (part.flatten() for part in torch.meshgrid(times, grid, indexing="ij"))
    x = x[:, None]
    weight = LAW.diffused(PROCESS.alpha(t), PROCESS.sigma(t)).log_density(x).exp()
    return look(x, t, weight / weight.sum())


def features(s: States) -> Tensor:
    """x^i t^j for i, j ≤ 4: [M, 25]."""
    powers = torch.arange(5)
    return (s.x**powers)[:, :, None].mul((s.t[:, None] ** powers)[:, None]).flatten(1)


def fitted(
    s: States, target: Tensor, skip: Callable[[Tensor], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Values c_skip·R(x̂0) + c_out·F at the states, with F by least squares, and F's own."""
    kept, out = skip(s.t)
    scaled = features(s) * (out * s.weight.sqrt())[:, None]
    wanted = (target - kept * s.guess) * s.weight.sqrt()
    body = features(s) @ torch.linalg.lstsq(scaled, wanted[:, None]).solution[:, 0]
    return kept * s.guess + out * body, body


def error(s: States, values: Tensor) -> float:
    return float((s.weight * (values - s.value) ** 2).sum())


def test_the_skip_carries_most_of_the_value(everywhere):
    computed = {
        name: error(everywhere, fitted(everywhere, everywhere.value, skip)[0])
        for name, skip in SKIPS.items()
    }
    assert error(everywhere, everywhere.guess) == pytest.approx(1.558, abs=2e-3)  # R(x̂0) alone
    assert computed["none"] == pytest.approx(0.1998, abs=1e-3)  # F alone
    assert computed["cos_sin"] == pytest.approx(0.0198, abs=1e-3)
    for name in ("linear", "cos"):
        assert computed[name] < 0.2 * computed["none"], name


def test_what_no_critic_can_know(everywhere):
    second = expectation(everywhere.posterior, lambda x: reward(x) ** 2)
    assert float((everywhere.weight * (second - everywhere.value**2)).sum()) == pytest.approx(
        13.67, abs=0.01
    )


def test_the_guess_is_exact_for_a_linear_reward_and_off_by_the_variance_for_this_one(everywhere):
    # V = R(x̂0) + ½R''·Var(x0 | x): the Jensen gap is minus the posterior variance.
    gap = everywhere.value - everywhere.guess
    torch.testing.assert_close(gap, -everywhere.posterior.variance, atol=1e-9, rtol=1e-7)
    linear = expectation(everywhere.posterior, lambda x: 3 * x[..., 0])
    torch.testing.assert_close(linear, 3 * everywhere.posterior.mean[:, 0])


def test_regression_on_rewards_of_paths_finds_the_same():
    """The martingale loss by Monte Carlo: 5000 paths of 40 steps, fitted to their final rewards."""
    batch, times = 5000, (torch.linspace(0, 1, 41, dtype=F64) ** 2)[1:]
    x0, states, kept = LAW.draw(batch), [], torch.ones((), dtype=F64)
    x = x0
    for alpha in PROCESS.alpha(times):  # the noising of a sample is a path of the sampler reversed
        x = alpha / kept * x + torch.sqrt(1 - (alpha / kept) ** 2) * torch.randn_like(x)
        kept = alpha
        states.append(x)
    seen = look(
        torch.cat(states), times.repeat_interleave(batch), torch.full((40 * batch,), 1 / 40 / batch)
    )
    returns = reward(x0).repeat(40)
    values = {name: fitted(seen, returns, SKIPS[name])[0] for name in ("none", "cos_sin")}
    assert error(seen, values["cos_sin"]) < 0.06 < 0.15 < error(seen, values["none"]) < 0.3
    dt = torch.full((40,), 1 / 40, dtype=F64)

    def loss(v: Tensor) -> float:
        return 2 * float(martingale_loss(v.view(40, -1).T, returns.view(40, -1).T, dt))

    ranked = [loss(v) for v in (seen.guess, values["none"], values["cos_sin"])]
    assert ranked == sorted(ranked, reverse=True)
    assert ranked[0] - ranked[2] == pytest.approx(1.6, abs=0.3)
    assert ranked[2] == pytest.approx(loss(seen.value), abs=0.05)
    assert loss(seen.value) == pytest.approx(14.0, abs=1.0)
