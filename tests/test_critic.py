"""The critic: exact at the end of a path, and able to learn a value that is known."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from scoretune.backbones import toy
from scoretune.batches import Condition, Trajectory
from scoretune.credit import CriticCredit
from scoretune.critic import critic_for, explained_variance, skip_weights
from scoretune.diffusion.kernels import GDDIM
from scoretune.diffusion.processes import VP
from scoretune.policy import Policy
from scoretune.rollout import rollout

TIMES = torch.linspace(0.35, 0.001, 11)  # where the state says something about the outcome


def square(x: Tensor, who: Tensor | None = None) -> Tensor:
    return x[:, 0] ** 2


def path_of(seed: int, batch: int = 256) -> Trajectory:
    """Paths of N(0, 1) data: the law of x is N(0, 1) at every time."""
    policy = Policy(toy.Gaussian(VP(), 0.0, 1.0), GDDIM(1.0))
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(batch, 1, generator=generator)
    return rollout(policy, Condition.none(batch), TIMES, generator, noise)


def fit(credit: CriticCredit, path: Trajectory) -> dict[str, float]:
    """One round of credit for every step of a path; what it measured."""
    k = torch.arange(len(TIMES) - 1).repeat_interleave(len(path.final))
    b = torch.arange(len(path.final)).repeat(len(TIMES) - 1)
    return credit(path, square(path.final), square, k, b).metrics


def credit_of() -> CriticCredit:
    torch.manual_seed(0)
    critic = critic_for((1,), 0, 1.0)
    optimiser = torch.optim.Adam(critic.parameters(), lr=3e-3)
    policy = Policy(toy.Gaussian(VP(), 0.0, 1.0), GDDIM(1.0))
    return CriticCredit(critic=critic, optimiser=optimiser, policy=policy, kl_weight=0.0)


def parts(shape: tuple[int, ...], token_size: int, batch: int = 5):
    """Inputs of a critic: states, estimates, tokens and guesses."""
    x, data = torch.randn(batch, *shape), torch.randn(batch, *shape)
    return x, data, torch.randn(batch, 3, token_size), torch.randn(batch)


@pytest.mark.parametrize(
    ("shape", "token_size"), [((4, 8, 8), 64), ((3,), 0), ((2,), 8), ((4, 16, 16), 0)]
)
def test_the_value_at_the_end_is_the_reward(shape, token_size):
    critic = critic_for(shape, token_size, horizon=2.0)
    x, data, tokens, guess = parts(shape, token_size)
    assert torch.equal(critic(x, data, torch.zeros(5), tokens, guess), guess)


@pytest.mark.parametrize(("shape", "token_size"), [((4, 8, 8), 64), ((3,), 0)])
def test_at_the_horizon_the_guess_does_not_count(shape, token_size):
    critic = critic_for(shape, token_size, horizon=2.0)
    x, data, tokens, guess = parts(shape, token_size)
    t = torch.full((5,), 2.0)
    torch.testing.assert_close(
        critic(x, data, t, tokens, guess), critic(x, data, t, tokens, guess + 3), atol=1e-5, rtol=0
    )
    assert critic(x, data, t, tokens, guess).shape == (5,)


def test_skip_weights_golden():
    skip, out = skip_weights(torch.tensor([0.0, 1 / 3, 1.0]))
    torch.testing.assert_close(skip, torch.tensor([1.0, 3**0.5 / 2, 0.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(out, torch.tensor([0.0, 0.5, 1.0]), atol=1e-6, rtol=0)


def test_the_prompt_and_the_state_are_heard():
    critic = critic_for((4, 8, 8), 64, 1.0)
    torch.nn.init.normal_(critic.body.leave[2].weight)  # starts at zero
    x, data, tokens, guess = parts((4, 8, 8), 64)
    t = torch.full((5,), 0.7)
    value = critic(x, data, t, tokens, guess).detach()
    for other in (
        critic(x + 1, data, t, tokens, guess),
        critic(x, data + 1, t, tokens, guess),
        critic(x, data, t - 0.3, tokens, guess),
        critic(x, data, t, tokens.roll(1, 0), guess),
    ):
        assert float((value - other.detach()).abs().min()) > 1e-5


def test_explained_variance_golden():
    returns = torch.tensor([1.0, 2.0, 3.0])
    assert explained_variance(returns, returns) == 1.0
    assert explained_variance(torch.full((3,), 2.0), returns) == 0.0
    assert explained_variance(torch.zeros(3), torch.ones(3)) == 0.0
    assert explained_variance(returns / 2, returns) == pytest.approx(0.75)


def test_it_learns_a_value_that_is_known():
    """Reward x², data N(0, 1): V(t, x) = α²x² + 1 − α²; the guess x̂0² is its first term."""
    credit = credit_of()
    for seed in range(24):
        path = path_of(seed)
        metrics = fit(credit, path)
    assert metrics["explained_variance"] > 0.5  # on paths that the fit had not seen

    path = path_of(99, batch=2000)
    x, share = path.states[:-1, :, 0], VP().alpha(TIMES[:-1])[:, None] ** 2
    exact = share * x**2 + 1 - share
    with torch.no_grad():
        rows = zip(path.states, path.data, TIMES, strict=False)
        tokens = path.condition.tokens
        learned = torch.stack(
            [credit.critic(s, d, t.expand(2000), tokens, square(d)) for s, d, t in rows]
        )
    guess = (path.data**2)[:, :, 0]
    wrong, naive = (learned - exact).square().mean(), (guess - exact).square().mean()
    assert float(wrong) < 0.25 * float(naive)
    returns = square(path.final).expand(10, -1)
    attainable = explained_variance(exact, returns)
    assert attainable - 0.05 < explained_variance(learned, returns) < attainable + 0.02


def test_state_and_restore():
    credit = credit_of()
    fit(credit, path_of(0))
    saved = copy.deepcopy(credit.state())
    other = credit_of()
    other.restore(saved)
    for run in (credit, other):
        torch.manual_seed(3)
        fit(run, path_of(1))
    ours, theirs = credit.critic.state_dict(), other.critic.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert any(not torch.equal(ours[name], saved["critic"][name]) for name in ours)
