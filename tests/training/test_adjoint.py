"""Adjoint credit against torch.autograd through the whole rollout, and against computed by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from scoretune.core.conditions import Condition
from scoretune.core.errors import UserError
from scoretune.core.records import Scores, Steps, Trajectory
from scoretune.diffusion import grids
from scoretune.diffusion.estimates import Estimate
from scoretune.diffusion.kernels import (
    GDDIM,
    Constant,
    EulerMaruyama,
    Kernel,
    Memoryless,
    Posterior,
    Renoise,
    response,
)
from scoretune.diffusion.processes import VP, noise_ratio
from scoretune.models import toy
from scoretune.policy import Policy
from scoretune.rl import tilt
from scoretune.rollout import Acting, prior, rollout
from scoretune.training.credit.adjoint import AdjointCredit
from scoretune.training.credit.reward_gradient import RewardSlope
from scoretune.training.objectives.base import ScoreAction
from scoretune.training.sources.on_policy import transitions
from scoretune.training.sources.step_choice import Chooser, last_steps, one_of_last

PROCESS, STEPS, BATCH, KAPPA = VP(), 7, 6, 0.3
KERNELS = [
    GDDIM(1.0),
    GDDIM(0.5),
    GDDIM(0.0),
    Renoise(Posterior(0.7)),
    EulerMaruyama(Constant(1.0)),
]
every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=str)
LAW = tilt.Mixture.of([0.3, 0.7], [[-1.0, 0.5], [1.0, -0.5]], 0.1)


def nonlinear(kernel: Kernel) -> Policy:
    """A control that has been stirred, on a mixture in two dimensions, in float64."""
    control = toy.PerceptronControl(2, width=16).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in control.parameters():
            parameter += 0.3 * torch.randn(
                parameter.shape, generator=generator, dtype=torch.float64
            )
    return Policy(toy.Controlled(toy.Mixture(PROCESS, LAW), control), kernel)


def reward(x: Tensor, who: Tensor | None = None) -> Tensor:
    return torch.sin(x[:, 0]) - (x[:, 1] - 0.3) ** 2


def judged(x: Tensor, who: Tensor) -> Tensor:
    """A reward of each sample's own, so that samples must not be mixed up."""
    return reward(x) * (1 + who)


def act(
    policy: Policy, times: Tensor, batch: int = BATCH, reference: bool = False, **how
) -> Trajectory:
    generator = torch.Generator().manual_seed(0)
    noise = prior(policy, batch, generator).double()
    return rollout(
        policy,
        Condition.none(batch),
        times,
        generator,
        noise,
        acting=Acting(**how),
        reference=reference,
    )


def along(policy: Policy, path: Trajectory, first: Tensor, kl_weight: float) -> Tensor:
    """The differentiable rollout through the noise that was drawn: E[reward − κ·KL], exactly.

    Sample b is differentiated from its step `first[b]` on; what comes before is as it was.
    """
    x, gain = path.states[0], torch.zeros(len(first), dtype=path.states.dtype)
    for k, (t, t_next) in enumerate(pairwise(path.times)):
        learned = (k >= first).to(x.dtype)
        estimate = policy.estimate(x, t, path.condition)
        law = policy.move(x, estimate, t, t_next)
        with torch.no_grad():  # the noise that was drawn
            here = policy.move(
                path.states[k], policy.estimate(path.states[k], t, path.condition), t, t_next
            )
            drawn = path.states[k + 1] - here.mean
        with policy.reference():
            known = policy.estimate(x, t, path.condition).data
        change = ((estimate.data - known) ** 2).sum(1)
        gain = gain - learned * kl_weight * path.kl_weights[k] * change
        x = torch.where(learned[:, None] > 0, law.mean + drawn, path.states[k + 1])
    return (gain + judged(x, torch.arange(len(first)))).mean()


def gradient_of(value: Tensor, policy: Policy) -> Tensor:
    parts = torch.autograd.grad(value, policy.parameters())
    return torch.cat([part.flatten() for part in parts])


def learned(
    policy: Policy, path: Trajectory, choose: Chooser, credit: AdjointCredit
) -> tuple[Steps, Tensor]:
    """The chosen steps with their credit, and each sample's first of them."""
    k, b, count, *_ = choose(path, torch.Generator().manual_seed(3))
    scores = Scores(judged(path.final, torch.arange(path.data.shape[1])))
    steps = transitions(path, credit(path, scores, judged, k, b), k, b, count)
    first = torch.full((path.data.shape[1],), len(path.data)).scatter_reduce(0, b, k, "amin")
    return steps, first


# ---------------------------------------------------------------------------- through the rollout


@every_kernel
@pytest.mark.parametrize("kl_weight", [0.0, KAPPA])
@pytest.mark.parametrize(
    "choose",
    [last_steps(1), last_steps(3), last_steps(STEPS), last_steps(STEPS, random=True)],
    ids=["DRaFT-1", "DRaFT-3", "all", "AlignProp"],
)
def test_the_gradient_is_that_of_a_differentiable_rollout(kernel, choose, kl_weight):
    policy = nonlinear(kernel)
    path = act(policy, grids.karras(PROCESS, STEPS), reference=True)
    steps, first = learned(
        policy, path, choose, AdjointCredit(policy, kl_weight=kl_weight, at_once=4)
    )
    found = gradient_of(-ScoreAction(policy, kl_weight)(steps).value, policy)
    exact = gradient_of(along(policy, path, first, kl_weight), policy)
    assert float((found - exact).norm()) < 1e-4 * float(exact.norm())
    assert float(exact.norm()) > 1e-2


def test_jittered_times_change_nothing():
    policy = nonlinear(GDDIM(1.0))
    path = act(policy, grids.karras(PROCESS, STEPS), reference=True, jitter=True)
    credit = AdjointCredit(policy, kl_weight=KAPPA)
    steps, first = learned(policy, path, last_steps(STEPS), credit)
    found = gradient_of(-ScoreAction(policy, KAPPA)(steps).value, policy)
    exact = gradient_of(along(policy, path, first, KAPPA), policy)
    assert float((found - exact).norm()) < 1e-4 * float(exact.norm())


def test_neither_minibatches_nor_unused_steps_matter():
    policy = nonlinear(GDDIM(1.0))
    path = act(policy, grids.karras(PROCESS, STEPS))
    k, b = torch.tensor([6, 2, 4, 4]), torch.tensor([0, 5, 5, 1])
    scores = Scores(judged(path.final, torch.arange(BATCH)))
    some = [AdjointCredit(policy, at_once=m)(path, scores, judged, k, b) for m in (1, 64)]
    torch.testing.assert_close(some[0].data_slope, some[1].data_slope)
    whole, _ = learned(policy, path, last_steps(STEPS), AdjointCredit(policy))
    slopes = whole.data_slope.view(STEPS, BATCH, 2)
    torch.testing.assert_close(some[0].data_slope, slopes[k, b])
    assert some[0].metrics["adjoint_norm"] > 0
    assert not some[0].data_slope.requires_grad


def test_nothing_is_left_on_the_network():
    policy = nonlinear(GDDIM(1.0))
    path = act(policy, grids.karras(PROCESS, STEPS), reference=True)
    learned(policy, path, last_steps(STEPS), AdjointCredit(policy, kl_weight=KAPPA))
    assert all(parameter.grad is None for parameter in policy.parameters())
    assert not path.states.requires_grad


def test_an_adjoint_needs_a_gradient_of_the_reward():
    policy = nonlinear(GDDIM(1.0))
    path = act(policy, grids.karras(PROCESS, STEPS))
    k, b = torch.tensor([6]), torch.tensor([0])
    with pytest.raises(UserError, match="the reward has none"):
        AdjointCredit(policy)(
            path, Scores(path.final[:, 0]), lambda x, who: torch.ones(len(x)), k, b
        )


# ---------------------------------------------------------------------------- lean, by hand

S0, MEAN, SLOPE = 0.25, 1.0, 1.2


def affine(kernel: Kernel, theta: float = 0.7) -> Policy:
    """s_pre + θh on N(1, ¼), with a control of one number."""
    control = toy.HatControl(1, knots=2)
    with torch.no_grad():
        control.table[:, 0] = theta / S0**0.5
    return Policy(toy.Controlled(toy.Gaussian(PROCESS, MEAN, S0), control), kernel)


def lean_slopes(kernel: Kernel, times: Tensor) -> tuple[list[float], list[float]]:
    """(a_{k+1}, B_k) of each step: x̂0 = m + (αS₀/v)(x − αm), so every step is x' = A x + …."""
    rates, follows = [], []
    for t, t_next in pairwise(times.double()):
        at, then = t.expand(2), t_next.expand(2)
        alpha, sigma = PROCESS.alpha(t), PROCESS.sigma(t)
        spread = alpha**2 * S0 + sigma**2
        x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        data = MEAN + alpha * S0 / spread * (x - alpha * MEAN)
        noise = (x - alpha * data) / sigma
        mean = kernel(PROCESS, x, Estimate(data, noise), at, then).mean[:, 0]
        rates.append(float(mean[1] - mean[0]))
        kept = float(noise_ratio(PROCESS, t_next) / noise_ratio(PROCESS, t))
        follows.append(float(PROCESS.alpha(t_next)) * (1 - kept**2))  # of GDDIM(1)
    adjoints = [SLOPE]
    for rate in reversed(rates[1:]):
        adjoints.append(adjoints[-1] * rate)
    return adjoints[::-1], follows


def test_the_lean_adjoint_by_hand():
    """ã_k = Π A_j · w under the *pretrained* policy, wherever the acting one has gone."""
    policy = affine(GDDIM(1.0))
    times = grids.karras(PROCESS, STEPS)
    path = act(policy, times, reference=True)
    k, b = torch.arange(STEPS).repeat_interleave(BATCH), torch.arange(BATCH).repeat(STEPS)
    credit = AdjointCredit(policy, lean=True, at_once=4)
    said = credit(path, Scores(path.final[:, 0]), lambda x, who: SLOPE * x[:, 0], k, b)
    adjoints, follows = lean_slopes(GDDIM(1.0), times)
    expected = torch.tensor([a * f for a, f in zip(adjoints, follows, strict=True)])
    torch.testing.assert_close(
        said.data_slope.view(STEPS, BATCH).double(),
        expected.double()[:, None].expand(STEPS, BATCH),
        rtol=1e-4,
        atol=1e-6,
    )


def test_lean_and_full_adjoints_differ_by_the_policy():
    """They agree where the policy is the pretrained one, and only there."""
    times = grids.karras(PROCESS, STEPS)
    gaps = []
    for stir in (0.0, 1.0):
        policy = nonlinear(GDDIM(1.0))
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter *= stir
        path = act(policy, times)
        lean, full = (
            learned(policy, path, last_steps(STEPS), AdjointCredit(policy, lean=lean))[0]
            for lean in (True, False)
        )
        gaps.append(float((lean.data_slope - full.data_slope).norm()))
    assert gaps[0] < 1e-5
    assert gaps[1] > 1e-2


# ---------------------------------------------------------------------------- adjoint matching


def matching_loss(policy: Policy, steps: Steps, adjoint: Tensor, kl_weight: float) -> Tensor:
    """Adjoint matching, written down on its own (arXiv 2409.08861 eq. 37, for one Gaussian step):

        κ/(2c²) ‖mean_θ − mean_pre − c² ã/κ‖²,   c the std of the step,

    that is ½‖u + σᵀã‖²Δ with the control u = (mean_θ − mean_pre)/(c√Δ), times κ.
    """
    law = policy.transition(steps.x, steps.t, steps.t_next, steps.condition)
    with torch.no_grad(), policy.reference():
        known = policy.transition(steps.x, steps.t, steps.t_next, steps.condition)
    gap = law.mean - known.mean - law.std**2 * adjoint / kl_weight
    return steps.path_steps * (kl_weight * (gap / law.std) ** 2 / 2).sum(1).mean()


def matched(kernel: Kernel, steps: int, in_chain: bool = True) -> tuple[Policy, Steps, Tensor]:
    """A policy, all its steps with lean credit, and the lean adjoints where they arrive."""
    policy = nonlinear(kernel)
    path = act(policy, grids.karras(PROCESS, steps, t_end=0.02), reference=True)
    path = replace(path, in_chain=in_chain)
    credit = AdjointCredit(policy, lean=True)
    flat, _ = learned(policy, path, last_steps(steps), credit)
    return policy, flat, flat.data_slope / follows(kernel, flat)[:, None]


def follows(kernel: Kernel, steps: Steps) -> Tensor:
    return response(kernel, PROCESS, steps.t, steps.t_next)


@pytest.mark.parametrize("kernel", [GDDIM(1.0), EulerMaruyama(Memoryless())], ids=str)
def test_the_regression_onto_adjoints_has_this_gradient(kernel):
    """With the KL of the very step, B²/(2c²) ‖Δx̂‖², the two gradients are one."""
    policy, steps, adjoint = matched(kernel, STEPS)
    std = policy.transition(steps.x, steps.t, steps.t_next, steps.condition).std[:, 0].detach()
    exact = follows(kernel, steps) ** 2 / (2 * std**2)
    torch.testing.assert_close(steps.kl_weight.double(), exact.double())
    ours = gradient_of(ScoreAction(policy, KAPPA)(steps).value, policy)
    theirs = gradient_of(matching_loss(policy, steps, adjoint, KAPPA), policy)
    assert float((ours - theirs).norm()) < 1e-4 * float(theirs.norm())
    assert float(theirs.norm()) > 1e-2


@pytest.mark.slow
def test_with_the_kl_of_time_it_is_the_same_in_the_limit():
    """Weights of the integral instead of those of single steps: a difference of order Δ."""
    off = []
    for n in (8, 32, 128):
        policy, steps, adjoint = matched(GDDIM(1.0), n, in_chain=False)
        ours = gradient_of(ScoreAction(policy, KAPPA)(steps).value, policy)
        theirs = gradient_of(matching_loss(policy, steps, adjoint, KAPPA), policy)
        off.append(float((ours - theirs).norm() / theirs.norm()))
    assert off[0] < 0.3
    assert off[1] < 0.3 * off[0]
    assert off[2] < 0.1 * off[0]


# ---------------------------------------------------------------------------- ReFL


def test_refl_is_the_gradient_of_the_reward_at_the_estimate():
    policy = nonlinear(GDDIM(1.0))
    path = act(policy, grids.karras(PROCESS, STEPS))
    k, b, count, *_ = one_of_last(4)(path, torch.Generator().manual_seed(2))
    scores = Scores(judged(path.final, b))
    steps = transitions(path, RewardSlope()(path, scores, judged, k, b), k, b, count)
    found = gradient_of(-ScoreAction(policy, 0.0)(steps).value, policy)
    data = policy.estimate(path.states[k, b], path.times[k, b], path.condition).data
    exact = gradient_of(judged(data, b).mean(), policy)
    assert float((found - exact).norm()) < 1e-4 * float(exact.norm())


# ------------------------------------------------------------------- the graph kept, or not


def gradients_of(recipe: str, *changes: str) -> tuple[dict[str, float], torch.Tensor, int]:
    """Metrics, the whole gradient and the network evaluations of the first update of a run."""
    from scoretune import recipes
    from scoretune.training import overrides
    from scoretune.training.build import build
    from scoretune.training.loop import train

    given = ["model.precision=fp64", "model.rank=2", "sizes.prompts=3", "sampling.steps=4"]
    given.append("reward=brightness")
    torch.manual_seed(0)
    parts = build(overrides.changed(recipes.named(recipe), [*given, *changes]))
    for weight in parts.policy.parameters():  # else half of a fresh adapter has no gradient
        weight.data += 0.05 * torch.randn_like(weight)
    seen: dict[str, float] = {}
    found: list[torch.Tensor] = []

    class Looks(torch.optim.SGD):
        def step(self, closure=None):  # type: ignore[override]
            group = self.param_groups[0]["params"]
            found.append(torch.cat([p.grad.flatten().clone() for p in group]))

    train(
        parts.method.source,
        parts.method.objective,
        Looks(parts.policy.parameters(), lr=1.0),
        parts.engine,
        updates=[0],
        clip_norm=1e9,
        hooks=[lambda update, metrics: seen.update(metrics)],
    )
    assert len(found) == 1
    return seen, found[0], parts.policy.calls


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("draft", ["objective.last=3", "model.guidance=3"]),
        pytest.param(
            "draft",
            ["objective.last=4", "sampling.jitter=true", "hardware.device_batch=2"],
            marks=pytest.mark.slow,
        ),
        pytest.param("alignprop", ["objective.last=4"], marks=pytest.mark.slow),
        pytest.param("alignprop", ["objective.last=4", "sampling.eta=0"], marks=pytest.mark.slow),
        pytest.param(
            "alignprop",
            ["objective.last=3", "sizes.group=2", "sampling.shared_noise=true"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "draft",
            ["model.source=scenes-flow", "reward=reader + 0.5*brightness"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_kept_graph_has_the_gradient_of_the_adjoint(recipe, changes):
    kept, gradient, calls = gradients_of(recipe, *changes, "objective.graph=kept")
    apart, same, more = gradients_of(recipe, *changes, "objective.graph=steps")
    assert float(same.norm()) > 0
    # The reward is worked out in float32, which is what they differ by.
    assert float((gradient - same).norm() / same.norm()) < 1e-5
    assert kept["reward"] == pytest.approx(apart["reward"], abs=1e-6)
    samples = 3 * (2 if "sizes.group=2" in changes else 1)
    assert calls == samples * 4 * (2 if "model.guidance=3" in changes else 1) < more
    assert {name for name in kept if name.startswith("reward")} == {
        name for name in apart if name.startswith("reward")
    }


def test_a_graph_that_cannot_be_kept():
    from scoretune import recipes
    from scoretune.training import build, overrides
    from scoretune.training.objectives.direct import keeps_graph

    for changes in (["objective.kl_weight=0.1"], ["sizes.accumulate=2"]):
        run = overrides.changed(recipes.draft(), [*changes, "objective.graph=kept"])
        with pytest.raises(UserError, match=r"objective\.graph=kept knows no KL"):
            build.check_settings(run, True)
        plain = overrides.changed(recipes.draft(), changes)
        build.check_settings(plain, True)
        assert not keeps_graph(plain.objective, build.context_of(plain))
    sparing = overrides.changed(recipes.draft(), ["hardware.checkpointing=true"])
    assert not keeps_graph(sparing.objective, build.context_of(sparing))
    whole = recipes.alignprop()
    assert keeps_graph(whole.objective, build.context_of(whole))
