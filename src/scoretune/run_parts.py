"""Small parts that a configuration names: kernels, time grids and windows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from scoretune import windows
from scoretune.config import Run, Sampling
from scoretune.diffusion import grids, kernels
from scoretune.diffusion.processes import Process, noise_ratio
from scoretune.errors import UserError
from scoretune.rollout import noisy_steps
from scoretune.windows import Window


def kernel(sampling: Sampling) -> kernels.Kernel:
    """The kernel a configuration names. Raises UserError where the noise is not of its kind."""
    renoises = sampling.kernel == "renoise"
    if renoises != (sampling.noise == "cps") and not (renoises and sampling.noise == "constant"):
        wanted = "sampling.noise=constant or cps" if renoises else "sampling.kernel=renoise"
        raise UserError(
            f"sampling.noise={sampling.noise} is not a noise of the kernel {sampling.kernel}: set "
            f"{wanted}"
        )
    if renoises:
        return kernels.Renoise(_posterior(sampling))
    scale = _scale(sampling)
    if sampling.kernel == "gddim":
        return kernels.GDDIM(sampling.eta if sampling.noise == "constant" else scale)
    if sampling.kernel == "exponential":
        return kernels.Exponential(scale)
    return kernels.EulerMaruyama(scale)


def _posterior(sampling: Sampling) -> kernels.Scale:
    if sampling.noise == "constant":
        return kernels.Posterior(sampling.eta)
    if sampling.eta > 1:
        raise UserError(
            f"sampling.noise=cps takes a level up to 1, got sampling.eta={sampling.eta:g}"
        )
    return kernels.CPS(sampling.eta)


def _scale(sampling: Sampling) -> kernels.Scale:
    if sampling.noise == "flow":
        return kernels.FlowSDE(sampling.eta)
    if sampling.noise == "dance":
        return kernels.DanceSDE(sampling.eta)
    if sampling.noise == "ramp":
        if sampling.eta_end is None:
            raise UserError("sampling.noise=ramp goes from sampling.eta to another: set eta_end")
        return kernels.Ramp(sampling.eta, sampling.eta_end)
    return kernels.Constant(sampling.eta)


def grid(process: Process, sampling: Sampling) -> Tensor:
    """The times a configuration steps along. Raises UserError where the kernel cannot."""
    kind = sampling.grid
    if kind == "auto":
        last = torch.tensor(process.horizon, dtype=torch.float64)
        kind = "karras" if bool(torch.isfinite(noise_ratio(process, last))) else "uniform"
    try:
        if kind == "shifted":
            times = grids.shifted(process, sampling.steps, sampling.shift)
        else:
            make = grids.karras if kind == "karras" else grids.uniform
            times = make(process, sampling.steps)
        noisy_steps(kernel(sampling), process, times)
    except ValueError as error:
        raise UserError(f"sampling.eta={sampling.eta:g} does not suit the grid: {error}") from error
    return times


def window(run: Run, times: Tensor, process: Process) -> Callable[[int], Window] | None:
    """Where the window of each update lies; None where every step is stochastic.

    Raises UserError for a window that is as long as the path.
    """
    chosen = run.sampling.window
    if not chosen.size:
        return None
    learnable = int(noisy_steps(kernel(run.sampling), process, times).sum())
    places = learnable - chosen.size + 1
    if places < 1:
        raise UserError(
            f"sampling.window.size={chosen.size} leaves no place among the {learnable} steps with "
            "noise: lower it, or set it to 0 for noise on every step"
        )

    def at(update: int) -> Window:
        if chosen.order == "frozen":
            start = 0
        elif chosen.order == "random":
            start = windows.anywhere(update, places, every=chosen.every, seed=run.seed)
        else:
            start = windows.progressive(
                update,
                places,
                every=chosen.every,
                stride=chosen.stride,
                decay=chosen.decay,
                decay_from=chosen.decay_from,
            )
        return Window(start, start + chosen.size, chosen.solver, chosen.compress)

    return at
