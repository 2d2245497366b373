"""The test bed of continuous-time fine-tuning: everything about it is known in closed form.

VP(0.1, 20), data N(1, ¼). The policies s_pre + θh with h = α/v and v = α²S₀ + σ² are the exact
scores of N(1 + θ, ¼). With an affine score every step is x' = a x + b + c ξ, so laws of whole paths
are propagated without Monte Carlo, in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from scoretune.diffusion import processes
from scoretune.diffusion.estimates import Estimate
from scoretune.diffusion.processes import VP, Process, expand
from scoretune.models import toy
from scoretune.rl.tilt import Mixture, gauss_hermite

F64 = torch.float64
Field = Callable[[Tensor, Tensor], Estimate]


@dataclass(frozen=True)
class Steps:
    """Affine steps x' = rate·x + offset + std·ξ, each [N]."""

    rate: Tensor
    offset: Tensor
    std: Tensor

    def laws(self, mean: float = 0.0, variance: float = 1.0) -> Tensor:
        """Mean and variance [N+1, 2] along the path of x_0 ~ N(mean, variance)."""
        computed = [(mean, variance)]
        for a, b, c in torch.stack([self.rate, self.offset, self.std], 1).tolist():
            mean, variance = a * mean + b, a * a * variance + c * c
            computed.append((mean, variance))
        return torch.tensor(computed, dtype=F64)

    def with_noise(self, std: Tensor) -> Steps:
        """The same with more noise, of standard deviation std [N] and independent."""
        return Steps(self.rate, self.offset, torch.hypot(self.std, std))

    def kl(self, other: Steps, laws: Tensor) -> float:
        """Σ_k E KL(N(μ_k, c²) ‖ N(μ'_k, c²)) over the states of `laws`."""
        rate, offset = self.rate - other.rate, self.offset - other.offset
        mean, variance = laws[:-1].T
        square = (rate * mean + offset) ** 2 + rate**2 * variance
        return float((square / (2 * self.std**2)).sum())


@dataclass(frozen=True)
class Bed:
    """A process, and data N(mean, variance) in one dimension."""

    process: Process = field(default_factory=VP)
    mean: float = 1.0
    variance: float = 0.25

    def exact(self, mean: float | None = None, variance: float | None = None) -> Field:
        """The exact policy of N(mean, variance): the pretrained one if left out."""
        backbone = toy.Gaussian(
            self.process,
            self.mean if mean is None else mean,
            self.variance if variance is None else variance,
        )
        network = backbone.network.requires_grad_(False)
        return lambda x, t: Estimate(network.data(x, t), network(x, t))

    def family(self, theta: float) -> Field:
        """The policy s_pre + θh."""
        return self.exact(self.mean + theta)

    def moved(self, shift: Callable[[Tensor], Tensor]) -> Field:
        """The policy s_pre + shift(t)."""
        pretrained = self.exact()

        def estimate(x: Tensor, t: Tensor) -> Estimate:
            score = processes.score(self.process, pretrained(x, t), t) + expand(shift(t), x)
            return self.acting(x, t, score)

        return estimate

    def acting(self, x: Tensor, t: Tensor, action: Tensor) -> Estimate:
        """The estimate of the score `action` [B, 1]: ε̂ = −σa, x̂ = (x + σ²a)/α."""
        alpha, sigma = expand(self.process.alpha(t), x), expand(self.process.sigma(t), x)
        return Estimate((x + sigma**2 * action) / alpha, -sigma * action)

    def score(self, policy: Field, x: Tensor, t: Tensor) -> Tensor:
        """s(t, x), [B, 1]."""
        return processes.score(self.process, policy(x, t), t)

    def state_variance(self, t: Tensor) -> Tensor:
        """v = α²S₀ + σ², the variance of x_t."""
        return self.process.alpha(t) ** 2 * self.variance + self.process.sigma(t) ** 2

    def h(self, t: Tensor) -> Tensor:
        """h = α/v."""
        return self.process.alpha(t) / self.state_variance(t)

    def kept(self, t: Tensor) -> Tensor:
        """Φ = αS₀/v = ∂E[x0 | x_t]/∂x_t."""
        return self.h(t) * self.variance

    def g_sq(self, t: Tensor) -> Tensor:
        """g²(t)."""
        return processes.diffusion_sq(self.process, t)

    def spent(self, t: Tensor) -> Tensor:
        """I(t) = ∫₀ᵗ g²h², in closed form."""
        s = self.variance - 1
        return (1 / (1 + s * self.process.alpha(t) ** 2) - 1 / self.variance) / s

    def steps(self, kernel: Callable, policy: Field, times: Tensor) -> Steps:
        """All steps of a sampler at once: its mean at x = 0 and x = 1."""
        t, t_next = times[:-1], times[1:]
        low, high = (x * torch.ones(len(t), 1, dtype=F64) for x in (0.0, 1.0))
        at = [kernel(self.process, x, policy(x, t), t, t_next) for x in (low, high)]
        offset = at[0].mean[:, 0]
        return Steps(at[1].mean[:, 0] - offset, offset, at[0].std.expand_as(low)[:, 0])

    def terminal(self, kernel: Callable, policy: Field, times: Tensor) -> tuple[float, float]:
        """(mean, variance) of a sampler's samples from noise N(0, 1)."""
        mean, variance = self.steps(kernel, policy, times).laws()[-1].tolist()
        return mean, variance

    def solve(self, solver: Callable, policy: Field, times: Tensor) -> tuple[float, float]:
        """(mean, variance) of a deterministic solver from noise N(0, 1)."""
        x = torch.tensor([[0.0], [1.0]], dtype=F64)
        low, high = solver(self.process, policy, x, times)[:, 0].tolist()
        return low, (high - low) ** 2

    def integral(self, rate: Callable[[Tensor], Tensor], count: int = 20001) -> float:
        """∫ rate dt over all times by the trapezoid rule; rate takes [count] to [count]."""
        t = torch.linspace(0, self.process.horizon, count, dtype=F64)
        return float(torch.trapezoid(rate(t), t))


@pytest.fixture(scope="session")
def bed() -> Bed:
    return Bed()


@pytest.fixture(scope="session")
def make_bed() -> type[Bed]:
    return Bed


def expectation(law: Mixture, function: Callable[[Tensor], Tensor], nodes: int = 40) -> Tensor:
    """E f(x), [*B], by Gauss–Hermite: exact to rounding for polynomials below 2·nodes.

    Only in one dimension; `function` takes [..., 1] to [...].
    """
    points, weights = gauss_hermite(nodes, law.means)
    x = law.means + law.variances.sqrt()[..., None] * points
    inner = (function(x[..., None]) * weights).sum(-1)
    return (law.log_weights.exp() * inner).sum(-1)
