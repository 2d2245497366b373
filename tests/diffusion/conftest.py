"""Exact laws on Gaussian data: with the exact score every sampler is affine, so no Monte Carlo.

Data are N(m, s²) in one dimension. A kernel's mean is a·x + b: calling it at x = 0 and x = 1 in
float64 gives (a, b), and a Gaussian law is then propagated without error.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from scoretune.diffusion.estimates import Estimate
from scoretune.diffusion.processes import Process, Tabulated, every_process, expand

# Every member of the union, by itself: a new process is tested by being one.
PROCESSES = {type(process).__name__: process for process in every_process()}


@pytest.fixture(params=PROCESSES)
def process(request: pytest.FixtureRequest) -> Process:
    return PROCESSES[request.param]


@pytest.fixture(scope="session")
def processes() -> dict[str, Process]:
    """All of them by name, for a loop inside one test."""
    return PROCESSES


@pytest.fixture(scope="session")
def sd15() -> Tabulated:
    return Tabulated.scaled_linear()


@dataclass(frozen=True)
class GaussianData:
    m: float = 1.0
    s_sq: float = 0.25

    def field(self, process: Process) -> Callable[[Tensor, Tensor], Estimate]:
        """The exact estimate: x̂ = m + (αs²/v)(x − αm), ε̂ = (σ/v)(x − αm)."""

        def estimate(x: Tensor, t: Tensor) -> Estimate:
            alpha, sigma = process.alpha(t), process.sigma(t)
            v = alpha**2 * self.s_sq + sigma**2
            centred = x - expand(alpha * self.m, x)
            data = self.m + expand(alpha * self.s_sq / v, x) * centred
            return Estimate(data, expand(sigma / v, x) * centred)

        return estimate

    def law(self, process: Process, t: float) -> tuple[float, float]:
        """Exact (mean, variance) of x_t."""
        at = torch.tensor(t, dtype=torch.float64)
        alpha, sigma = float(process.alpha(at)), float(process.sigma(at))
        return alpha * self.m, alpha**2 * self.s_sq + sigma**2

    def coefficients(self, kernel, process, t: Tensor, t_next: Tensor) -> list[tuple[float, ...]]:
        """(a, b, c²) of each step x' = a x + b + c ξ, from t [K] to t_next [K]."""
        steps = len(t)
        x = torch.tensor([0.0, 1.0], dtype=torch.float64).repeat_interleave(steps)[:, None]
        pair, pair_next = t.repeat(2), t_next.repeat(2)
        step = kernel(process, x, self.field(process)(x, pair), pair, pair_next)
        b, top = step.mean[:, 0].reshape(2, steps)
        return list(
            zip(
                (top - b).tolist(),
                b.tolist(),
                (step.std.flatten()[:steps] ** 2).tolist(),
                strict=True,
            )
        )

    def propagate(self, kernel, process, times: Tensor, start=None) -> tuple[float, float]:
        """(mean, variance) at times[-1] from the exact law at times[0], or from `start`."""
        mean, variance = start or self.law(process, float(times[0]))
        for a, b, c_sq in self.coefficients(kernel, process, times[:-1], times[1:]):
            mean, variance = a * mean + b, a * a * variance + c_sq
        return mean, variance

    def solve(self, solver, process, times: Tensor, start=None) -> tuple[float, float]:
        """(mean, variance) at times[-1] of a deterministic solver."""
        mean, variance = start or self.law(process, float(times[0]))
        x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        b, top = solver(process, self.field(process), x, times)[:, 0].tolist()
        return (top - b) * mean + b, (top - b) ** 2 * variance


@pytest.fixture(scope="session")
def gaussian() -> type[GaussianData]:
    return GaussianData


@pytest.fixture(scope="session")
def w2() -> Callable[[tuple[float, float], tuple[float, float]], float]:
    """W2 of two one-dimensional Gaussians given as (mean, variance)."""

    def distance(p: tuple[float, float], q: tuple[float, float]) -> float:
        return math.hypot(p[0] - q[0], math.sqrt(p[1]) - math.sqrt(q[1]))

    return distance
