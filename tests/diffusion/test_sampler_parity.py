"""The same samples as diffusers' schedulers, from the same noise, for every solver they share."""

import pytest
import torch

from scoretune.diffusion.estimates import Estimate, noise, read, velocity
from scoretune.diffusion.grids import diffusers_times
from scoretune.diffusion.processes import EDM, RectifiedFlow, expand
from scoretune.diffusion.solvers import (
    ddim,
    ddim_eta,
    dpmpp_2m,
    dpmpp_2m_sde,
    edm_heun,
    euler,
    gddim,
)

diffusers = pytest.importorskip("diffusers")

TABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LEADING = {**TABLE, "timestep_spacing": "leading", "steps_offset": 1}
SHAPE = (2, 4, 8, 8)
STEPS = 20


def network(x, label):
    return torch.tanh(0.7 * x + torch.sin(label / 160)) + 0.3 * x.flip(1)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def field_of(process):
    def field(x, t) -> Estimate:
        label = process.label(t).round().reshape(-1, 1, 1, 1)
        return read(process, noise, t, x, network(x, label))

    return field


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("sampler", [ddim_eta, gddim])
def test_euler_ancestral(sd15, sampler, seed):
    # Their state is x/α. Ancestral sampling there is DDIM(1), which is gDDIM(1).
    scheduler = diffusers.EulerAncestralDiscreteScheduler(**LEADING)
    scheduler.set_timesteps(STEPS)
    times = diffusers_times(sd15, STEPS, set_alpha_to_one=True)
    start, alpha = torch.randn(SHAPE, generator=seeded(seed)), sd15.alpha(times[0])
    theirs, draws = start / alpha, seeded(seed + 10)
    for index in scheduler.timesteps:
        output = network(scheduler.scale_model_input(theirs, index), index)
        theirs = scheduler.step(output, index, theirs, generator=draws).prev_sample
    ours = sampler(sd15, field_of(sd15), start, times, generator=seeded(seed + 10))
    close(ours, theirs)


@pytest.mark.parametrize("sampler", [ddim_eta, gddim])
def test_ddim_scheduler_with_noise(sd15, sampler):
    scheduler = diffusers.DDIMScheduler(**TABLE, clip_sample=False, steps_offset=1)
    scheduler.set_timesteps(STEPS)
    theirs = start = torch.randn(SHAPE, generator=seeded(0))
    draws = seeded(1)
    for index in scheduler.timesteps:
        output = network(theirs, index.float())
        theirs = scheduler.step(output, index, theirs, eta=1.0, generator=draws).prev_sample
    times = diffusers_times(sd15, STEPS, set_alpha_to_one=True)
    close(sampler(sd15, field_of(sd15), start, times, generator=seeded(1)), theirs)


@pytest.mark.parametrize("n", [10, 20])
@pytest.mark.parametrize("to_one", [True, False])
@pytest.mark.parametrize("lower_order_final", [True, False])
def test_sde_dpm_solver(sd15, n, to_one, lower_order_final):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **TABLE,
        algorithm_type="sde-dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        lower_order_final=lower_order_final,
        final_sigmas_type="zero" if to_one else "sigma_min",
    )
    times = diffusers_times(sd15, n, set_alpha_to_one=to_one)
    scheduler.set_timesteps(timesteps=sd15.label(times[:-1]).round().long().tolist())
    theirs = start = torch.randn(SHAPE, generator=seeded(2))
    draws = seeded(3)
    for index in scheduler.timesteps:
        output = network(theirs, index.float())
        theirs = scheduler.step(output, index, theirs, generator=draws).prev_sample
    ours = dpmpp_2m_sde(
        sd15,
        field_of(sd15),
        start,
        times,
        lower_order_final=lower_order_final,
        generator=seeded(3),
    )
    close(ours, theirs)


def test_heun_discrete(sd15):
    # Heun in σ/α on the state x/α, with two questions a step.
    scheduler = diffusers.HeunDiscreteScheduler(**LEADING)
    scheduler.set_timesteps(STEPS)
    times = diffusers_times(sd15, STEPS, set_alpha_to_one=True)
    start = torch.randn(SHAPE, generator=seeded(4))
    theirs = start / sd15.alpha(times[0])
    for index in scheduler.timesteps:
        output = network(scheduler.scale_model_input(theirs, index), index)
        theirs = scheduler.step(output, index, theirs).prev_sample
    close(edm_heun(sd15, field_of(sd15), start, times), theirs)


def preconditioned(x, t):
    """EDM's data estimate c_skip x + c_out F(c_in x), as its schedulers make it (σ_data .5)."""
    sigma = expand(t, x)
    total = torch.sqrt(sigma**2 + 0.25)
    output = network(x / total, 40 * torch.log(sigma))
    return 0.25 / total**2 * x + 0.5 * sigma / total * output


@pytest.mark.parametrize(
    ("kind", "sampler"),
    [("EDMEulerScheduler", euler), ("EDMDPMSolverMultistepScheduler", dpmpp_2m)],
)
def test_edm_schedulers(kind, sampler):
    scheduler = getattr(diffusers, kind)(sigma_data=0.5)
    scheduler.set_timesteps(STEPS)
    times = scheduler.sigmas[: STEPS + 1].clone()
    theirs = start = 80 * torch.randn(SHAPE, generator=seeded(5))
    for k, index in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(theirs, index)
        output = network(scaled, 40 * torch.log(times[k]))
        theirs = scheduler.step(output, index, theirs).prev_sample

    def field(x, t) -> Estimate:
        data = preconditioned(x, t)
        return Estimate(data, (x - data) / expand(t, x))

    process = EDM(sigma_max=float(times[0]))
    close(sampler(process, field, start, times), theirs)
    if sampler is euler:  # on σ(t) = t, DDIM is Euler
        close(ddim(process, field, start, times), theirs)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("sampler", [euler, ddim])
def test_flow_match_euler(shift, sampler):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(STEPS)
    theirs = start = torch.randn(SHAPE, generator=seeded(6))
    for index in scheduler.timesteps:
        theirs = scheduler.step(network(theirs, index), index, theirs).prev_sample

    def field(x, t) -> Estimate:
        output = network(x, 1000 * t.reshape(-1, 1, 1, 1))
        return read(RectifiedFlow(), velocity, t, x, output)

    close(sampler(RectifiedFlow(), field, start, scheduler.sigmas), theirs)
