"""What a solver costs beside its network, and beside diffusers' schedulers.

A step is all but the network: reading the network's output and moving the state, on batches of 64
images 3×32×32. `ddim_step_over_unet_forward` is its share of one forward of a UNet of a million
parameters; for `rk45`, which chooses its own steps, the share is that of one network call.
`ddim_over_diffusers` compares with `scheduler.step` for the same update from the same output, and
`ddim_alone_over_diffusers` leaves out our reading of the output, though not theirs. Medians of
paired ratios of processor time: the two run in turn, so that a drifting machine favours neither.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from scoretune.diffusion.estimates import Estimate, noise, read, velocity
from scoretune.diffusion.grids import diffusers_times, uniform
from scoretune.diffusion.processes import Process, RectifiedFlow, Tabulated
from scoretune.diffusion.solvers import SOLVERS

SHAPE = (64, 3, 32, 32)
STEPS = 50
TABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
Work = Callable[[], object]


def solver_costs(pairs: int) -> dict[str, float]:
    """Medians of `pairs` ratios for every solver, by name."""
    costs = {}
    forward = unet_forward()
    for name in SOLVERS:
        ratios = paired_ratio(partial(solve, name), forward, pairs)
        steps = solve(name) if SOLVERS[name].calls is None else STEPS
        costs[f"{name}_step_over_unet_forward"] = statistics.median(ratios) / steps
    for name, theirs in schedulers().items():
        for label, reading in ((name, True), (f"{name}_alone", False)):
            ratios = paired_ratio(partial(solve, name, reading=reading), theirs, pairs)
            costs[f"{label}_over_diffusers"] = statistics.median(ratios)
    return {name: round(value, 4) for name, value in costs.items()}


def solve(name: str, reading: bool = True) -> int:
    """All steps of a solver, its network replaced by a fixed output; how often it was asked."""
    process: Process = RectifiedFlow() if name == "euler" else table()
    prediction = velocity if name == "euler" else noise
    x, output = states()
    fixed, calls = Estimate(x, output), 0

    def field(x: Tensor, t: Tensor) -> Estimate:
        nonlocal calls
        calls += 1
        return read(process, prediction, t, x, output) if reading else fixed

    with torch.inference_mode():
        SOLVERS[name].function(process, field, x, times_of(process))
    return calls


def schedulers() -> dict[str, Work]:
    """By our name for the same update: all of diffusers' steps, from the same output.

    `euler` is compared on rectified flow, and Heun's method in σ/α, as diffusers has it.
    """
    import diffusers

    table_of = {**TABLE, "timestep_spacing": "leading", "steps_offset": 1}
    multistep = partial(diffusers.DPMSolverMultistepScheduler, **table_of)
    ddim = diffusers.DDIMScheduler(**table_of, clip_sample=False)
    return {
        "ddim": partial(follow, _set(ddim)),
        "ddim_eta": partial(follow, _set(ddim), eta=1.0),
        "gddim": partial(follow, _set(diffusers.EulerAncestralDiscreteScheduler(**table_of))),
        "dpmpp_2m": partial(follow, _set(multistep())),
        "dpmpp_2m_sde": partial(follow, _set(multistep(algorithm_type="sde-dpmsolver++"))),
        "edm_heun": partial(follow, _set(diffusers.HeunDiscreteScheduler(**table_of))),
        "euler": partial(follow, _set(diffusers.FlowMatchEulerDiscreteScheduler())),
    }


def follow(ready: Any, **options: float) -> None:
    """All steps of a scheduler that is set, from a fixed output of a network."""
    scheduler = copy.copy(ready)  # its counters start anew
    x, output = states()
    with torch.inference_mode():
        for t in scheduler.timesteps:
            x = scheduler.step(output, t, x, **options).prev_sample


def _set(scheduler: Any) -> Any:
    scheduler.set_timesteps(STEPS)
    scheduler.is_scale_input_called = True  # their input scaling is not counted
    return scheduler


@cache
def states() -> tuple[Tensor, Tensor]:
    """A noisy batch and the fixed output of a network."""
    return torch.randn(SHAPE), torch.randn(SHAPE)


@cache
def table() -> Tabulated:
    """Stable Diffusion's table."""
    return Tabulated.scaled_linear()


def times_of(process: Process) -> Tensor:
    """The grid of a process that diffusers' schedulers use too."""
    if isinstance(process, Tabulated):
        return diffusers_times(process, STEPS)
    return uniform(process, STEPS, t_end=0.0)


def unet_forward() -> Work:
    """One forward of diffusers' UNet of 1.0 million parameters."""
    from diffusers import UNet2DModel

    unet = UNet2DModel(
        sample_size=32,
        block_out_channels=(24, 48, 72),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    )
    x, t = torch.zeros(SHAPE), torch.full((SHAPE[0],), 500)

    def forward() -> None:
        with torch.inference_mode():
            unet(x, t)

    return forward


def paired_ratio(first: Work, second: Work, pairs: int) -> list[float]:
    """Ratios first/second of processor time, run in turn after one warm-up of each."""
    first()
    second()
    return [_seconds(first) / _seconds(second) for _ in range(pairs)]


def _seconds(work: Work) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--pairs", type=int, default=5)
    torch.set_num_threads(1)
    for name, value in solver_costs(options.parse_args().pairs).items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
