"""Samplers with noise of one network call a step: each follows a kernel of constant η.

`(process, field, x, times, *, eta, generator) -> x0` with x [B, *S] at times[0]; the result is the
state at times[-1]. A step without noise draws none, and a step to σ = 0 has none. States are kept
in float32 or wider; a CPU generator serves any device.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from scoretune.diffusion.estimates import Field
from scoretune.diffusion.kernels import (
    GDDIM,
    Constant,
    EulerMaruyama,
    Exponential,
    Kernel,
    Posterior,
    Renoise,
)
from scoretune.diffusion.processes import Process
from scoretune.diffusion.solvers.base import KernelSampler


@dataclass(frozen=True)
class OfEta:
    """The sampler that follows `kernel(eta)`."""

    kernel: Callable[[float], Kernel]

    def __call__(
        self,
        process: Process,
        field: Field,
        x: Tensor,
        times: Tensor,
        *,
        eta: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        return KernelSampler(self.kernel(eta))(process, field, x, times, generator=generator)


euler_maruyama = OfEta(lambda eta: EulerMaruyama(Constant(eta)))
"""Euler–Maruyama on the family of constant η: weak order 1, unstable for large η in few steps.

dx = [f x − (1+η²)/2 g² s] dt + η g dw̄ (arXiv 2011.13456); η = 0 is `euler`."""
ddim_eta = OfEta(lambda eta: Renoise(Posterior(eta)))
"""DDIM(η) (arXiv 2010.02502 eq. 12), ancestral DDPM at η = 1: order 1.

Raises ValueError where η asks for more noise than a step can hold, which can be just above 1."""
gddim = OfEta(GDDIM)
"""gDDIM(η) (arXiv 2206.05564 Thm 1): order 1 for every η >= 0, exact for point-mass data."""
exponential = OfEta(lambda eta: Exponential(Constant(eta)))
"""The exponential integrator with a frozen score (arXiv 2204.13902): order 1."""
