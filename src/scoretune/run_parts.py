"""Small parts that a configuration names: kernels and time grids."""

from __future__ import annotations

import torch
from torch import Tensor

from scoretune.config import Sampling
from scoretune.diffusion import grids, kernels
from scoretune.diffusion.estimates import Estimate
from scoretune.diffusion.processes import Process
from scoretune.errors import UserError


def kernel(sampling: Sampling) -> kernels.Kernel:
    """The kernel a configuration names."""
    if sampling.kernel == "gddim":
        return kernels.GDDIM(sampling.eta)
    if sampling.kernel == "renoise":
        return kernels.Renoise(kernels.Posterior(sampling.eta))
    if sampling.kernel == "exponential":
        return kernels.Exponential(kernels.Constant(sampling.eta))
    return kernels.EulerMaruyama(kernels.Constant(sampling.eta))


def grid(process: Process, sampling: Sampling) -> Tensor:
    """The times a configuration steps along."""
    make = grids.karras if sampling.grid == "karras" else grids.uniform
    times = make(process, sampling.steps)
    try:
        _probe(process, sampling, times)
    except ValueError as error:
        raise UserError(f"sampling.eta={sampling.eta:g} does not suit the grid: {error}") from error
    return times


def _probe(process: Process, sampling: Sampling, times: Tensor) -> None:
    """Take every step of the grid once with numbers; ValueError where the kernel cannot."""
    x = torch.zeros(len(times) - 1, 1)
    step = kernel(sampling)(process, x, Estimate(x, x), times[:-1], times[1:])
    step.log_prob(x)
