"""Samplers with noise of one network call a step: each follows a kernel of constant η.

`(process, field, x, times, *, eta, generator) -> x0` with x [B, *S] at times[0]; the result is the
state at times[-1]. A step without noise draws none, and a step to σ = 0 has none. States are kept
in float32 or wider; a CPU generator serves any device.
"""

import torch
from torch import Tensor

from scoretune.diffusion.estimates import Field
from scoretune.diffusion.kernels import (
    GDDIM,
    Constant,
    EulerMaruyama,
    Exponential,
    Posterior,
    Renoise,
)
from scoretune.diffusion.processes import Process
from scoretune.diffusion.solvers.base import KernelSampler

Generator = torch.Generator | None


def euler_maruyama(
    process: Process,
    field: Field,
    x: Tensor,
    times: Tensor,
    *,
    eta: float = 1.0,
    generator: Generator = None,
) -> Tensor:
    """Euler–Maruyama on the family of constant η: weak order 1, unstable for large η in few steps.

    dx = [f x − (1+η²)/2 g² s] dt + η g dw̄ (arXiv 2011.13456); η = 0 is `euler`.
    """
    sampler = KernelSampler(EulerMaruyama(Constant(eta)))
    return sampler(process, field, x, times, generator=generator)


def ddim_eta(
    process: Process,
    field: Field,
    x: Tensor,
    times: Tensor,
    *,
    eta: float = 1.0,
    generator: Generator = None,
) -> Tensor:
    """DDIM(η) (arXiv 2010.02502 eq. 12), ancestral DDPM at η = 1: order 1.

    Raises ValueError where η asks for more noise than a step can hold, which can be just above 1.
    """
    return KernelSampler(Renoise(Posterior(eta)))(process, field, x, times, generator=generator)


def gddim(
    process: Process,
    field: Field,
    x: Tensor,
    times: Tensor,
    *,
    eta: float = 1.0,
    generator: Generator = None,
) -> Tensor:
    """gDDIM(η) (arXiv 2206.05564 Thm 1): order 1 for every η >= 0, exact for point-mass data."""
    return KernelSampler(GDDIM(eta))(process, field, x, times, generator=generator)


def exponential(
    process: Process,
    field: Field,
    x: Tensor,
    times: Tensor,
    *,
    eta: float = 1.0,
    generator: Generator = None,
) -> Tensor:
    """The exponential integrator with a frozen score (arXiv 2204.13902): order 1."""
    sampler = KernelSampler(Exponential(Constant(eta)))
    return sampler(process, field, x, times, generator=generator)
