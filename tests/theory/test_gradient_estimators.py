"""Estimators of one policy gradient, and why a critic is worth its trouble (arXiv 2502.01819).

Linear reward w·x on the Gaussian bed, θ = .1: ∇η = w(1 − Φ(T)α(T)) − κθ I(T) in continuous time.
(E) explicit noise on the score and the closed-form rate q, (B) the sampler's own noise and the TD
increment of V, (D) the slope of V, and REINFORCE with the reward of the whole path.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from scoretune.diffusion.kernels import EulerMaruyama, Memoryless
from scoretune.models import toy
from scoretune.rl import (
    advantage_rate,
    clipped_surrogate,
    gaussian_log_prob,
    returns_to_go,
    td_advantage,
)

F64 = torch.float64
W, KAPPA, THETA, ACTION_VARIANCE = 1.2, 0.5, 0.1, 1.0
KERNEL = EulerMaruyama(Memoryless())
PATHS = {20: 8000, 100: 2000, 1000: 250}  # by number of steps


class Paths(NamedTuple):
    """Steps of B paths, flattened [N·B, 1], and the score there as a function of θ, one a path."""

    times: Tensor
    states: Tensor
    x: Tensor
    t: Tensor
    t_next: Tensor
    action: Tensor
    theta: Tensor
    score: Tensor


def act(bed, count: int, batch: int, action_variance: float) -> Paths:
    times = torch.linspace(1, 0, count + 1, dtype=F64)
    policy, x = bed.family(THETA), torch.randn(batch, 1, dtype=F64)
    states, actions = [x], []
    for t, t_next in pairwise(times[:, None].expand(-1, batch)):
        action = bed.score(policy, x, t) + action_variance**0.5 * torch.randn_like(x)
        x = KERNEL(bed.process, x, bed.acting(x, t, action), t, t_next).draw()
        states.append(x)
        actions.append(action)
    path = torch.stack(states)
    x, t = path[:-1].flatten(0, 1), times[:-1].repeat_interleave(batch)
    theta = torch.full((batch, 1), THETA, dtype=F64, requires_grad=True)
    network = toy.GaussianNoise(bed.process, bed.mean, bed.variance)
    noise = functional_call(network, {"shift": theta.repeat(count, 1)}, (x, t))
    score = -noise / bed.process.sigma(t)[:, None]
    after = times[1:].repeat_interleave(batch)
    return Paths(times, path, x, t, after, torch.cat(actions), theta, score)


def explicit(bed, p: Paths) -> Tensor:
    """Version (E), [N·B]: Δ_k min(ρ_k q_k, clip(ρ_k) q_k) with ratios and q on actions."""
    slope, reference = W * bed.kept(p.t)[:, None], bed.score(bed.exact(), p.x, p.t)
    rate = advantage_rate(
        slope, p.action, p.score.detach(), reference, bed.g_sq(p.t), KAPPA, ACTION_VARIANCE
    )
    log_prob = gaussian_log_prob(p.action, p.score, torch.tensor(ACTION_VARIANCE**0.5))
    return (p.t - p.t_next) * clipped_surrogate(log_prob, log_prob.detach(), rate, 0.2)


def implicit(bed, p: Paths) -> dict[str, Tensor]:
    """The others, [N·B] each; their running cost is differentiated directly."""
    step = KERNEL(bed.process, p.x, bed.acting(p.x, p.t, p.score), p.t, p.t_next)
    pretrained = KERNEL(bed.process, p.x, bed.exact()(p.x, p.t), p.t, p.t_next)
    cost, dt = KAPPA * step.kl(pretrained), -p.times.diff()
    mean = bed.mean + THETA  # V = w E[x0 | x] − (κθ²/2) I(t)
    centred = p.states[:, :, 0] - bed.process.alpha(p.times)[:, None] * mean
    values = W * (mean + bed.kept(p.times)[:, None] * centred)
    values = (values - KAPPA / 2 * THETA**2 * bed.spent(p.times)[:, None]).T
    rates = -cost.detach().view(len(dt), -1).T / dt
    returns = returns_to_go(rates, values[:, -1], dt)
    credits = {
        "B": td_advantage(values, rates, dt),
        "terminal": returns,
        "terminal − V(x_T)": returns - values[:, :1],
        "terminal − V(x_t)": returns - values[:, :-1],
    }
    log_prob = step.log_prob(p.states[1:].flatten(0, 1))
    gains = {
        name: clipped_surrogate(log_prob, log_prob.detach(), credit.T.flatten(), 0.2) - cost
        for name, credit in credits.items()
    }
    slope = W * bed.kept(p.t)[:, None]
    return gains | {"D": (step.mean * slope)[:, 0] - cost}


@pytest.fixture(scope="module")
def computed(bed) -> dict[tuple[int, str], Tensor]:
    """Gradients by number of steps and estimator, one a path."""
    torch.manual_seed(0)
    table = {}
    for count, batch in PATHS.items():
        exploring, plain = (act(bed, count, batch, v) for v in (ACTION_VARIANCE, 0.0))
        table[count, "E"] = torch.autograd.grad(explicit(bed, exploring).sum(), exploring.theta)[0]
        for name, gain in implicit(bed, plain).items():
            (each,) = torch.autograd.grad(gain.sum(), plain.theta, retain_graph=True)
            table[count, name] = each
    return table


def expected(bed, count: int) -> dict[str, float]:
    """Expectations over paths of this Euler–Maruyama sampler."""
    times = torch.linspace(1, 0, count + 1, dtype=F64)
    t, t_next = times[:-1], times[1:]
    moves = (t - t_next) * bed.g_sq(t) * bed.h(t)  # ∂ mean of a step / ∂θ
    rates = bed.steps(KERNEL, bed.family(THETA), times).rate
    tails = torch.cat([rates[1:].flip(0).cumprod(0).flip(0), torch.ones(1, dtype=F64)])
    slopes = {"D": bed.kept(t), "B": bed.kept(t_next), "terminal": tails}
    exact = {
        name: float((moves * (W * slope - KAPPA * THETA * bed.h(t))).sum())
        for name, slope in slopes.items()
    }
    ends = dict.fromkeys(("terminal − V(x_T)", "terminal − V(x_t)"), exact["terminal"])
    return exact | ends | {"E": exact["D"]}


@pytest.mark.slow
@pytest.mark.parametrize("count", PATHS)
def test_estimators_have_their_expectations(bed, computed, count):
    for name, exact in expected(bed, count).items():
        each = computed[count, name]
        error = float(each.std()) / len(each) ** 0.5
        assert float(each.mean()) == pytest.approx(exact, abs=4 * error + 1e-9), name


@pytest.mark.parametrize(
    ("count", "d", "b", "terminal"),
    [
        (20, 0.97316, 1.29470, 1.04067),
        (100, 0.99733, 1.06004, 1.00769),
        (1000, 0.99978, 1.006, 1.00075),
    ],
)
def test_they_agree_as_the_grid_gets_finer(bed, count, d, b, terminal):
    # The bias of B is that of a continuous V in a discrete sampler; fit V on the sampler instead.
    exact = expected(bed, count)
    assert exact["D"] == exact["E"] == pytest.approx(d, abs=1e-5)
    assert exact["B"] == pytest.approx(b, abs=1e-5)
    assert exact["terminal"] == pytest.approx(terminal, abs=1e-5)
    assert all(abs(value - 0.99998920) < 7 / count for value in exact.values())


@pytest.mark.parametrize(
    ("count", "stds"),
    [
        (20, (0.84, 0.82, 1.75, 3.17)),
        (100, (0.38, 0.30, 1.70, 3.14)),
        (1000, (0.12, 0.091, 1.7, 3.14)),
    ],
)
def test_variances_are_ordered(computed, count, stds):
    names = ("E", "B", "terminal − V(x_T)", "terminal")
    for name, std in zip(names, stds, strict=True):
        assert float(computed[count, name].std()) == pytest.approx(std, rel=0.15), name
    assert float(computed[count, "D"].std()) < 1e-12  # nothing but the states is random
    # A baseline that follows the path halves the deviation once more, and no finer grid helps it.
    following = float(computed[count, "terminal − V(x_t)"].std())
    assert stds[1] < following == pytest.approx(0.87, rel=0.2)


def test_td_noise_shrinks_with_the_step(computed):
    for name in ("E", "B"):  # standard deviation ∝ N^(−1/2)
        few, many = (float(computed[count, name].std()) for count in (100, 1000))
        assert few / many == pytest.approx(10**0.5, rel=0.25), name
