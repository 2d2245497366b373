"""Points and small vectors: models so small that their optimum is known in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from scoretune.batches import Condition
from scoretune.diffusion import estimates
from scoretune.diffusion.estimates import Prediction
from scoretune.diffusion.processes import Process, expand


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


class PointNetwork(nn.Module):
    """A small perceptron on (x, t, condition) for points."""

    def __init__(self, dimension: int, tokens: int = 0, width: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(dimension + 4 + tokens, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, dimension),
        )

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        phase = t[:, None] * torch.tensor([1.0, 4.0], device=t.device) * torch.pi / 2
        clock = torch.cat([phase.sin(), phase.cos()], 1)
        return cast(Tensor, self.layers(torch.cat([x, clock, tokens.flatten(1)], 1)))


@dataclass
class Gaussian:
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

    def encode(self, prompts: Sequence[str]) -> Condition:
        return Condition.none(len(prompts))

    def predict(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        return cast(Tensor, self.network(x, t))

    def decode(self, x0: Tensor) -> Tensor:
        return x0

    def embed(self, images: Tensor) -> Tensor:
        return images


@dataclass
class Points:
    """A trainable perceptron on points; a prompt is a line of numbers, e.g. "0 1"."""

    process: Process
    dimension: int = 2
    prompt_size: int = 0
    prediction: Prediction = field(default=estimates.noise)
    network: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        self.network = PointNetwork(self.dimension, self.prompt_size)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.dimension,)

    def encode(self, prompts: Sequence[str]) -> Condition:
        if not self.prompt_size:
            return Condition(torch.zeros(len(prompts), 1, 0))
        rows = [[float(word) for word in prompt.split()] for prompt in prompts]
        tokens = torch.tensor(rows)[:, None]
        return Condition(tokens, torch.zeros_like(tokens[0]))

    def predict(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        return cast(Tensor, self.network(x, t, tokens))

    def decode(self, x0: Tensor) -> Tensor:
        return x0

    def embed(self, images: Tensor) -> Tensor:
        return images
