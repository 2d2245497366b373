"""Our samplers and diffusers' schedulers agree along whole trajectories of the shipped network."""

from __future__ import annotations

import math

import diffusers
import pytest
import torch

from scoretune.data.scenes import world
from scoretune.diffusion import grids, solvers
from scoretune.diffusion.kernels import GDDIM, Constant, EulerMaruyama, Posterior, Renoise, Still
from scoretune.models.families import FAMILIES
from scoretune.policy import Policy
from scoretune.rollout import rollout
from slow_cases import slow

PROMPTS = ["a red seven", "two fives"]
STOCHASTIC = [GDDIM(0.5), GDDIM(1.0), Renoise(Posterior(1.0)), EulerMaruyama(Constant(1.0))]


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Policy(FAMILIES["StableDiffusionPipeline"].load(str(world.shipped())), Renoise(Still()))


@pytest.fixture
def start() -> torch.Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(4))


@torch.no_grad()
def ddim_scheduler(policy, start, steps, **options):
    """States [N+1, B, *S] of diffusers' DDIM with the pipeline's own tables."""
    config = {**policy.backbone.pipeline.scheduler.config, **options}
    scheduler = diffusers.DDIMScheduler.from_config(config)
    scheduler.set_timesteps(steps)
    return states_of(policy, scheduler, start, eta=0.0)


@torch.no_grad()
def states_of(policy, scheduler, start, **options):
    tokens = policy.backbone.encode(PROMPTS).summary
    states = [start]
    for index in scheduler.timesteps:
        network = policy.backbone.network
        output = network(states[-1], index, encoder_hidden_states=tokens).sample
        states.append(scheduler.step(output, index, states[-1], **options).prev_sample)
    return torch.stack(states)


@torch.no_grad()
def our_ddim(policy, start, times):
    """The states of `solvers.ddim`, one solve for each pair of times."""
    field = policy.field(policy.backbone.encode(PROMPTS))
    states = [start]
    for k in range(len(times) - 1):
        states.append(solvers.ddim(policy.backbone.process, field, states[-1], times[k : k + 2]))
    return torch.stack(states)


def close(ours, theirs):
    assert torch.isfinite(ours).all()
    assert torch.isfinite(theirs).all()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("spacing", "offset", "to_one"),
    [
        ("leading", 1, True),
        ("trailing", 0, False),
        *(slow("leading", *each) for each in ((0, True), (0, False), (1, False))),
        *(slow("trailing", *each) for each in ((0, True), (1, True), (1, False))),
    ],
)
def test_ddim(policy, start, spacing, offset, to_one):
    options = {"steps_offset": offset, "set_alpha_to_one": to_one}
    theirs = ddim_scheduler(policy, start, 10, timestep_spacing=spacing, **options)
    times = grids.diffusers_times(policy.backbone.process, 10, spacing=spacing, **options)
    ours = our_ddim(policy, start, times)
    close(ours, theirs[: len(ours)])
    close(ours[-1], theirs[-1])  # a last step of no length, which we leave out, changes nothing


def test_ddim_in_one_call(policy, start):
    process = policy.backbone.process
    field = policy.field(policy.backbone.encode(PROMPTS))
    times = grids.diffusers_times(process, 20, spacing="trailing")
    with torch.no_grad():
        ours = solvers.ddim(process, field, start, times)
    close(ours, ddim_scheduler(policy, start, 20)[-1])


def test_the_shipped_scheduler_makes_the_uniform_grid(policy):
    # trailing spacing with set_alpha_to_one=False: equal steps down to the first node, nearly.
    process = policy.backbone.process
    theirs = grids.diffusers_times(process, 20, spacing="trailing")
    ours = grids.uniform(process, 20)
    assert len(ours) == len(theirs)
    assert float((ours - theirs).abs().max()) <= 1e-3


@pytest.mark.parametrize("steps", [8, slow(20)])
@pytest.mark.parametrize("to_one", [True, False])
def test_dpm_solver(policy, start, steps, to_one):
    table = policy.backbone.pipeline.scheduler.config
    scheduler = diffusers.DPMSolverMultistepScheduler(
        beta_start=table.beta_start,
        beta_end=table.beta_end,
        beta_schedule=table.beta_schedule,
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        final_sigmas_type="zero" if to_one else "sigma_min",
    )
    process = policy.backbone.process
    times = grids.diffusers_times(process, steps, spacing="trailing", set_alpha_to_one=to_one)
    scheduler.set_timesteps(timesteps=process.label(times[:-1]).round().long().tolist())
    theirs = states_of(policy, scheduler, start)[-1]
    with torch.no_grad():
        field = policy.field(policy.backbone.encode(PROMPTS))
        ours = solvers.dpmpp_2m(process, field, start, times)
    close(ours, theirs)


@pytest.mark.parametrize("kernel", STOCHASTIC, ids=str)
@pytest.mark.parametrize(
    ("spacing", "offset", "to_one"),
    [
        ("trailing", 1, False),
        ("leading", 0, False),
        slow("leading", 1, False),
        slow("trailing", 0, False),
    ],
)
def test_log_probabilities_are_finite_on_their_grids(
    policy, start, kernel, spacing, offset, to_one
):
    times = grids.diffusers_times(
        policy.backbone.process, 6, spacing=spacing, steps_offset=offset, set_alpha_to_one=to_one
    )
    acting = Policy(policy.backbone, kernel)
    path = rollout(
        acting, policy.backbone.encode(PROMPTS), times, torch.Generator().manual_seed(0), start
    )
    assert torch.isfinite(path.states).all()
    assert torch.isfinite(path.data).all()
    assert torch.isfinite(path.log_probs).all()
    assert policy.backbone.decode(path.final).isfinite().all()


@pytest.mark.parametrize("kernel", STOCHASTIC[:3], ids=str)
def test_a_last_step_to_alpha_one_is_the_estimate_without_noise(policy, start, kernel):
    times = grids.diffusers_times(policy.backbone.process, 4, set_alpha_to_one=True)
    acting = Policy(policy.backbone, kernel)
    condition = policy.backbone.encode(PROMPTS)
    path = rollout(acting, condition, times, torch.Generator().manual_seed(0), start)
    assert path.noisy.tolist() == [True, True, True, False]
    assert torch.isfinite(path.log_probs).all()
    assert not path.log_probs[-1].any()
    torch.testing.assert_close(path.final, path.data[-1])


@pytest.mark.parametrize("make", [grids.uniform, grids.karras])
@pytest.mark.parametrize("kernel", STOCHASTIC, ids=str)
def test_our_own_grids_are_finite_too(policy, start, kernel, make):
    path = rollout(
        Policy(policy.backbone, kernel),
        policy.backbone.encode(PROMPTS),
        make(policy.backbone.process, 5),
        torch.Generator().manual_seed(0),
        start,
    )
    assert torch.isfinite(path.log_probs).all()
    assert math.isfinite(float(path.final.sum()))
