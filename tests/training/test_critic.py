"""The critic: exact at the end of a path, and able to learn a value that is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from scoretune.core.errors import UserError
from scoretune.data.scenes import world
from scoretune.diffusion.processes import VP, expand
from scoretune.models import toy
from scoretune.models.families import FAMILIES
from scoretune.models.observed import Observed
from scoretune.policy import WithFeatures
from scoretune.rl import martingale_loss
from scoretune.training.credit.values import INPUTS, SKIPS, Critic, critic_for, explained_variance

BATCH, FEATURES = 5, 24
SHAPES = [((4, 8, 8), 64), ((3,), 0), ((2,), 8), ((4, 16, 12), 0)]
KINDS = [{"inputs": name} for name in INPUTS] + [{"features": FEATURES}]
every_shape = pytest.mark.parametrize(("shape", "token_size"), SHAPES, ids=str)
every_skip = pytest.mark.parametrize("skip", SKIPS)
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(*kind.values()))


def parts(shape: tuple[int, ...], token_size: int) -> dict[str, Tensor]:
    """What a critic is called with, but for the time."""
    return {
        "x": torch.randn(BATCH, *shape),
        "data": torch.randn(BATCH, *shape),
        "tokens": torch.randn(BATCH, 3, token_size),
        "guess": torch.randn(BATCH),
        "features": torch.randn(BATCH, FEATURES),
    }


def trained(critic: Critic) -> Critic:
    """The critic with a head that is no longer 0."""
    last = critic.body.leave[-1]
    torch.nn.init.normal_(last.weight)
    torch.nn.init.normal_(last.bias)
    return critic


# ---------------------------------------------------------------------------- c_skip and c_out


@every_skip
def test_skip_families_golden(skip):
    u = torch.tensor([0.0, 1 / 3, 1.0])
    golden = {
        "cos_sin": ([1.0, 3**0.5 / 2, 0.0], [0.0, 0.5, 1.0]),
        "linear": ([1.0, 2 / 3, 0.0], [0.0, 1 / 3, 1.0]),
        "cos": ([1.0, 3**0.5 / 2, 0.0], [0.0, 1 - 3**0.5 / 2, 1.0]),
        "none": ([1.0, 0.0, 0.0], [0.0, 1.0, 1.0]),
    }
    found = SKIPS[skip](u)
    for one, other in zip(found, golden[skip], strict=True):
        torch.testing.assert_close(one, torch.tensor(other), atol=1e-6, rtol=0)
    assert found[0][0] == 1  # exactly
    assert found[1][0] == 0


@every_shape
@every_kind
@every_skip
def test_the_value_at_the_end_is_the_reward(shape, token_size, kind, skip):
    critic = trained(critic_for(shape, token_size, 2.0, skip=skip, **kind))
    given = parts(shape, token_size)
    assert torch.equal(critic(t=torch.zeros(BATCH), **given), given["guess"])


@every_shape
@every_kind
@every_skip
def test_it_starts_at_its_first_term(shape, token_size, kind, skip):
    critic = critic_for(shape, token_size, 2.0, skip=skip, **kind)
    given, t = parts(shape, token_size), torch.linspace(0, 2, BATCH)
    assert torch.equal(critic(t=t, **given), SKIPS[skip](t / 2)[0] * given["guess"])


@every_kind
@every_skip
def test_at_the_horizon_the_guess_does_not_count(kind, skip):
    critic = trained(critic_for((3,), 0, 2.0, skip=skip, **kind))
    given, t = parts((3,), 0), torch.full((BATCH,), 2.0)
    value = critic(t=t, **given)
    given["guess"] = given["guess"] + 3
    torch.testing.assert_close(critic(t=t, **given), value, atol=1e-5, rtol=0)


# ---------------------------------------------------------------------------- what F is told


@every_shape
@every_kind
def test_what_is_heard(shape, token_size, kind):
    critic = trained(critic_for(shape, token_size, 1.0, **kind))
    given, t = parts(shape, token_size), torch.full((BATCH,), 0.7)
    told = {"both": {"x", "data"}, "noisy": {"x"}, "denoised": {"data"}}.get(
        kind.get("inputs"), {"features"}
    )
    told = told | ({"guess", "tokens"} if token_size else {"guess"})
    value = critic(t=t, **given).detach()
    assert float((critic(t=t - 0.3, **given).detach() - value).abs().min()) > 1e-6
    for name, part in given.items():
        other = critic(t=t, **{**given, name: part.roll(1, 0)}).detach()
        moved = float((other - value).abs().min())
        assert moved > 1e-6 if name in told else moved == 0, name


@every_shape
@every_kind
@every_skip
def test_slopes_and_gradients_reach_everything(shape, token_size, kind, skip):
    critic = trained(critic_for(shape, token_size, 1.0, skip=skip, **kind))
    given, t = parts(shape, token_size), torch.linspace(0.1, 0.9, BATCH)
    x = given["x"].requires_grad_()
    given["data"] = 2 * x  # the network's estimate, the guess and the features follow the state
    given["guess"] = given["data"].flatten(1).square().sum(1)
    given["features"] = x.flatten(1).sin() @ torch.randn(math.prod(shape), FEATURES)
    value = critic(t=t, **given)
    (slope,) = torch.autograd.grad(value.sum(), x, retain_graph=True)
    assert bool(slope.isfinite().all())
    first = expand(SKIPS[skip](t)[0], x) * 8 * x.detach()
    assert float((slope - first).flatten(1).norm(dim=1).min()) > 1e-4  # F has a slope of its own
    value.square().sum().backward()
    for name, parameter in critic.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 0 or name.endswith("key.bias"), name


@every_kind
@pytest.mark.parametrize("skip", ["cos_sin", "linear", "cos"])
def test_it_is_a_function_of_continuous_time(kind, skip):
    """One state's value does not depend on the others' times, and does not jump between them."""
    critic = trained(critic_for((4, 8, 8), 64, 1.0, skip=skip, **kind))
    given = {
        name: part[:1].expand(400, *part.shape[1:]) for name, part in parts((4, 8, 8), 64).items()
    }
    t = torch.linspace(0, 1, 400)
    with torch.no_grad():
        fine, coarse = (
            critic(t=t, **given),
            critic(t=t[::40], **{n: p[::40] for n, p in given.items()}),
        )
    torch.testing.assert_close(fine[::40], coarse, rtol=1e-4, atol=1e-5)
    steps, spread = fine.diff().abs().max(), fine.max() - fine.min()
    assert float(steps) < 0.1 * float(spread)


def test_half_precision_tokens_are_understood():
    critic = trained(critic_for((3,), 8, 1.0))
    given = parts((3,), 8)
    value = critic(t=torch.full((BATCH,), 0.5), **given)
    given["tokens"] = given["tokens"].bfloat16()
    near = critic(t=torch.full((BATCH,), 0.5, dtype=torch.float64), **given)
    assert near.dtype == torch.float32
    torch.testing.assert_close(near, value, rtol=0.1, atol=0.1)


def test_a_critic_that_does_not_exist():
    with pytest.raises(UserError, match=r"unknown skip of the critic 'cos_sn': did you mean 'cos_"):
        critic_for((3,), 0, 1.0, skip="cos_sn")
    with pytest.raises(UserError, match=r"unknown inputs of the critic 'noise'.*'noisy'"):
        critic_for((3,), 0, 1.0, inputs="noise")
    with pytest.raises(UserError, match="drop inputs='noisy'"):
        critic_for((3,), 0, 1.0, inputs="noisy", features=8)
    given = parts((3,), 0)
    given["features"] = None
    with pytest.raises(ValueError, match="give it `features`"):
        critic_for((3,), 0, 1.0, features=8)(t=torch.zeros(BATCH), **given)


# ---------------------------------------------------------------------------- shared features


@pytest.fixture(scope="module")
def diffusion() -> Observed:
    return FAMILIES["StableDiffusionPipeline"].load(str(world.shipped()))


def states(backbone, batch=3):
    tokens = backbone.encode(["a red seven", "two fives", "a six"]).tokens[:batch]
    return torch.randn(batch, *backbone.shape), torch.linspace(0.1, 0.9, batch), tokens


def test_features_come_with_the_same_forward_pass(diffusion):
    x, t, tokens = states(diffusion)
    calls = []
    counting = diffusion.network.register_forward_hook(lambda *_: calls.append(1))
    x.requires_grad_()
    output, features = diffusion.predict_with_features(x, t, tokens)
    counting.remove()
    assert len(calls) == 1
    assert features.shape == (3, diffusion.feature_size)
    assert features.dtype == torch.float32
    assert torch.equal(output, diffusion.predict(x, t, tokens))
    (slope,) = torch.autograd.grad(features.square().sum(), x)
    assert float(slope.flatten(1).norm(dim=1).min()) > 0
    alone = diffusion.predict_with_features(x[1:2], t[1:2], tokens[1:2])[1]
    torch.testing.assert_close(features[1:2], alone, rtol=1e-4, atol=1e-4)


def test_no_hook_is_left_behind(diffusion):
    x, t, tokens = states(diffusion)
    diffusion.predict_with_features(x, t, tokens)
    with pytest.raises(RuntimeError):
        diffusion.predict_with_features(x, t, tokens[..., :7])
    assert not diffusion.pipeline.unet.mid_block._forward_hooks


def test_features_in_half_precision():
    half = FAMILIES["StableDiffusionPipeline"].load(str(world.shipped()), dtype=torch.bfloat16)
    x, t, tokens = states(half)
    output, features = half.predict_with_features(x, t, tokens)
    assert torch.equal(output, half.predict(x, t, tokens))
    assert features.dtype == torch.float32
    summary = tokens.rows[tokens.summary]
    critic = trained(critic_for(half.shape, summary.shape[-1], 1.0, features=half.feature_size))
    assert critic(x, x, t, summary, torch.zeros(3), features).isfinite().all()


def test_who_has_features(diffusion):
    assert isinstance(diffusion, WithFeatures)
    assert not isinstance(toy.Gaussian(VP(), 0.0, 1.0), WithFeatures)


def test_a_slope_through_features_and_estimate_together(diffusion):
    x, t, tokens = states(diffusion)
    summary = tokens.rows[tokens.summary]
    critic = trained(critic_for(diffusion.shape, 64, 1.0, features=diffusion.feature_size))
    x.requires_grad_()
    output, features = diffusion.predict_with_features(x, t, tokens)
    data = x - output
    value = critic(x, data, t, summary, data.flatten(1).mean(1), features)
    (slope,) = torch.autograd.grad(value.sum(), x)
    assert slope.isfinite().all()
    h, direction = 1e-2, slope / slope.norm()
    with torch.no_grad():
        ends = []
        for sign in (1, -1):
            moved = x + sign * h * direction
            output, features = diffusion.predict_with_features(moved, t, tokens)
            data = moved - output
            ends.append(critic(moved, data, t, summary, data.flatten(1).mean(1), features).sum())
    assert float((ends[0] - ends[1]) / (2 * h)) == pytest.approx(float(slope.norm()), rel=0.02)


# ---------------------------------------------------------------------------- values that are known

WEIGHTS, MEANS, VARIANCE = torch.tensor([0.3, 0.7]), torch.tensor([-2.0, 1.0]), 0.16


def known(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """x̂0 and V = E[reward | x] [B] for a mixture of two Gaussians; the reward is −(x0 − 1.5)²."""
    alpha, sigma = VP().alpha(t)[:, None], VP().sigma(t)[:, None]
    spread = alpha**2 * VARIANCE + sigma**2
    error = x[:, None] - alpha * MEANS
    share = (WEIGHTS.log() - error**2 / (2 * spread)).softmax(1)
    mean = MEANS + alpha * VARIANCE / spread * error
    variance = VARIANCE * sigma**2 / spread
    data = (share * mean).sum(1)
    return data, -(share * ((mean - 1.5) ** 2 + variance)).sum(1)


def noisy_pairs(batch: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Samples x0, noisy states x and times t, [B] each, as the exact sampler visits them."""
    generator = torch.Generator().manual_seed(seed)
    mode = torch.multinomial(WEIGHTS, batch, replacement=True, generator=generator)
    draw = torch.randn(2, batch, generator=generator)
    x0 = MEANS[mode] + VARIANCE**0.5 * draw[0]
    t = torch.rand(batch, generator=generator) ** 2
    return x0, VP().alpha(t) * x0 + VP().sigma(t) * draw[1], t


def reward(x0: Tensor) -> Tensor:
    return -((x0 - 1.5) ** 2)


def test_the_known_value_is_the_expected_reward():
    x0, x, t = noisy_pairs(200_000, 0)
    gap = reward(x0) - known(x, t)[1]
    for test in (torch.ones_like(x), x, t, torch.cos(3 * x) * t):  # orthogonal to all of these
        product = gap * test
        assert abs(float(product.mean())) < 4 * float(product.std()) / 200_000**0.5


@every_skip
def test_a_skip_helps_a_polynomial(skip):
    """Regression of rewards on quartics in (x, u): the error to the exact value, by the skip."""
    x0, x, t = noisy_pairs(40_000, 1)
    data, exact = known(x, t)
    c_skip, c_out = SKIPS[skip](t)
    powers = torch.stack([x**i * t**j for i in range(5) for j in range(5 - i)], 1).double()
    seen = c_out[:, None].double() * powers
    rest = (reward(x0) - c_skip * reward(data)).double()
    fitted = torch.linalg.lstsq(seen[:20_000], rest[:20_000, None]).solution
    value = c_skip * reward(data) + (seen @ fitted)[:, 0].float()
    wrong = float((value - exact)[20_000:].square().mean())
    naive = float((reward(data) - exact)[20_000:].square().mean())
    assert wrong < (0.3 if skip == "none" else 0.06) * naive


@pytest.mark.slow
@pytest.mark.parametrize("skip", ["cos_sin", "linear", "cos"])
def test_a_network_learns_the_known_value(skip):
    """… by the martingale loss, which asks for rewards alone; and the exact value is its least."""
    critic = critic_for((1,), 0, 1.0, skip=skip)
    optimiser = torch.optim.Adam(critic.parameters(), lr=3e-3)
    for step in range(400):
        x0, x, t = noisy_pairs(512, step)
        value = valued(critic, x, t)
        loss = martingale_loss(value[:, None], reward(x0)[:, None], torch.ones(512, 1))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    x0, x, t = noisy_pairs(20_000, 10_000)
    data, exact = known(x, t)
    with torch.no_grad():
        learned = valued(critic, x, t)
    wrong, naive = (learned - exact).square().mean(), (reward(data) - exact).square().mean()
    assert float(wrong) < 0.15 * float(naive)
    losses = [
        float((reward(x0) - value).square().mean()) for value in (exact, learned, reward(data))
    ]
    assert losses == sorted(losses)


def valued(critic: Critic, x: Tensor, t: Tensor) -> Tensor:
    data = known(x, t)[0]
    return critic(x[:, None], data[:, None], t, torch.zeros(len(x), 1, 0), reward(data))


def test_explained_variance_golden():
    returns = torch.tensor([1.0, 2.0, 3.0])
    assert explained_variance(returns, returns) == 1.0
    assert explained_variance(torch.full((3,), 2.0), returns) == 0.0
    assert explained_variance(torch.zeros(3), torch.ones(3)) == 0.0
    assert explained_variance(returns / 2, returns) == pytest.approx(0.75)
