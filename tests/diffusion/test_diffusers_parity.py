"""The same samples as diffusers' schedulers, on a deterministic network, from the same noise."""

import pytest
import torch

from scoretune.diffusion.estimates import Estimate, prediction_named, read, velocity
from scoretune.diffusion.grids import diffusers_times
from scoretune.diffusion.kernels import GDDIM, Posterior, Renoise, Still
from scoretune.diffusion.processes import EDM, RectifiedFlow, Tabulated, expand
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


def field_of(process, prediction="epsilon"):
    def field(x, t) -> Estimate:
        output = network(x, process.label(t).round().reshape(-1, 1, 1, 1))
        return read(process, prediction_named(prediction), t, x, output)

    return field


def close(ours, theirs, tolerance=1e-4):
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("to_one", [True, False])
def test_ddim_scheduler(sd15, prediction, spacing, offset, to_one):
    options = {"steps_offset": offset, "set_alpha_to_one": to_one}
    scheduler = diffusers.DDIMScheduler(
        **TABLE,
        **options,
        timestep_spacing=spacing,
        clip_sample=False,
        prediction_type=prediction,
    )
    scheduler.set_timesteps(20)
    times = diffusers_times(sd15, 20, spacing=spacing, **options)
    estimate, t_of = field_of(sd15, prediction), [times[k].expand(2) for k in range(len(times))]
    generator = seeded(1)
    kernels = {0.0: Renoise(Still()), 0.4: Renoise(Posterior(0.4)), 1.0: GDDIM(1.0)}
    for eta, kernel in kernels.items():
        theirs = ours = torch.randn(SHAPE, generator=generator)
        for k, index in enumerate(scheduler.timesteps):
            noise = torch.randn(SHAPE, generator=generator)
            output = network(theirs, index.float())
            theirs = scheduler.step(output, index, theirs, eta=eta, variance_noise=noise)[0]
            if k + 1 < len(times):  # a last step of no length is left out
                t, t_next = t_of[k], t_of[k + 1]
                step = kernel(sd15, ours, estimate(ours, t), t, t_next)
                ours = step.draw_with(noise)
                assert torch.isfinite(step.std).all()
                assert bool(step.deterministic.all()) == (eta == 0 or float(t_next[0]) == 0)
            close(ours, theirs)


@pytest.mark.parametrize("n", [10, 20])
@pytest.mark.parametrize("to_one", [True, False])
@pytest.mark.parametrize("lower_order_final", [True, False])
@pytest.mark.parametrize(
    ("algorithm", "sampler"), [("dpmsolver++", dpmpp_2m), ("sde-dpmsolver++", dpmpp_2m_sde)]
)
def test_dpm_solver_scheduler(sd15, algorithm, sampler, n, to_one, lower_order_final):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **TABLE,
        algorithm_type=algorithm,
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
    noise = {} if sampler is dpmpp_2m else {"generator": seeded(3)}
    options = {"lower_order_final": lower_order_final, **noise}
    close(sampler(sd15, field_of(sd15), start, times, **options), theirs)


def test_ddim_solver_is_the_scheduler(sd15):
    scheduler = diffusers.DDIMScheduler(**TABLE, clip_sample=False, steps_offset=1)
    scheduler.set_timesteps(20)
    start = torch.randn(SHAPE, generator=seeded(3))
    theirs = start
    for index in scheduler.timesteps:
        theirs = scheduler.step(network(theirs, index.float()), index, theirs).prev_sample
    times = diffusers_times(sd15, 20, set_alpha_to_one=True)
    close(ddim(sd15, field_of(sd15), start, times), theirs)


def test_a_table_taken_from_a_scheduler():
    scheduler = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    process = Tabulated(tuple(scheduler.alphas_cumprod.tolist()))
    nodes = torch.arange(1, 1001) / 1000
    torch.testing.assert_close(
        process.alpha(nodes) ** 2, scheduler.alphas_cumprod, rtol=0, atol=2e-7
    )


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


def test_heun_discrete(sd15):
    # Heun in σ/α on the state x/α, with two calls a step.
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
