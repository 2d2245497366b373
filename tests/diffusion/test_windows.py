"""MixGRPO's window: where it lies, and that nothing outside it is random, learned or paid for."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import get_args

import pytest
import torch
from torch import Tensor

from scoretune import recipes
from scoretune.core.conditions import Condition
from scoretune.core.config import Sampling
from scoretune.core.errors import UserError
from scoretune.data.prompts import Prompts
from scoretune.diffusion import grids, solvers
from scoretune.diffusion.kernels import GDDIM, Constant, EulerMaruyama, Ramp, Renoise
from scoretune.diffusion.named import SCALES, grid, kernel, window
from scoretune.diffusion.processes import VP, RectifiedFlow
from scoretune.diffusion.scales import CPS
from scoretune.diffusion.windows import Window, anywhere, progressive
from scoretune.models import toy
from scoretune.policy import Policy
from scoretune.rl import tilt
from scoretune.rollout import Acting, prior, rollout
from scoretune.training import build, overrides

LAW = tilt.Mixture.of([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], 0.1)
STEPS, BATCH = 8, 6


def policy_on(process=None, act=None) -> Policy:
    process = process or RectifiedFlow()
    torch.manual_seed(0)
    control = toy.PerceptronControl(2, width=8)
    with torch.no_grad():
        for weight in control.parameters():
            weight.add_(0.1 * torch.randn_like(weight))  # else it is the pretrained one
    return Policy(toy.Controlled(toy.Mixture(process, LAW), control), act or GDDIM(1.2))


def roll(
    policy: Policy,
    times: Tensor,
    place: Window,
    seed: int = 0,
    noise_seed: int = 7,
    group: int = 1,
    reference: bool = False,
):
    noise = prior(policy, BATCH // group, torch.Generator().manual_seed(noise_seed))
    return rollout(
        policy,
        Condition.none(BATCH),
        times,
        torch.Generator().manual_seed(seed),
        noise.repeat_interleave(group, 0),
        acting=Acting(window=place, group=group),
        reference=reference,
    )


# ---------------------------------------------------------------------------- where it lies


def test_it_slides_and_begins_again():
    places = [progressive(u, 7, every=2, stride=3) for u in range(14)]
    assert places == [0, 0, 3, 3, 6, 6, 0, 0, 3, 3, 6, 6, 0, 0]


def test_stays_grow_shorter_towards_the_data():
    # ⌈20 e^{−.1(l−13)}⌉ for l > 13, as in arXiv 2507.21802: 20 thirteen times, 19, 17, 15, …
    cycle = Counter(progressive(u, 18, every=20, decay=0.1, decay_from=13) for u in range(400))
    assert [cycle[at] for at in (0, 13)] == [40, 20]  # 346 updates a cycle: it has begun again
    once = Counter(progressive(u, 18, every=20, decay=0.1, decay_from=13) for u in range(346))
    assert [once[at] for at in range(12, 18)] == [20, 20, 19, 17, 15, 14]


def test_it_jumps_anywhere_and_finds_itself_again():
    places = [anywhere(u, 5, every=3, seed=4) for u in range(600)]
    assert places == [anywhere(u, 5, every=3, seed=4) for u in range(600)]
    assert all(len(set(places[u : u + 3])) == 1 for u in range(0, 600, 3))
    shares = Counter(places[::3])
    assert sorted(shares) == list(range(5))
    assert min(shares.values()) > 20  # of 200, 40 expected
    assert places != [anywhere(u, 5, every=3, seed=5) for u in range(600)]


def test_a_window_has_a_length():
    with pytest.raises(ValueError, match="start < stop"):
        Window(3, 3)


@pytest.mark.parametrize(
    ("compress", "nodes"),
    [(1.0, [4, 5, 6, 7, 8]), (0.5, [4, 6, 8]), (0.4, [4, 6, 8]), (0.01, [4, 8])],
)
def test_the_steps_after_it_may_be_fewer(compress, nodes):
    assert Window(2, 4, compress=compress).nodes_after(8) == nodes
    assert Window(6, 8, compress=compress).nodes_after(8) == [8]


@pytest.mark.parametrize(
    ("changes", "places"),
    [
        # Flow-SDE's steps all have noise; gDDIM's last one, to data without any, has not.
        (["sampling.window.order=progressive", "sampling.window.every=1"], 15),
        (["sampling.kernel=gddim", "sampling.window.every=1"], 14),
        (["sampling.window.order=frozen"], 1),
        (["sampling.window.order=random", "sampling.window.every=1"], 15),
    ],
)
def test_a_run_visits_every_place(changes, places):
    run = overrides.changed(recipes.named("mix_grpo"), ["sampling.noise=constant", *changes])
    process = RectifiedFlow()
    at = window(run.sampling, grid(process, run.sampling), process, run.seed)
    starts = {at(u).start for u in range(400)}
    assert starts == set(range(places))
    assert {at(u).stop - at(u).start for u in range(400)} == {2}


# ---------------------------------------------------------------------------- rolling


@pytest.mark.parametrize("process", [RectifiedFlow(), VP()], ids=["flow", "VP"])
@pytest.mark.parametrize("solver", ["ddim", "heun", "dpmpp_2m"])
@pytest.mark.parametrize(("start", "stop"), [(0, 2), (3, 5), (6, 7)])
def test_outside_it_the_solver_walks_and_inside_the_kernel(process, solver, start, stop):
    policy, times = policy_on(process), grids.uniform(process, STEPS)
    path = roll(policy, times, Window(start, stop, solver))
    assert path.states.shape == (STEPS + 1, BATCH, 2)
    field = policy.field(path.condition)
    walk = solvers.SOLVERS[solver].function
    with torch.no_grad():
        if start:
            ahead = walk(process, field, path.states[0], times[: start + 1])
            torch.testing.assert_close(path.states[start], ahead)
        if stop < STEPS:
            behind = walk(process, field, path.states[stop], times[stop:])
            torch.testing.assert_close(path.final, behind)
        for k in range(start, stop):
            t, t_next = path.times[k], path.times[k + 1]
            law = policy.transition(path.states[k], t, t_next, path.condition)
            assert torch.equal(path.log_probs[k], law.log_prob(path.states[k + 1]))
    outside = [k for k in range(STEPS) if not start <= k < stop]
    assert path.noisy_steps.tolist() == list(range(start, stop))
    assert bool((path.log_probs[outside] == 0).all())
    assert bool((path.etas[outside] == 0).all())
    assert bool((path.kl_weights[outside] == 0).all())


def test_outside_it_nothing_is_random():
    policy, times = policy_on(), grids.uniform(RectifiedFlow(), STEPS)
    one, other = (roll(policy, times, Window(3, 5), seed) for seed in (0, 1))
    assert torch.equal(one.states[:4], other.states[:4])
    assert not bool(torch.isclose(one.states[4], other.states[4]).any())


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize(("solver", "a_step"), [("ddim", 1), ("heun", 2)])
def test_calls_of_the_network(group, solver, a_step):
    """The road to the window is travelled once a group; a reference looks at the window alone."""
    policy, times = policy_on(VP()), grids.uniform(VP(), STEPS)
    path = roll(policy, times, Window(3, 5, solver), group=group)
    assert policy.calls == 3 * a_step * (BATCH // group) + 2 * BATCH + 3 * a_step * BATCH
    before = policy.calls
    with_reference = roll(policy, times, Window(3, 5, solver), group=group, reference=True)
    assert policy.calls == 2 * before + 2 * BATCH
    assert torch.equal(path.states, with_reference.states)
    assert bool((with_reference.kls[3:5] > 0).all())
    assert bool((with_reference.kls[[0, 1, 2, 5, 6, 7]] == 0).all())


def test_a_shared_road_is_everyones_own():
    """One noise a group: the states up to the window are those of rolling each sample alone."""
    policy, times = policy_on(), grids.uniform(RectifiedFlow(), STEPS)
    shared = roll(policy, times, Window(4, 6), group=3)
    noise = shared.states[0]
    alone = rollout(
        policy,
        Condition.none(BATCH),
        times,
        torch.Generator().manual_seed(0),
        noise,
        acting=Acting(window=Window(4, 6)),
    )
    torch.testing.assert_close(shared.states, alone.states)
    for k in range(5):
        grouped = shared.states[k].view(2, 3, 2)
        assert torch.equal(grouped, grouped[:, :1].expand_as(grouped))


def test_a_window_over_the_whole_path_is_no_window():
    policy, times = policy_on(VP()), grids.karras(VP(), STEPS)
    path = roll(policy, times, Window(0, STEPS), reference=True)
    plain = rollout(
        policy,
        Condition.none(BATCH),
        times,
        torch.Generator().manual_seed(0),
        path.states[0],
        reference=True,
    )
    for name in ("states", "data", "log_probs", "etas", "kl_weights", "kls", "log_snr_steps"):
        assert torch.equal(getattr(path, name), getattr(plain, name)), name


# ---------------------------------------------------------------------------- learning


def source_of(*changes: str, policy: Policy):
    run = overrides.changed(
        recipes.named("mix_grpo"),
        ["sizes.prompts=2", "sizes.group=3", "sizes.minibatch=4", *changes],
    )
    prompts = Prompts(("go",), ("all",))
    checked = build.Checked(prompts, prompts, lambda x, _: -((x - 1) ** 2).sum(1), True)
    method = build.build_method(run, policy, checked)
    return method.objective, method.source, method.adaptive


@pytest.mark.parametrize("size", [1, 2, 5])
def test_an_update_pays_for_the_window_alone(size):
    policy = policy_on(act=EulerMaruyama(Constant(0.5)))
    objective, source, _ = source_of(f"sampling.window.size={size}", policy=policy)
    round_ = source(0)  # places itself at 0: no road to the window
    assert policy.calls == 16 * BATCH
    learned = sum(len(batch) for batch in round_.minibatches)
    assert learned == size * BATCH
    times = grids.uniform(RectifiedFlow(), 16)
    begun = torch.cat([batch.t for batch in round_.minibatches])
    assert sorted(set(begun.tolist())) == sorted(times[:size].tolist())
    spent = policy.calls
    for batch in round_.minibatches:
        objective(batch).value.backward()
    assert policy.calls == spent + learned


def test_the_loss_is_a_sum_over_the_window():
    """A mean over its states times their number on a path: the window's size, not the path's."""
    policy = policy_on(act=EulerMaruyama(Constant(0.5)))
    _, source, _ = source_of("sampling.window.size=3", policy=policy)
    assert {batch.path_steps for batch in source(0).minibatches} == {3.0}


# ---------------------------------------------------------------------------- noise by name


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["sampling.eta=1.5"], GDDIM(1.5)),
        (
            ["sampling.noise=ramp", "sampling.eta=1.5", "sampling.eta_end=0.5"],
            GDDIM(Ramp(1.5, 0.5)),
        ),
        (["sampling.kernel=renoise", "sampling.noise=cps", "sampling.eta=0.8"], Renoise(CPS(0.8))),
    ],
)
def test_a_noise_by_name(changes, expected):
    assert kernel(overrides.changed(recipes.named("grpo"), changes).sampling) == expected


def test_every_noise_of_the_configuration_has_its_scale():
    """`core.config` imports nothing of ours, so its choices are written there once more."""
    choices = get_args(Sampling.model_fields["noise"].annotation)
    assert set(choices) == {*SCALES, "cps"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["sampling.noise=cps"], "set sampling.kernel=renoise"),
        (["sampling.kernel=renoise", "sampling.noise=flow"], "set sampling.noise=constant or cps"),
        (
            ["sampling.kernel=renoise", "sampling.noise=cps", "sampling.eta=1.2"],
            "takes a level up to 1",
        ),
        (["sampling.noise=ramp"], "set eta_end"),
    ],
)
def test_a_noise_that_does_not_suit(changes, message):
    with pytest.raises(ValueError, match=message):
        kernel(overrides.changed(recipes.named("grpo"), changes).sampling)


@pytest.mark.parametrize("order", ["progressive", "random", "frozen"])
def test_a_window_longer_than_the_path(order):
    run = overrides.changed(
        recipes.named("mix_grpo"), [f"sampling.window.order={order}", "sampling.window.size=17"]
    )
    with pytest.raises(ValueError, match="leaves no place among the 16 steps"):
        window(run.sampling, grid(RectifiedFlow(), run.sampling), RectifiedFlow(), run.seed)


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("score_as_action", []),
        ("draft", []),
        ("dpok", []),
        ("grpo", ["sampling.jitter=true"]),
    ],
)
def test_a_window_for_a_method_that_has_no_use_for_it(recipe, changes):
    run = overrides.changed(recipes.named(recipe), ["sampling.window.size=2", *changes])
    with pytest.raises(UserError, match=r"sampling\.window"):
        build.check_settings(run, differentiable=True)


@pytest.mark.parametrize("eta", [0.3, 1.0, 10.0, 50.0])
def test_noise_that_grows_and_falls_has_finite_gradients(eta):
    """gDDIM under η(t), from rectified flow's t = 1, where ρ is infinite."""
    policy = policy_on(act=GDDIM(Ramp(eta, 0.1)))
    times = grids.uniform(RectifiedFlow(), STEPS)
    path = roll(policy, times, Window(0, STEPS - 1))
    total = torch.zeros(())
    for k, (t, t_next) in enumerate(pairwise(path.times)):
        if k < STEPS - 1:
            law = policy.transition(path.states[k], t, t_next, path.condition)
            total = total + law.log_prob(path.states[k + 1]).sum()
    total.backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in policy.parameters())
    assert any(bool((p.grad != 0).any()) for p in policy.parameters())
