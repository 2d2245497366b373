"""Small parts that a configuration names: kernels and time grids."""

from __future__ import annotations

from torch import Tensor

from scoretune.config import Sampling
from scoretune.diffusion import grids, kernels
from scoretune.diffusion.processes import Process


def kernel(sampling: Sampling) -> kernels.Kernel:
    """The kernel a configuration names."""
    if sampling.kernel == "gddim":
        return kernels.GDDIM(sampling.eta)
    if sampling.kernel == "renoise":
        return kernels.Renoise(kernels.Posterior(sampling.eta))
    return kernels.EulerMaruyama(kernels.Constant(sampling.eta))


def grid(process: Process, sampling: Sampling) -> Tensor:
    """The times a configuration steps along."""
    make = {"uniform": grids.uniform, "karras": grids.karras}[sampling.grid]
    return make(process, sampling.steps)
