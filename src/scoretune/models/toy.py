"""Points and small vectors: models so small that their optimum is known in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from scoretune.core.conditions import Condition
from scoretune.diffusion import estimates
from scoretune.diffusion.estimates import Prediction
from scoretune.diffusion.processes import Process, expand
from scoretune.policy import Adapter
from scoretune.rl import tilt


class GaussianNoise(nn.Module):
    """The exact E[ε | x] for data N(mean, variance): ε̂ = σ (x − α m)/v, v = α² s² + σ².

    `shift` moves the mean in the direction h(t) = α/v: the score of N(mean + shift, variance)
    (the one-parameter family of tests, arXiv 2409.08400).
    """

    def __init__(self, process: Process, mean: float, variance: float) -> None:
        super().__init__()
        self.process, self.mean, self.variance = process, mean, variance
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        spread = alpha**2 * self.variance + sigma**2
        centred = x - expand(alpha, x) * (self.mean + self.shift)
        return expand(sigma / spread, x) * centred

    def data(self, x: Tensor, t: Tensor) -> Tensor:
        """E[x0 | x], finite at any t: m + (αs²/v)(x − αm)."""
        alpha, mean = self.process.alpha(t), self.mean + self.shift
        spread = alpha**2 * self.variance + self.process.sigma(t) ** 2
        return mean + expand(alpha * self.variance / spread, x) * (x - expand(alpha, x) * mean)


class MixtureNoise(nn.Module):
    """The exact E[ε | x] = −σ ∇ ln p_t(x) for data from a Gaussian mixture. Nothing to train."""

    def __init__(self, process: Process, law: tilt.Mixture) -> None:
        super().__init__()
        self.process, self.law = process, law
        self.mean, self.variance = law.mean, float(law.variance)
        # A policy lives where its parameters do, so even a frozen network has one.
        self.place = nn.Parameter(torch.zeros(()), requires_grad=False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        return -expand(sigma, x) * self.law.to(x).diffused(alpha, sigma).score(x)

    def data(self, x: Tensor, t: Tensor) -> Tensor:
        """E[x0 | x], finite at any t."""
        return self.law.to(x).posterior(x, self.process.alpha(t), self.process.sigma(t)).mean


class HatControl(nn.Module):
    """Linear in x̂0, with coefficients piecewise linear in σ²/v: Gaussian data need no more."""

    def __init__(self, dimension: int, knots: int = 9) -> None:
        super().__init__()
        self.knots = knots
        self.table = nn.Parameter(torch.zeros(knots, dimension + 1, dimension))

    def forward(self, x: Tensor, data: Tensor, angle: Tensor) -> Tensor:
        place = torch.sin(angle)[:, None] ** 2 * (self.knots - 1)
        knots = torch.arange(self.knots, device=x.device, dtype=x.dtype)
        hats = (1 - (place.to(x) - knots).abs()).clamp(min=0)
        affine = torch.cat([torch.ones_like(data[:, :1]), data], 1)
        return torch.einsum("bk,bi,kij->bj", hats, affine, self.table.to(x))


class PerceptronControl(nn.Module):
    """A small perceptron on (x, x̂0) and smooth features of the time; 0 to begin with."""

    def __init__(self, dimension: int, width: int = 64) -> None:
        super().__init__()
        self.layers = perceptron(2 * dimension + 6, width, dimension)
        for last in self.layers[-1].parameters():
            nn.init.zeros_(last)

    def forward(self, x: Tensor, data: Tensor, angle: Tensor) -> Tensor:
        turns = angle[:, None].to(x) * torch.tensor([1.0, 2.0, 4.0], device=x.device)
        return cast(Tensor, self.layers(torch.cat([x, data, turns.sin(), turns.cos()], 1)))


class ControlledData(Adapter):
    """The exact x̂0 of frozen data, plus a learned control c that starts at 0:

        x̂0 = E[x0 | x] + (σ²/v)·c,   v = α²S + σ²,   S the variance of the data,

    which is s = s_pre + (α/v)·c. The factor grows from 0 at the data to 1 at the noise, where data
    are still free: a constant c moves the data by c (exactly so if they are Gaussian), and no time
    asks for a large c. `control(x, x̂0, angle)` sees standardised x and x̂0 and the angle
    atan2(σ, α√S) in [0, π/2], and answers in standard deviations of the data.
    """

    def __init__(self, exact: GaussianNoise | MixtureNoise, control: nn.Module) -> None:
        super().__init__()
        self.exact, self.control = exact.requires_grad_(False), control

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        data = self.exact.data(x, t)
        if self.disable_adapters:
            return data
        alpha, sigma = self.exact.process.alpha(t), self.exact.process.sigma(t)
        spread = alpha**2 * self.exact.variance + sigma**2
        mean, std = torch.as_tensor(self.exact.mean).to(x), self.exact.variance**0.5
        scaled = (x - expand(alpha, x) * mean) / expand(spread.sqrt(), x)
        control = self.control(scaled, (data - mean) / std, torch.atan2(sigma, alpha * std))
        return data + expand(sigma**2 * std / spread, x) * cast(Tensor, control)


class Vectors:
    """What backbones of vectors share: they know no prompts, and show their states as they are."""

    network: nn.Module

    def encode(self, prompts: Sequence[str]) -> Condition:
        return Condition.none(len(prompts))

    def predict(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        return cast(Tensor, self.network(x, t))

    def decode(self, x0: Tensor) -> Tensor:
        return x0

    def embed(self, images: Tensor) -> Tensor:
        return images


@dataclass
class Gaussian(Vectors):
    """A backbone with the exact score of N(mean, variance) in every dimension."""

    process: Process
    mean: float = 1.0
    variance: float = 0.25
    dimension: int = 1
    prediction: Prediction = field(default=estimates.noise)
    network: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        self.network = GaussianNoise(self.process, self.mean, self.variance)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.dimension,)


@dataclass
class Mixture(Vectors):
    """A backbone with the exact score of a Gaussian mixture."""

    process: Process
    law: tilt.Mixture
    prediction: Prediction = field(default=estimates.noise)
    network: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        self.network = MixtureNoise(self.process, self.law)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.law.means.shape[-1],)


@dataclass
class Controlled(Vectors):
    """A trainable `control`, e.g. HatControl(1), on the exact score of `base`, its reference."""

    base: Gaussian | Mixture
    control: nn.Module
    prediction: Prediction = field(default=estimates.data)
    network: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        exact = cast("GaussianNoise | MixtureNoise", self.base.network)
        self.network = ControlledData(exact, self.control)

    @property
    def process(self) -> Process:
        return self.base.process

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape


def perceptron(size: int, width: int, out: int) -> nn.Sequential:
    """Three linear layers: [B, size] -> [B, out]."""
    first, middle, last = nn.Linear(size, width), nn.Linear(width, width), nn.Linear(width, out)
    return nn.Sequential(first, nn.SiLU(), middle, nn.SiLU(), last)
