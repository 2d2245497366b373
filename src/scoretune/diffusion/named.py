"""Kernels, noise scales, time grids and windows by the names that settings give them.

Every function takes the settings that it reads, any object with those attributes, and raises
ValueError where they do not fit each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from scoretune.diffusion import grids, kernels, windows
from scoretune.diffusion.kernels import noisy_steps
from scoretune.diffusion.lookup import lookup
from scoretune.diffusion.processes import Process, noise_ratio
from scoretune.diffusion.windows import Window


class Noise(Protocol):
    """How noisy the steps of a sampler are."""

    @property
    def kernel(self) -> str: ...
    @property
    def noise(self) -> str: ...
    @property
    def eta(self) -> float: ...
    @property
    def eta_end(self) -> float | None: ...


class Steps(Noise, Protocol):
    """Along which times a sampler steps."""

    @property
    def grid(self) -> str: ...
    @property
    def steps(self) -> int: ...
    @property
    def shift(self) -> float: ...


class Moving(Protocol):
    """Where a window of stochastic steps lies, and how it moves."""

    @property
    def size(self) -> int: ...
    @property
    def order(self) -> str: ...
    @property
    def every(self) -> int: ...
    @property
    def stride(self) -> int: ...
    @property
    def decay(self) -> float: ...
    @property
    def decay_from(self) -> int: ...
    @property
    def solver(self) -> str: ...
    @property
    def compress(self) -> float: ...


class Windowed(Noise, Protocol):
    """Noise on the steps of a window alone."""

    @property
    def window(self) -> Moving: ...


def kernel(sampling: Noise) -> kernels.Kernel:
    """The kernel a configuration names. Raises ValueError where the noise is not of its kind."""
    renoises = sampling.kernel == "renoise"
    if renoises != (sampling.noise == "cps") and not (renoises and sampling.noise == "constant"):
        wanted = "sampling.noise=constant or cps" if renoises else "sampling.kernel=renoise"
        raise ValueError(
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


def _posterior(sampling: Noise) -> kernels.Scale:
    if sampling.noise == "constant":
        return kernels.Posterior(sampling.eta)
    if sampling.eta > 1:
        raise ValueError(
            f"sampling.noise=cps takes a level up to 1, got sampling.eta={sampling.eta:g}"
        )
    return kernels.CPS(sampling.eta)


def _scale(sampling: Noise) -> kernels.Scale:
    return lookup("sampling.noise", sampling.noise, SCALES)(sampling)


def _ramp(sampling: Noise) -> kernels.Scale:
    if sampling.eta_end is None:
        raise ValueError("sampling.noise=ramp goes from sampling.eta to another: set eta_end")
    return kernels.Ramp(sampling.eta, sampling.eta_end)


SCALES: Mapping[str, Callable[[Noise], kernels.Scale]] = {
    "constant": lambda sampling: kernels.Constant(sampling.eta),
    "flow": lambda sampling: kernels.FlowSDE(sampling.eta),
    "dance": lambda sampling: kernels.DanceSDE(sampling.eta),
    "ramp": _ramp,
}
"""Noise scales by their word in `sampling.noise`; `cps` is one of the kernel renoise."""


def grid(process: Process, sampling: Steps) -> Tensor:
    """The times a configuration steps along. Raises ValueError where the kernel cannot."""
    kind = sampling.grid
    if kind == "auto":
        last = torch.tensor(process.horizon, dtype=torch.float64)
        kind = "karras" if bool(torch.isfinite(noise_ratio(process, last))) else "uniform"
    acting = kernel(sampling)
    try:
        if kind == "shifted":
            times = grids.shifted(process, sampling.steps, sampling.shift)
        elif kind == "karras":
            times = grids.karras(process, sampling.steps, most=grids.most_ratio(process))
        else:
            times = grids.uniform(process, sampling.steps)
        noisy_steps(acting, process, times)
    except ValueError as error:
        raise ValueError(
            f"sampling.eta={sampling.eta:g} does not suit the grid: {error}"
        ) from error
    return times


def window(
    sampling: Windowed, times: Tensor, process: Process, seed: int
) -> Callable[[int], Window] | None:
    """Where the window of each update lies; None where every step is stochastic.

    Raises ValueError for a window that is as long as the path.
    """
    settings = sampling.window
    if not settings.size:
        return None
    learnable = int(noisy_steps(kernel(sampling), process, times).sum())
    places = learnable - settings.size + 1
    if places < 1:
        raise ValueError(
            f"sampling.window.size={settings.size} leaves no place among the {learnable} steps "
            "with noise: lower it, or set it to 0 for noise on every step"
        )

    def at(update: int) -> Window:
        if settings.order == "frozen":
            start = 0
        elif settings.order == "random":
            start = windows.anywhere(update, places, every=settings.every, seed=seed)
        else:
            start = windows.progressive(
                update,
                places,
                every=settings.every,
                stride=settings.stride,
                decay=settings.decay,
                decay_from=settings.decay_from,
            )
        return Window(start, start + settings.size, settings.solver, settings.compress)

    return at
