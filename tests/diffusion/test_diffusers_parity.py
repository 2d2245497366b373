"""The same samples as diffusers' schedulers, on a deterministic fake network."""

import pytest
import torch

from scoretune.diffusion.estimates import Estimate, prediction_named, read
from scoretune.diffusion.grids import diffusers_times
from scoretune.diffusion.kernels import GDDIM, Posterior, Renoise, Still
from scoretune.diffusion.processes import Tabulated
from scoretune.diffusion.solvers import ddim, dpmpp_2m

diffusers = pytest.importorskip("diffusers")

TABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SHAPE = (2, 4, 8, 8)


def network(x, label):
    return torch.tanh(0.7 * x + torch.sin(label / 160)) + 0.3 * x.flip(1)


def field(process, prediction):
    def estimate(x, t) -> Estimate:
        output = network(x, process.label(t).round().reshape(-1, 1, 1, 1))
        return read(process, prediction_named(prediction), t, x, output)

    return estimate


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


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
    estimate, t_of = field(sd15, prediction), [times[k].expand(2) for k in range(len(times))]
    generator = torch.Generator().manual_seed(1)
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


@pytest.mark.parametrize("to_one", [True, False])
@pytest.mark.parametrize("n", [10, 20])
@pytest.mark.parametrize("lower_order_final", [True, False])
def test_dpm_solver_scheduler(sd15, to_one, n, lower_order_final):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **TABLE,
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        lower_order_final=lower_order_final,
        final_sigmas_type="zero" if to_one else "sigma_min",
    )
    times = diffusers_times(sd15, n, set_alpha_to_one=to_one)
    scheduler.set_timesteps(timesteps=sd15.label(times[:-1]).round().long().tolist())
    start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(2))
    theirs = start
    for index in scheduler.timesteps:
        theirs = scheduler.step(network(theirs, index.float()), index, theirs).prev_sample
    ours = dpmpp_2m(sd15, field(sd15, "epsilon"), start, times, lower_order_final=lower_order_final)
    close(ours, theirs)


def test_ddim_solver_is_the_scheduler(sd15):
    scheduler = diffusers.DDIMScheduler(**TABLE, clip_sample=False, steps_offset=1)
    scheduler.set_timesteps(20)
    start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))
    theirs = start
    for index in scheduler.timesteps:
        theirs = scheduler.step(network(theirs, index.float()), index, theirs).prev_sample
    times = diffusers_times(sd15, 20, set_alpha_to_one=True)
    close(ddim(sd15, field(sd15, "epsilon"), start, times), theirs)


def test_a_table_taken_from_a_scheduler():
    scheduler = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    process = Tabulated(tuple(scheduler.alphas_cumprod.tolist()))
    nodes = torch.arange(1, 1001) / 1000
    torch.testing.assert_close(
        process.alpha(nodes) ** 2, scheduler.alphas_cumprod, rtol=0, atol=2e-7
    )
