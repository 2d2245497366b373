"""Matching with its options: weights, laws of times, derivative losses, dropped conditions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from networks import Points
from scoretune.core.conditions import Condition
from scoretune.core.errors import UserError
from scoretune.core.records import Examples
from scoretune.diffusion import estimates
from scoretune.diffusion.estimates import Prediction, prediction_named
from scoretune.diffusion.kernels import GDDIM
from scoretune.diffusion.matching import score_matching, weightings
from scoretune.diffusion.processes import VP, ContractiveSubVP, Process, RectifiedFlow, expand
from scoretune.models import toy
from scoretune.policy import Policy
from scoretune.training.objectives.matching import Matching

S_SQ = 0.25
PREDICTIONS = [prediction_named(n) for n in ("epsilon", "sample", "v_prediction", "velocity")]
OPTIONS = ["own", *weightings.WEIGHTS]


class Exact(toy.Gaussian):
    """The exact noise of N(m, s²) plus `shift`'s error, told as any prediction."""

    def predict(self, x, t, tokens):
        noise = self.network(x, t)
        data = (x - expand(self.process.sigma(t), x) * noise) / expand(self.process.alpha(t), x)
        return estimates.target(self.process, self.prediction, t, data, noise)


def policy_of(
    process: Process, prediction: Prediction = estimates.noise, shift: float = 0.0, dimension=1
) -> Policy:
    backbone = Exact(process, 0.0, S_SQ, dimension, prediction)
    with torch.no_grad():
        backbone.network.shift.fill_(shift)
    return Policy(backbone, GDDIM(1.0))


def examples(count: int, dimension: int = 1) -> Examples:
    x0 = math.sqrt(S_SQ) * torch.randn(count, dimension)
    return Examples(x0, Condition.none(count), torch.ones(count))


def value(objective: Matching, batch: Examples, seed: int = 1) -> float:
    torch.manual_seed(seed)
    return float(objective(batch).value.detach())


def floor(process: Process, t_min: float, weight=weightings.WEIGHTS["noise"]) -> float:
    """E_t w α²s²/v, on times that are dense near 0."""
    share = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    span = math.log(process.horizon / t_min)
    t = t_min * torch.exp(share * span)
    signal = process.alpha(t) ** 2 * S_SQ
    density = t * span / (process.horizon - t_min)
    left = signal / (signal + process.sigma(t) ** 2)
    return float((weight(process, t) * left * density).mean())


# -------------------------------------------------------------------------- the default


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_default_is_the_plain_error_of_the_same_numbers(dtype):
    # Written out: times, then noise, from torch's own generator.
    process, batch = RectifiedFlow(), examples(64, 3)
    policy = policy_of(process, estimates.velocity, 0.3, 3)
    x0 = batch.x0.to(dtype)
    torch.manual_seed(1)
    t = 1e-3 + (1 - 1e-3) * torch.rand(64)
    eps = torch.randn_like(x0)
    x = estimates.perturb(process, t, x0, eps)
    output = policy.backbone.predict(x, t, batch.condition.tokens)
    goal = estimates.target(process, estimates.velocity, t, x0, eps)
    plain = ((output - goal) ** 2).flatten(1).mean(1).mean()
    found = value(Matching(policy), Examples(x0, batch.condition, batch.weight))
    assert found == float(plain.detach())
    assert policy.calls == 64


# ------------------------------------------------------------------------------ weights


@pytest.mark.parametrize("process", [VP(), RectifiedFlow()], ids=["vp", "flow"])
@pytest.mark.parametrize("weight", weightings.WEIGHTS)
def test_a_named_weight_gives_one_loss_for_every_prediction(process, weight):
    # The same (t, x0, ε) whatever the network predicts; and their gradients agree.
    batch, losses, slopes = examples(256, 2), [], []
    batch = Examples(batch.x0.double(), batch.condition, batch.weight)
    for prediction in PREDICTIONS:
        policy = policy_of(process, prediction, 0.4, 2)
        policy.backbone.network.double()
        torch.manual_seed(1)
        loss = Matching(policy, 0.01, weight=weight)(batch).value
        (slope,) = torch.autograd.grad(loss, policy.backbone.network.shift)
        losses.append(float(loss.detach()))
        slopes.append(float(slope))
    # The law of times draws in float32, so x is built of numbers good to 1e-7.
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-4)
    assert slopes == pytest.approx([slopes[0]] * 4, rel=1e-4)
    assert len({value(Matching(policy, 0.01, weight=n), batch) for n in OPTIONS}) > 5


def test_own_is_the_weight_of_the_networks_prediction():
    batch = examples(512)
    names = ["noise", "data", "v", "velocity"]
    for prediction, name in zip(PREDICTIONS, names, strict=True):
        policy = policy_of(VP(), prediction, 0.4)
        own = value(Matching(policy, 0.01), batch)
        assert value(Matching(policy, 0.01, weight=name), batch) == pytest.approx(own, rel=1e-5)


@pytest.mark.parametrize("weight", OPTIONS)
def test_a_velocity_network_learns_up_to_pure_noise(weight):
    # Times of exactly 1 and next to it: the loss and its gradient stay finite.
    policy = policy_of(RectifiedFlow(), estimates.velocity, 0.2)
    policy.backbone.predict = lambda x, t, tokens: x * policy.backbone.network.shift

    def law(process, share, t_min):
        t = torch.tensor([1.0, 1 - 2**-24, 1e-3]).repeat(20)
        return t, torch.ones_like(t)

    loss = Matching(policy, weight=weight, times=law)(examples(60)).value
    (slope,) = torch.autograd.grad(loss, policy.backbone.network.shift)
    assert bool(torch.isfinite(loss)) and bool(torch.isfinite(slope)) and float(slope) != 0


# -------------------------------------------------------------------------------- times


@pytest.mark.parametrize("process", [VP(), ContractiveSubVP()], ids=["vp", "contractive"])
def test_importance_sampling_is_unbiased_and_quieter(process):
    t_min, seeds = 1e-2, range(20)
    policy, batch = policy_of(process), examples(20_000)
    expected = floor(process, t_min, weightings.likelihood)
    spread = {}
    for times in ("uniform", "importance"):
        objective = Matching(policy, t_min, weight="likelihood", times=times)
        losses = torch.tensor([value(objective, batch, seed) for seed in seeds])
        error = float(losses.std()) / math.sqrt(len(seeds))
        assert float(losses.mean()) == pytest.approx(expected, abs=4 * error)
        spread[times] = error
    assert spread["importance"] < 0.75 * spread["uniform"]


@pytest.mark.parametrize("times", weightings.TIMES)
def test_any_law_of_times_trains(times):
    policy, batch = policy_of(VP(), estimates.v, 0.5), examples(4000)
    torch.manual_seed(1)
    loss = Matching(policy, times=times)(batch).value
    (slope,) = torch.autograd.grad(loss, policy.backbone.network.shift)
    assert float(slope) > 0  # the mean is 0.5 too large
    own = Matching(policy, times=weightings.TIMES[times])
    assert value(own, batch) == float(loss.detach())


# -------------------------------------------------------------------------------- forms


@pytest.mark.parametrize("loss", ["implicit", "sliced"])
@pytest.mark.parametrize("weight", ["own", "noise", "v", "likelihood"])
@pytest.mark.parametrize("prediction", PREDICTIONS[::3], ids=["epsilon", "velocity"])
def test_derivative_losses_have_the_gradient_of_the_denoising_loss(loss, weight, prediction):
    # denoising = derivative form + E w, since E‖ε‖² is 1 a dimension; the gradients are equal.
    # Up to t = ½ only: some of these weights leave late times to a few samples.
    def law(process, share, t_min):
        return t_min + (0.5 - t_min) * share, torch.ones_like(share)

    policy, batch = policy_of(VP(), prediction, 0.8, 2), examples(40_000, 2)
    shift, found = policy.backbone.network.shift, {}
    for form in ("denoising", loss):
        torch.manual_seed(1)
        total = Matching(policy, 0.05, weight=weight, times=law, loss=form)(batch).value
        found[form] = float(total.detach()), float(torch.autograd.grad(total, shift)[0])
    t, _ = law(VP(), (torch.arange(1000) + 0.5) / 1000, 0.05)
    w = weightings.Unit(prediction) if weight == "own" else weightings.WEIGHTS[weight]
    constant = float(w(VP(), t).mean())
    assert found["denoising"][1] == pytest.approx(found[loss][1], rel=0.1)
    assert found["denoising"][0] == pytest.approx(found[loss][0] + constant, rel=0.05)


# ------------------------------------------------------------------------------ dropout


class Told(Points):
    """Remembers what it was told."""

    def predict(self, x, t, tokens):
        self.told = tokens
        return super().predict(x, t, tokens)


def test_dropout_replaces_its_share_of_the_conditions():
    backbone = Told(VP(), 1, prompt_size=2)
    condition = Condition(torch.randn(20_000, 1, 2), torch.full((1, 2), 7.0))
    batch = Examples(torch.randn(20_000, 1), condition, torch.ones(20_000))
    policy = Policy(backbone, GDDIM(1.0))
    Matching(policy, dropout=0.1)(batch)
    empty = (backbone.told == 7).flatten(1).all(1)
    assert float(empty.float().mean()) == pytest.approx(0.1, abs=0.01)
    torch.testing.assert_close(backbone.told[~empty], condition.tokens[~empty])
    Matching(policy)(batch)
    assert backbone.told is condition.tokens
    with pytest.raises(UserError, match="empty prompt"):
        Matching(policy, dropout=0.1)(examples(4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": "likelyhood"}, "did you mean 'likelihood'"),
        ({"times": "log_normal"}, "did you mean 'lognormal'"),
        ({"loss": "slices"}, "did you mean 'sliced'"),
        ({"dropout": 1.0}, "must lie in"),
    ],
)
def test_mistakes_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        Matching(policy_of(VP()), **settings)


# ------------------------------------------------------------------------- it trains


@pytest.mark.parametrize(("t_min", "exact"), [(1e-5, 0.17331), (1e-3, 0.17249), (1e-2, 0.16500)])
def test_floor_of_the_noise_loss(t_min, exact):
    assert floor(VP(), t_min) == pytest.approx(exact, abs=1e-5)
    batch = examples(400_000)
    assert value(Matching(policy_of(VP()), t_min), batch) == pytest.approx(exact, rel=0.02)


class Small(toy.Vectors):
    """A perceptron of width 32 on x/√(α² + σ²) and ln ρ."""

    process, prediction, shape = VP(), estimates.noise, (1,)

    def __init__(self) -> None:
        wide = 32
        self.network = nn.Sequential(
            nn.Linear(3, wide), nn.SiLU(), nn.Linear(wide, wide), nn.SiLU(), nn.Linear(wide, 1)
        )

    def predict(self, x, t, tokens):
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        clock = torch.log(sigma / alpha)[:, None] / 4
        scaled = x * torch.rsqrt(alpha**2 + sigma**2)[:, None]
        return self.network(torch.cat([scaled, clock, clock.tanh()], 1))


@pytest.fixture(scope="module")
def small() -> Policy:
    torch.manual_seed(0)
    policy, updates = Policy(Small(), GDDIM(1.0)), 1500
    optimiser = torch.optim.Adam(policy.backbone.network.parameters(), 1e-2)
    for update in range(updates):
        optimiser.param_groups[0]["lr"] = 1e-2 * (1 - update / updates)
        optimiser.zero_grad()
        Matching(policy, 1e-5)(examples(1024)).value.backward()
        optimiser.step()
    return policy


def lattice(times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """States that stand for p_t at each of the times, those times, and v there."""
    normal = torch.special.ndtri((torch.arange(41) + 0.5) / 41).repeat(len(times))
    t = times.repeat_interleave(41)
    v = VP().alpha(t) ** 2 * S_SQ + VP().sigma(t) ** 2
    return (v.sqrt() * normal)[:, None], t, v


@pytest.mark.slow
def test_a_small_network_comes_down_to_the_floor(small):
    # What it ends at is the floor plus the squared error of its own, which quadrature knows.
    x, t, v = lattice(torch.linspace(1e-5, 1, 2001))
    with torch.no_grad():
        noise = small.estimate(x, t, Condition.none(len(t))).noise
    exact = (VP().sigma(t) / v)[:, None] * x
    loss = 0.17331 + float(score_matching.explicit(noise, exact).mean())
    assert 0.17331 < loss < 1.02 * 0.17331


@pytest.mark.parametrize("time", [0.1, 0.3, 0.5, 0.8])
def test_a_small_network_learns_the_slope_of_the_score(small, time):
    x, t, v = lattice(torch.tensor([time]))
    with torch.no_grad():
        noise = small.estimate(x, t, Condition.none(len(t))).noise
    score = -noise / VP().sigma(t)[:, None]
    assert float((x * score).sum() / (x**2).sum()) == pytest.approx(-1 / float(v[0]), rel=0.04)
