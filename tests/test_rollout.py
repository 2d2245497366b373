"""Rollouts: with noise or behind an ODE solver, on fixed times or jittered; what they remember."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from scoretune.core.conditions import Condition
from scoretune.core.errors import UserError
from scoretune.core.records import Trajectory
from scoretune.diffusion import grids
from scoretune.diffusion.kernels import GDDIM, Constant, EulerMaruyama, Posterior, Renoise
from scoretune.diffusion.paths import chain_weights, girsanov_weights, log_snr_steps
from scoretune.diffusion.processes import VP, Process, RectifiedFlow, Tabulated
from scoretune.diffusion.solvers import ODE_SOLVERS, ddim_step
from scoretune.models import toy
from scoretune.policy import Policy
from scoretune.rollout import Acting, deterministic, prior, rollout

THETA, MEAN, S0 = 0.7, 1.0, 0.25
STEPS, BATCH = 6, 5
every_solver = pytest.mark.parametrize("solver", sorted(ODE_SOLVERS))


class Pull(nn.Module):
    """A control that pulls the data by THETA at every state and time: s_pre + θh."""

    def forward(self, x: Tensor, data: Tensor, angle: Tensor) -> Tensor:
        return torch.full_like(x, THETA / S0**0.5)


@dataclass
class Featured(toy.Controlled):
    """A controlled Gaussian that lets a critic see 2x and t."""

    feature_size: int = 2

    def predict_with_features(self, x: Tensor, t: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return self.predict(x, t, tokens), torch.cat([2 * x, t[:, None]], 1)


def policy_on(process: Process, kernel=None, dimension: int = 1) -> Policy:
    base = toy.Gaussian(process, MEAN, S0, dimension)
    return Policy(Featured(base, Pull()), kernel or GDDIM(1.0))


def act(
    policy: Policy, times: Tensor, batch: int = BATCH, seed: int = 0, *, reference=False, **how
) -> Trajectory:
    generator = torch.Generator().manual_seed(seed)
    noise = prior(policy, batch, generator)
    condition, acting = Condition.none(batch), Acting(**how)
    return rollout(policy, condition, times, generator, noise, acting=acting, reference=reference)


# ---------------------------------------------------------------------------- behind a solver


@every_solver
@pytest.mark.parametrize("jitter", [False, True])
@pytest.mark.parametrize("process", [VP(), RectifiedFlow()], ids=["VP", "RectifiedFlow"])
def test_a_solvers_path_is_the_solvers(process, solver, jitter):
    """It ends where `solvers` ends on the same nodes, and data[k] is the estimate at states[k]."""
    policy, times = policy_on(process), grids.uniform(process, STEPS)
    path = act(policy, times, solver=solver, jitter=jitter)
    final = deterministic(policy, path.condition, path.times, path.states[0], solver)
    assert torch.equal(path.final, final)
    if not jitter:
        plain = deterministic(policy, path.condition, times, path.states[0], solver)
        assert torch.equal(final, plain)
    with torch.no_grad():
        for k in range(STEPS):
            estimate = policy.estimate(path.states[k], path.times[k], path.condition)
            assert torch.equal(path.data[k], estimate.data)
    assert path.states.shape == (STEPS + 1, BATCH, 1)
    assert path.times.shape == (STEPS + 1, BATCH)
    assert path.log_probs is None
    assert bool((path.etas == 0).all())


@pytest.mark.parametrize("solver", ["ddim", "heun"])
@pytest.mark.parametrize("jitter", [False, True])
def test_a_one_step_solvers_states_are_its_own_steps(solver, jitter):
    """Each state is one step from the state before it, never one that was only looked at."""
    policy, times = policy_on(VP()), grids.karras(VP(), STEPS)
    path = act(policy, times, solver=solver, jitter=jitter)
    for k in range(STEPS):
        pair = path.times[k : k + 2]
        arrived = deterministic(policy, path.condition, pair, path.states[k], solver)
        torch.testing.assert_close(path.states[k + 1], arrived)


def test_a_multistep_solvers_states_are_those_of_shorter_solves():
    """DPM-Solver++(2M) from 15 steps on has no lower-order end, so a prefix is a solve."""
    policy, times = policy_on(VP()), grids.karras(VP(), 20)
    path = act(policy, times, solver="dpmpp_2m")
    for k in (15, 17, 19):
        prefix = deterministic(policy, path.condition, times[: k + 1], path.states[0], "dpmpp_2m")
        torch.testing.assert_close(path.states[k], prefix)


def midpoint(process, field, x, times, *, visit=None):
    """A solver that looks between the nodes, and again at a node that it has left."""
    for k, (t, t_next) in enumerate(pairwise(times)):
        estimate = field(x, t)
        if visit is not None:
            visit(k, x, estimate)
        half = (t + t_next) / 2
        between = ddim_step(process, x, estimate, t, half)
        x = ddim_step(process, between, field(between, half), half, t_next)
        field(x, t)  # to see how far it went
    return x


@pytest.mark.parametrize("jitter", [False, True])
def test_a_solver_may_look_between_the_nodes(jitter, monkeypatch):
    row = replace(ODE_SOLVERS["ddim"], function=midpoint, calls=3)
    monkeypatch.setattr("scoretune.rollout.ODE_SOLVERS", {"midpoint": row})
    policy, times = policy_on(VP()), grids.karras(VP(), STEPS)
    path = act(policy, times, solver="midpoint", jitter=jitter)
    for k in range(STEPS):
        x, pair = path.states[k], path.times[k : k + 2]
        assert torch.equal(path.data[k], policy.estimate(x, path.times[k], path.condition).data)
        arrived = midpoint(VP(), policy.field(path.condition), x, pair)
        assert torch.equal(path.states[k + 1], arrived)


@every_solver
def test_what_a_solver_asks_is_counted(solver):
    policy = policy_on(VP())
    act(policy, grids.karras(VP(), STEPS), solver=solver)
    a_step = ODE_SOLVERS[solver].calls
    assert policy.calls == STEPS * a_step * BATCH


def test_a_solvers_path_kl_is_that_of_the_reverse_sde():
    """The ODE has none of its own; on Gaussian data θ²/(2S₀) whatever the states."""
    for solver in ODE_SOLVERS:
        path = act(policy_on(VP()), grids.karras(VP(), 100), solver=solver, reference=True)
        total = path.kls.sum(0)
        torch.testing.assert_close(
            total, torch.full((BATCH,), THETA**2 / (2 * S0)), rtol=5e-3, atol=0
        )


def test_an_unknown_solver_is_named():
    with pytest.raises(UserError, match="did you mean 'heun'"):
        act(policy_on(VP()), grids.karras(VP(), 3), solver="heum")


# ---------------------------------------------------------------------------- with noise


@pytest.mark.parametrize("jitter", [False, True])
@pytest.mark.parametrize(
    "kernel", [GDDIM(1.0), Renoise(Posterior(0.7)), EulerMaruyama(Constant(0.5))], ids=str
)
def test_what_a_stochastic_path_remembers(kernel, jitter):
    policy, times = policy_on(VP(), kernel), grids.karras(VP(), STEPS)
    path = act(policy, times, jitter=jitter)
    assert policy.calls == STEPS * BATCH
    with torch.no_grad():
        for k, (t, t_next) in enumerate(pairwise(path.times)):
            estimate = policy.estimate(path.states[k], t, path.condition)
            law = policy.move(path.states[k], estimate, t, t_next)
            assert torch.equal(path.data[k], estimate.data)
            assert torch.equal(path.log_probs[k], law.log_prob(path.states[k + 1]))
    assert torch.equal(path.log_snr_steps, log_snr_steps(VP(), times, path.times))
    weights = girsanov_weights(VP(), path.times[:-1], path.etas, path.log_snr_steps)
    assert torch.equal(path.girsanov_weights, weights)
    chain = chain_weights(kernel, VP(), path.times[:-1], path.times[1:])
    assert torch.equal(path.kl_weights, chain)
    assert path.kls is None
    assert path.reference_data is None
    assert path.features is None


def test_a_fixed_grid_is_shared_and_a_jittered_one_is_not():
    times = grids.karras(VP(), STEPS)
    fixed = act(policy_on(VP()), times)
    assert torch.equal(fixed.times, times[:, None].expand(-1, BATCH))
    moved = act(policy_on(VP()), times, jitter=True)
    assert torch.equal(moved.times[0], fixed.times[0])
    assert torch.equal(moved.times[-1], fixed.times[-1])
    assert all(len(row.unique()) == BATCH for row in moved.times[1:-1])


@pytest.mark.parametrize("options", [{}, {"solver": "heun"}])
def test_a_seed_repeats_a_jittered_rollout(options):
    times = grids.karras(VP(), STEPS)
    one, same, other = (
        act(policy_on(VP()), times, seed=seed, jitter=True, **options) for seed in (3, 3, 4)
    )
    for name in ("states", "data", "times", "kl_weights"):
        assert torch.equal(getattr(one, name), getattr(same, name)), name
    assert not torch.equal(one.times, other.times)


def test_looking_on_changes_nothing():
    """The reference and the features are asked for without another random number."""
    times, policy = grids.karras(VP(), STEPS), policy_on(VP())
    plain = act(policy, times, jitter=True)
    watched = act(policy, times, jitter=True, reference=True, features=True)
    assert torch.equal(plain.states, watched.states)
    assert torch.equal(plain.times, watched.times)
    assert policy.calls == 3 * STEPS * BATCH  # acting twice, and the reference once


@pytest.mark.parametrize("options", [{}, {"jitter": True}, *({"solver": s} for s in ODE_SOLVERS)])
def test_features_are_of_the_state_they_stand_beside(options):
    path = act(policy_on(VP()), grids.karras(VP(), STEPS), features=True, **options)
    assert path.features.shape == (STEPS, BATCH, 2)
    torch.testing.assert_close(path.features[..., :1], 2 * path.states[:-1])
    torch.testing.assert_close(path.features[..., 1], path.times[:-1])


def test_features_that_a_network_has_not():
    policy = Policy(toy.Gaussian(VP()), GDDIM(1.0))
    with pytest.raises(UserError, match=r"no features to share: set objective\.critic\.body=small"):
        act(policy, grids.karras(VP(), 3), features=True)


# ---------------------------------------------------------------------------- the path KL


@pytest.mark.parametrize(
    "process", [VP(), RectifiedFlow(), Tabulated.scaled_linear()], ids=lambda p: type(p).__name__
)
@pytest.mark.parametrize(("kernel", "factor"), [(GDDIM(1.0), 1.0), (GDDIM(0.5), 1.5625)])
def test_rollouts_report_one_kl_of_time_at_any_number_of_steps(process, kernel, factor):
    policy = policy_on(process, kernel)
    means = {}
    for n, batch in ((5, 8000), (20, 1500), (100, 100)):
        times = grids.shifted(process, n, 1.5, t_end=1e-3)
        kls = act(policy, times, batch, jitter=True, reference=True).girsanov_kl
        assert float(kls.std()) / batch**0.5 < 0.007 * float(kls.mean())
        means[n] = float(kls.mean())
    exact = factor * THETA**2 / (2 * S0)  # a table, which starts at its first node, lacks .5 %
    for n, kl in means.items():
        assert kl == pytest.approx(exact, rel=0.02), n


def test_the_kl_of_a_sum_of_dimensions_is_a_sum():
    times = grids.karras(VP(), STEPS)
    one, three = (act(policy_on(VP(), dimension=d), times, 2, reference=True).kls for d in (1, 3))
    torch.testing.assert_close(three, 3 * one)


@pytest.mark.parametrize("options", [{}, {"jitter": True}, {"solver": "dpmpp_2m"}])
def test_the_reference_is_asked_at_the_visited_states(options):
    policy, times = policy_on(VP()), grids.karras(VP(), STEPS)
    path = act(policy, times, reference=True, **options)
    bare = Policy(toy.Gaussian(VP(), MEAN, S0), GDDIM(1.0))
    with torch.no_grad():
        for k in range(STEPS):
            pretrained = bare.estimate(path.states[k], path.times[k], path.condition).data
            torch.testing.assert_close(path.reference_data[k], pretrained, rtol=1e-4, atol=1e-4)
    change = ((path.data - path.reference_data) ** 2).sum(2)
    torch.testing.assert_close(path.kls, path.kl_weights * change)
