"""Objectives against gradients known in closed form.

Data N(1, ¼), policies s_pre + θh, which are exact scores of N(1 + θ, ¼), reward w·x, KL weight κ:
η(θ) = w(1 + θ) − κθ²/(2S₀) and ∇η = w − κθ/S₀ in continuous time (arXiv 2409.08400). Every step is
affine, so a sampler's own η_N is known without Monte Carlo, and so is its gradient: the policies
differ by Δx̂ = θσ²/v, v = α²S₀ + σ², at every state, so the path KL on a grid is Σ w_k (Δx̂)².
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from scoretune.core.conditions import Condition
from scoretune.core.errors import UserError
from scoretune.core.records import Examples, Round, Steps
from scoretune.data.prompts import Prompts
from scoretune.diffusion import grids, paths
from scoretune.diffusion.estimates import Estimate
from scoretune.diffusion.kernels import GDDIM, EulerMaruyama, Kernel, Memoryless, response
from scoretune.diffusion.processes import VP
from scoretune.models import toy
from scoretune.policy import Policy
from scoretune.rl import td_advantage
from scoretune.rollout import Acting, prior, rollout
from scoretune.training.credit.outcome import GroupCredit
from scoretune.training.engine import TorchEngine
from scoretune.training.loop import train
from scoretune.training.objectives.base import ScoreAction, TrustRegion, moved_kl, reference_kl
from scoretune.training.objectives.matching import Matching
from scoretune.training.objectives.policy_gradient import PolicyGradient
from scoretune.training.sources.on_policy import OnPolicy, Sizes
from scoretune.training.sources.step_choice import any_steps
from slow_cases import slow

PROCESS, MEAN, S0 = VP(), 1.0, 0.25
SLOPE, KAPPA = 1.2, 0.5  # the reward is SLOPE · x
KERNELS = [GDDIM(1.0), EulerMaruyama(Memoryless())]
every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=["gddim", "euler-maruyama"])


def policy_at(theta: float, kernel: Kernel, dimension: int = 1) -> Policy:
    backbone = toy.Gaussian(PROCESS, MEAN, S0, dimension)
    with torch.no_grad():
        backbone.network.shift.fill_(theta)
    return Policy(backbone, kernel)


def act(policy: Policy, times: Tensor, batch: int, seed: int = 0, jitter: bool = False):
    generator = torch.Generator().manual_seed(seed)
    noise = prior(policy, batch, generator)
    return rollout(
        policy, Condition.none(batch), times, generator, noise, acting=Acting(jitter=jitter)
    )


def flat(
    path,
    advantage: Tensor | None,
    reference: Policy | None = None,
    slopes: Tensor | None = None,
    action: Tensor | None = None,
    in_chain: bool = True,
) -> Steps:
    """All transitions [N·B] of a path as Steps, in order; with the KL of the chain, or of time."""
    path = replace(path, in_chain=in_chain)
    steps, batch = path.log_probs.shape
    x, condition = path.states[:-1].flatten(0, 1), Condition.none(steps * batch)
    t, t_next = path.times[:-1].flatten(), path.times[1:].flatten()
    known = None
    if reference is not None:
        with torch.no_grad():
            known = reference.estimate(x, t, condition).data
    return Steps(
        x=x,
        x_next=path.states[1:].flatten(0, 1),
        t=t,
        t_next=t_next,
        condition=condition,
        data=path.data.flatten(0, 1),
        kl_weight=path.kl_weights.flatten(),
        advantage=None if advantage is None else advantage.flatten(),
        data_slope=None if slopes is None else slopes.flatten(0, 1),
        action=None if action is None else action.flatten(0, 1),
        reference_data=known,
        path_steps=steps,
    )


def gradient(policy: Policy, loss: Tensor) -> float:
    """d loss / d shift."""
    shift = policy.backbone.network.shift
    return float(torch.autograd.grad(loss, shift)[0])


def laws(policy: Policy, times: Tensor):
    """Every step as x' = a x + b + c ξ: (a, b, its Transition at x = 0, 1) in float64."""
    x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    for t, t_next in pairwise(times.double()[:, None].expand(-1, len(x))):
        step = policy.transition(x, t, t_next, Condition.none(2))
        b, top = step.mean[:, 0]
        yield top - b, b, step


def kls_of(policy: Policy, times: Tensor) -> Tensor:
    """Each step's share [N] of the KL of time to the policy at θ = 0, differentiable in θ."""
    nodes = times.double()[:, None]
    t, theta = nodes[:-1], policy.backbone.network.shift.double()
    alpha, sigma = PROCESS.alpha(t), PROCESS.sigma(t)
    change = theta * sigma**2 / (alpha**2 * S0 + sigma**2)
    steps = paths.log_snr_steps(PROCESS, times.double(), nodes)
    return (paths.girsanov_weights(PROCESS, t, torch.ones_like(t), steps) * change**2)[:, 0]


def chain_kls_of(policy: Policy, times: Tensor) -> Tensor:
    """The KL [N] of each step to that of the policy at θ = 0, of two Gaussians."""
    reference = policy_at(0.0, policy.kernel)
    pairs = zip(laws(policy, times), laws(reference, times), strict=True)
    return torch.stack([one.kl(other)[0] for (_, _, one), (_, _, other) in pairs])


def objective_of(policy: Policy, times: Tensor) -> Tensor:
    """η_N(θ) = w E[x_N] − κ KL of the sampler's chain, exactly, differentiable in θ."""
    mean = torch.zeros((), dtype=torch.float64)
    for a, b, _ in laws(policy, times):
        mean = a * mean + b
    return SLOPE * mean - KAPPA * chain_kls_of(policy, times).sum()


def value_slopes(policy: Policy, times: Tensor) -> list[float]:
    """∂V_k/∂x for k = 0..N: w times the product of the a's still to come."""
    with torch.no_grad():
        rates = [float(a) for a, _, _ in laws(policy, times)]
    slopes = [SLOPE]
    for a in reversed(rates):
        slopes.append(slopes[-1] * a)
    return slopes[::-1]


def estimate(make: Callable[[int], tuple[Policy, Tensor]], batches: int) -> tuple[float, float]:
    """Mean of −∂loss/∂θ over seeds, and its standard error."""
    found = torch.tensor([-gradient(*make(seed)) for seed in range(batches)])
    return float(found.mean()), float(found.std()) / batches**0.5


# ---------------------------------------------------------------------------- ratio one


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_ppo_at_ratio_one_is_reinforce(temperature):
    policy = policy_at(0.2, GDDIM(1.0), dimension=4)
    path = act(policy, grids.uniform(PROCESS, 5), 64)
    steps = flat(path, torch.randn(5, 64))
    ppo = gradient(policy, PolicyGradient(policy, temperature=temperature)(steps).value)
    transition = policy.transition(steps.x, steps.t, steps.t_next, steps.condition)
    reinforce = -5 * (steps.advantage * transition.log_prob(steps.x_next)).mean() / temperature
    assert ppo == pytest.approx(gradient(policy, reinforce), rel=1e-5)
    assert abs(ppo) > 1e-3


def test_score_action_at_ratio_one_is_reinforce_too():
    policy = policy_at(0.2, GDDIM(1.0), dimension=4)
    steps = flat(act(policy, grids.uniform(PROCESS, 5), 64), torch.randn(5, 64))
    one = gradient(policy, ScoreAction(policy, kl_weight=0.0)(steps).value)
    other = gradient(policy, PolicyGradient(policy)(steps).value)
    assert one == pytest.approx(other, rel=1e-6)


def test_a_moved_policy_is_clipped():
    acting, moved = policy_at(0.0, GDDIM(1.0), 4), policy_at(3.0, GDDIM(1.0), 4)
    steps = flat(act(acting, grids.karras(PROCESS, 8), 64), torch.ones(8, 64))
    loss = PolicyGradient(moved, clip=0.05)(steps)
    assert loss.metrics["clip_fraction"] > 0.3
    assert loss.metrics["approx_kl"] > 0.01
    assert float(loss.value.detach()) >= -8 * 1.05  # ratios above 1.05 gain nothing


# ---------------------------------------------------------------------------- exact gradients


@pytest.mark.slow
def test_the_sampler_tends_to_the_closed_form():
    theta, times = 0.9, grids.uniform(PROCESS, 1000, t_end=1e-5)
    policy = policy_at(theta, KERNELS[1])
    exact = objective_of(policy, times)
    assert float(exact.detach()) == pytest.approx(
        SLOPE * (MEAN + theta) - KAPPA * theta**2 / (2 * S0), abs=0.02
    )
    assert gradient(policy, exact) == pytest.approx(SLOPE - KAPPA * theta / S0, abs=0.02)


FAR = pytest.param(0.9, marks=pytest.mark.slow)
by_gddim = pytest.mark.parametrize(
    "kernel", [KERNELS[0], slow(KERNELS[1])], ids=["gddim", "euler-maruyama"]
)
"""Of sums over many paths, in which kernels differ by their laws alone."""


@by_gddim
@pytest.mark.parametrize("theta", [0.1, FAR])
def test_policy_gradient_of_terminal_rewards(kernel, theta):
    times = grids.karras(PROCESS, 20)
    policy, reference = policy_at(theta, kernel), policy_at(0.0, kernel)
    exact = gradient(policy, objective_of(policy, times))
    objective = PolicyGradient(policy, kl_weight=KAPPA)

    def batch(seed: int):
        path = act(policy, times, 2000, seed)
        rewards = SLOPE * path.final[:, 0]
        steps = flat(path, (rewards - rewards.mean()).expand(20, -1), reference)
        return policy, objective(steps).value

    found, error = estimate(batch, 16)
    assert error < 0.03
    assert found == pytest.approx(exact, abs=4 * error)


@by_gddim
@pytest.mark.parametrize("theta", [0.1, FAR])
def test_score_action_with_a_critic_that_knows(kernel, theta):
    times = grids.karras(PROCESS, 20)
    policy, reference = policy_at(theta, kernel), policy_at(0.0, kernel)
    exact = gradient(policy, objective_of(policy, times))
    objective = ScoreAction(policy, kl_weight=KAPPA)
    kls = chain_kls_of(policy, times).tolist()
    slopes, offset, intercepts = value_slopes(policy, times), 0.0, [0.0]
    with torch.no_grad():
        shifts = [float(b) for _, b, _ in laws(policy, times)]
    for k in reversed(range(20)):  # V_k(x) = slope_k x + intercept_k
        offset += slopes[k + 1] * shifts[k] - KAPPA * kls[k]
        intercepts.append(offset)
    level = torch.tensor(intercepts[::-1])[:, None]
    costs = -KAPPA * torch.tensor(kls)

    def batch(seed: int):
        path = act(policy, times, 2000, seed)
        values = torch.tensor(slopes)[:, None] * path.states[:, :, 0] + level
        advantage = td_advantage(values.T, costs.expand(2000, -1), torch.ones(20)).T
        return policy, objective(flat(path, advantage, reference)).value

    found, error = estimate(batch, 16)
    assert error < 0.02
    assert found == pytest.approx(exact, abs=4 * error)


@every_kernel
@pytest.mark.parametrize("theta", [0.1, 0.9])
def test_score_action_by_the_slope_of_the_value(kernel, theta):
    times = grids.karras(PROCESS, 20)
    policy, reference = policy_at(theta, kernel), policy_at(0.0, kernel)
    exact = gradient(policy, objective_of(policy, times))
    follows = response(kernel, PROCESS, times[:-1], times[1:])
    slopes = follows * torch.tensor(value_slopes(policy, times)[1:])
    path = act(policy, times, 50)
    steps = flat(path, None, reference, slopes[:, None, None].expand(20, 50, 1))
    objective = ScoreAction(policy, kl_weight=KAPPA)
    assert -gradient(policy, objective(steps).value) == pytest.approx(exact, rel=1e-4)


@pytest.mark.slow
def test_the_critic_lowers_the_variance():
    """A critic's TD advantage has a smaller gradient error than the reward of the whole path."""
    times, policy = grids.karras(PROCESS, 20), policy_at(0.1, GDDIM(1.0))
    slopes = torch.tensor(value_slopes(policy, times))[:, None]
    objective = PolicyGradient(policy)

    def terminal(seed: int):
        path = act(policy, times, 300, seed)
        rewards = SLOPE * path.final[:, 0]
        return policy, objective(flat(path, (rewards - rewards.mean()).expand(20, -1))).value

    def critic(seed: int):
        path = act(policy, times, 300, seed)
        with torch.no_grad():
            shifts = torch.tensor([float(b) for _, b, _ in laws(policy, times)])[:, None]
        gained = (
            slopes[1:] * (path.states[1:, :, 0] - shifts) - slopes[:-1] * path.states[:-1, :, 0]
        )
        return policy, objective(flat(path, gained)).value

    assert estimate(critic, 20)[1] < 0.8 * estimate(terminal, 20)[1]


# ---------------------------------------------------------------------------- path KL


def kl_of(policy: Policy, reference: Policy, times: Tensor, batch: int = 50) -> float:
    """The path KL of a rollout's states, through the transitions of both policies."""
    steps = flat(act(policy, times, batch), torch.zeros(len(times) - 1, batch))
    place = (steps.x, steps.t, steps.t_next, steps.condition)
    with torch.no_grad():
        kls = policy.transition(*place).kl(reference.transition(*place))
    return float(kls.sum()) / batch


@pytest.mark.slow
@every_kernel
def test_path_kl_of_rollouts(kernel):
    theta = 0.7
    times = grids.uniform(PROCESS, 4000, t_end=1e-5)
    found = kl_of(policy_at(theta, kernel), policy_at(0.0, kernel), times, 5)
    assert found == pytest.approx(theta**2 / (2 * S0), rel=0.01)


@pytest.mark.parametrize("jitter", [False, True])
def test_the_kl_of_time_does_not_depend_on_the_grid(jitter):
    """The very same number at 20 steps and at 200; with jittered times even at 5."""
    theta, kernel = 0.7, EulerMaruyama(Memoryless())
    policy, reference = policy_at(theta, kernel), policy_at(0.0, kernel)
    counts = {5: 8000, 20: 2000, 200: 50} if jitter else {20: 5, 200: 5}
    for n, batch in counts.items():
        times = grids.karras(PROCESS, n, t_end=1e-4)
        steps = flat(act(policy, times, batch, jitter=jitter), None, reference, in_chain=False)
        with torch.no_grad():
            kl = reference_kl(policy.estimate(steps.x, steps.t, steps.condition), steps)
        assert float(kl.sum()) / batch == pytest.approx(theta**2 / (2 * S0), rel=0.02), n


@every_kernel
@pytest.mark.parametrize("make", [grids.karras, grids.uniform])
def test_the_kl_of_time_of_an_objective_is_the_integral_on_its_nodes(kernel, make):
    policy, reference = policy_at(0.7, kernel), policy_at(0.0, kernel)
    times = make(PROCESS, 6)
    steps = flat(act(policy, times, 5), torch.zeros(6, 5), reference, in_chain=False)
    estimate = policy.estimate(steps.x, steps.t, steps.condition)
    exact = kls_of(policy, times).detach()
    kls = reference_kl(estimate, steps).detach().view(6, 5)
    torch.testing.assert_close(kls.double(), exact[:, None].expand(6, 5), rtol=1e-4, atol=1e-6)
    loss = PolicyGradient(policy, kl_weight=2.0)(steps)
    assert float(loss.value.detach()) == pytest.approx(2.0 * float(exact.sum()), rel=1e-5)


@every_kernel
@pytest.mark.parametrize("make", [grids.karras, grids.uniform])
def test_the_kl_of_the_chain_is_that_of_its_transitions(kernel, make):
    """At any number of steps, the first one included, to float32."""
    policy, reference = policy_at(0.7, kernel, 3), policy_at(0.0, kernel, 3)
    times = make(PROCESS, 6)
    steps = flat(act(policy, times, 5), torch.zeros(6, 5), reference)
    with torch.no_grad():
        kls = reference_kl(policy.estimate(steps.x, steps.t, steps.condition), steps)
        pair = [
            p.transition(steps.x, steps.t, steps.t_next, steps.condition)
            for p in (policy, reference)
        ]
    torch.testing.assert_close(kls, pair[0].kl(pair[1]), rtol=1e-4, atol=1e-7)
    assert bool((kls.view(6, 5)[0] > 0).all())
    loss = PolicyGradient(policy, kl_weight=2.0)(steps)
    assert float(loss.value.detach()) == pytest.approx(2.0 * float(kls.sum()) / 5, rel=1e-4)


def test_the_kl_of_time_tends_to_the_kl_of_transitions():
    """Each node's share tends to the KL of its Gaussian step, so their sums tend to each other."""
    policy, reference = policy_at(0.7, GDDIM(1.0), 3), policy_at(0.0, GDDIM(1.0), 3)
    off = []
    for n in (40, 80, 160):
        times = grids.karras(PROCESS, n)
        steps = flat(act(policy, times, 5), None, reference, in_chain=False)
        with torch.no_grad():
            ours = reference_kl(policy.estimate(steps.x, steps.t, steps.condition), steps).sum() / 5
        off.append(abs(float(ours) / kl_of(policy, reference, times, 5) - 1))
    assert off[0] < 0.4
    assert off[2] < 0.6 * off[1] < 0.36 * off[0]


def test_the_kl_to_the_policy_that_acted():
    acting, moved = policy_at(0.2, GDDIM(1.0)), policy_at(0.5, GDDIM(1.0))
    times = grids.karras(PROCESS, 6)
    steps = flat(act(acting, times, 5), torch.zeros(6, 5))
    exact = kl_of(acting, moved, times, 5)
    estimate = moved.estimate(steps.x, steps.t, steps.condition)
    assert float(moved_kl(estimate, steps).sum().detach()) / 5 == pytest.approx(exact, rel=1e-4)
    for objective in (PolicyGradient, ScoreAction):
        plain = objective(moved, kl_weight=0.0)(steps)
        bound = objective(moved, kl_weight=0.0, trust=TrustRegion(moved, 0.1, coefficient=3.0))(
            steps
        )
        assert plain.metrics["approx_kl"] == pytest.approx(exact, rel=1e-4)
        assert float((bound.value - plain.value).detach()) == pytest.approx(3 * exact, rel=1e-4)
        assert objective(acting, kl_weight=0.0)(steps).metrics["approx_kl"] == 0


def test_what_is_missing_is_named():
    policy = policy_at(0.1, GDDIM(1.0))
    steps = flat(act(policy, grids.uniform(PROCESS, 3), 4), torch.zeros(3, 4))
    with pytest.raises(UserError, match=r"reference"):
        PolicyGradient(policy, kl_weight=0.1)(steps)
    with pytest.raises(UserError, match="slopes or advantages"):
        ScoreAction(policy, kl_weight=0.0)(replace(steps, advantage=None))
    with pytest.raises(UserError, match="needs advantages"):
        PolicyGradient(policy)(replace(steps, advantage=None))
    with pytest.raises(UserError, match=r"reference"):
        reference_kl(Estimate(steps.x, steps.x), steps)
    for objective in (PolicyGradient(policy), ScoreAction(policy, kl_weight=0.0)):
        with pytest.raises(UserError, match="stochastic step"):
            objective(replace(steps, x_next=None))


# ---------------------------------------------------------------------------- tried actions


def test_tried_actions_at_ratio_one_are_reinforce():
    """min(ρA, …) with ρ the ratio of Gaussians around the noise estimates: A (a − ε̂)/e² ∂ε̂."""
    policy, deviation = policy_at(0.2, GDDIM(1.0), dimension=4), 0.3
    path = act(policy, grids.uniform(PROCESS, 5), 64)
    blank = flat(path, torch.randn(5, 64))
    noise = policy.estimate(blank.x, blank.t, blank.condition).noise.detach()
    tried = noise + deviation * torch.randn_like(noise)
    steps = replace(blank, action=tried)
    found = gradient(
        policy, ScoreAction(policy, kl_weight=9.0, exploration=deviation)(steps).value
    )  # the KL is in the advantage, so its weight is not asked for
    said = policy.estimate(steps.x, steps.t, steps.condition).noise
    log_prob = -((tried - said) ** 2).sum(1) / (2 * deviation**2)
    assert found == pytest.approx(gradient(policy, -5 * (steps.advantage * log_prob).mean()), 1e-3)
    loss = ScoreAction(policy, exploration=deviation)(steps)
    assert float(loss.metrics["clip_fraction"]) == 0
    assert float(loss.metrics["approx_kl"]) == pytest.approx(0.0, abs=1e-9)


def test_a_policy_that_left_its_tried_actions_is_clipped():
    acting, moved = policy_at(0.0, GDDIM(1.0), 4), policy_at(3.0, GDDIM(1.0), 4)
    steps = flat(act(acting, grids.karras(PROCESS, 8), 64), torch.ones(8, 64))
    with torch.no_grad():
        said = moved.estimate(steps.x, steps.t, steps.condition).noise
    objective = ScoreAction(moved, clip=0.05, exploration=0.5)
    loss = objective(replace(steps, action=said))  # what it would do now: likelier than it was
    assert loss.metrics["clip_fraction"] > 0.5
    assert -8 * 1.05 <= float(loss.value.detach()) <= -8


# ---------------------------------------------------------------------------- trust region


def test_a_trust_region_grows_where_an_update_went_too_far():
    policy = policy_at(0.0, GDDIM(1.0))
    trust = TrustRegion(policy, radius=0.1)
    for kl, expected in ((0.2, 2.0), (0.9, 4.0), (0.1, 4.0), (0.05, 2.0), (0.01, 1.0), (0.09, 0.9)):
        trust.adapt(1, {"update_kl": kl})
        assert trust.coefficient == pytest.approx(expected)
    for _ in range(100):
        trust.adapt(1, {"update_kl": 0.0})
    assert trust.coefficient == 1e-4  # it does not wind up
    trust.adapt(1, {"update_kl": 1e9})
    assert trust.coefficient == 2e-4
    fresh = TrustRegion(policy, radius=0.1)
    fresh.restore(trust.state())
    assert fresh == trust


# ---------------------------------------------------------------------------- matching


def floor_of(t_min: float) -> float:
    """E_t Var(ε | x) = E_t α²S₀/(α²S₀ + σ²): what no network can predict."""
    t = torch.linspace(t_min, 1, 200001, dtype=torch.float64)
    signal = PROCESS.alpha(t) ** 2 * S0
    return float((signal / (signal + PROCESS.sigma(t) ** 2)).mean())


def matching_loss(theta: float, count: int = 200_000) -> tuple[float, float]:
    policy = policy_at(theta, GDDIM(1.0))
    x0 = MEAN + math.sqrt(S0) * torch.randn(count, 1)
    torch.manual_seed(1)
    loss = Matching(policy)(Examples(x0, Condition.none(count), torch.ones(count)))
    return float(loss.value.detach()), gradient(policy, loss.value)


def test_matching_of_the_exact_score_is_at_its_floor():
    value, slope = matching_loss(0.0)
    assert value == pytest.approx(floor_of(1e-3), rel=0.02)
    assert abs(slope) < 0.01
    assert matching_loss(0.5)[0] > value + 0.02
    assert matching_loss(0.5)[1] > 0.05 > -0.05 > matching_loss(-0.5)[1]


def test_matching_weighs_examples():
    policy = policy_at(0.0, GDDIM(1.0))
    x0 = torch.randn(100, 1)
    torch.manual_seed(1)
    plain = Matching(policy)(Examples(x0, Condition.none(100), torch.ones(100)))
    torch.manual_seed(1)
    double = Matching(policy)(Examples(x0, Condition.none(100), torch.full((100,), 2.0)))
    assert float(double.value.detach()) == pytest.approx(2 * float(plain.value.detach()))
    assert double.metrics == plain.metrics


# ---------------------------------------------------------------------------- the loop


def test_the_loop_climbs_the_reward():
    policy = policy_at(0.0, GDDIM(1.0))
    source = OnPolicy(
        policy=policy,
        prompts=Prompts(("go",), ("all",)),
        reward=lambda x, prompts: -((x[:, 0] - 2) ** 2),
        reward_name="distance",
        credit=GroupCredit(group=64),
        times=grids.karras(PROCESS, 10),
        sizes=Sizes(prompts=1, group=64, minibatch=640),
        seed=0,
        choose=any_steps(1.0),
    )
    seen: list[dict[str, float]] = []
    train(
        source,
        PolicyGradient(policy),
        torch.optim.Adam(policy.parameters(), lr=0.05),
        TorchEngine(),
        updates=range(40),
        hooks=[lambda update, metrics: seen.append({"update": update, **metrics})],
    )
    assert [line["update"] for line in seen] == list(range(1, 41))
    assert seen[-1]["reward"] > seen[0]["reward"] + 0.4
    assert 0.6 < float(policy.backbone.network.shift.detach()) < 1.6
    assert policy.calls == 40 * (640 + 640)  # acting and learning


@pytest.mark.parametrize("sizes", [[4, 4, 4], [4, 4, 1]])
def test_accumulated_minibatches_are_one_big_one(sizes):
    """Also where the last is smaller: every state weighs the same."""
    policy = policy_at(0.2, GDDIM(1.0))
    steps = flat(act(policy, grids.karras(PROCESS, 4), 4), torch.randn(4, 4))
    steps = steps.take(slice(0, sum(sizes)))
    bounds = [sum(sizes[:k]) for k in range(len(sizes) + 1)]
    parts = [steps.take(slice(a, b)) for a, b in pairwise(bounds)]

    moves = {}
    for accumulate, batches in ((0, [steps]), (0, parts), (3, parts), (9, parts), (2, parts)):
        moved, seen = one_round(batches, accumulate)
        moves[accumulate, len(batches)] = (moved, seen["loss"], seen["grad_norm"])
    for one_step in ((0, 3), (3, 3), (9, 3)):
        assert moves[one_step] == pytest.approx(moves[0, 1], rel=1e-5)
    assert abs(moves[2, 3][0] - moves[0, 1][0]) > 1e-4  # the second step saw a moved policy


def one_round(batches: list[Steps], accumulate: int) -> tuple[float, dict[str, float]]:
    """Where one round of plain gradient steps takes θ from 0.2, and what the hooks are told."""
    policy, seen = policy_at(0.2, GDDIM(1.0)), []

    class Source:
        def __call__(self, update: int) -> Round:
            return Round(batches, {}, accumulate)

    train(
        Source(),
        PolicyGradient(policy),
        torch.optim.SGD(policy.parameters(), lr=0.1),
        TorchEngine(),
        updates=range(1),
        clip_norm=math.inf,
        hooks=[lambda update, metrics: seen.append(metrics)],
    )
    return float(policy.backbone.network.shift.detach()), seen[0]


def test_without_accumulation_every_minibatch_is_a_step():
    policy = policy_at(0.2, GDDIM(1.0))
    steps = flat(act(policy, grids.karras(PROCESS, 4), 4), torch.randn(4, 4))
    parts = [steps.take(slice(0, 10)), steps.take(slice(10, 16))]
    optimiser = torch.optim.SGD(policy.parameters(), lr=0.1)
    for part in parts:
        optimiser.zero_grad()
        PolicyGradient(policy)(part).value.backward()
        optimiser.step()
    by_hand = float(policy.backbone.network.shift.detach())
    assert one_round(parts, 1)[0] == pytest.approx(by_hand, rel=1e-6)
