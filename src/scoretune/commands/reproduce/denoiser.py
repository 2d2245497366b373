"""A denoiser that any process can ask, and its training.

A network sees x/α and σ/α only, scaled as in arXiv 2206.00364 Table 1, so that every process asks
the same question of it. What a process still decides is which noise levels are trained, by its
clock, and from where to where a sampler goes, and in which steps.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scoretune.diffusion.estimates import Estimate, Field
from scoretune.diffusion.grids import time_of_ratio
from scoretune.diffusion.processes import Process, expand

END = 0.01
"""σ/α at which training ends."""


@dataclass(frozen=True)
class Denoiser:
    """D(x̄; ρ) = c_skip x̄ + c_out F(c_in x̄, ¼ ln ρ) (arXiv 2206.00364 Table 1, row EDM)."""

    network: nn.Module
    data_std: float

    def __call__(self, x: Tensor, ratio: Tensor) -> Tensor:
        """E[x0 | x0 + ρ ε = x], [B, *S]; `ratio` is ρ, [B]."""
        spread = expand(torch.sqrt(ratio**2 + self.data_std**2), x)
        output: Tensor = self.network(x / spread, torch.log(ratio).float() / 4)
        kept = self.data_std * expand(ratio, x) / spread * output
        return self.data_std**2 / spread**2 * x + kept

    def under(self, process: Process) -> Field:
        """The same denoiser as a field of any process: x̂0 = D(x/α; σ/α)."""

        def field(x: Tensor, t: Tensor) -> Estimate:
            alpha, sigma = process.alpha(t), process.sigma(t)
            data = self(x / expand(alpha, x), sigma / alpha)
            return Estimate(data, (x - expand(alpha, x) * data) / expand(sigma, x))

        return field


def waves(level: Tensor) -> Tensor:
    """Sines and cosines of eight frequencies, [B, 16]."""
    angle = level[:, None] * 2.0 ** torch.arange(-1, 7, device=level.device)
    return torch.cat([angle.sin(), angle.cos()], 1)


class Perceptron(nn.Module):
    """For points of the plane: 128 units in two layers, given the noise level; no residuals, so
    that it is none of `models.networks`."""

    def __init__(self, dimension: int = 2, width: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(dimension + 16, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, dimension),
        )

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """The output [B, D] for x of that shape and ¼ ln ρ, [B]."""
        return self.layers(torch.cat([x, waves(level)], 1))  # type: ignore[no-any-return]


def fitted(
    network: nn.Module, data: Tensor, process: Process, *, updates: int, batch: int, rate: float
) -> Denoiser:
    """Adam with a cosine to 0 on ‖ε̂ − ε‖², t uniform on the process's clock; averaged weights.

    From torch's own generator: one seed gives every process the same pictures and noise.
    """
    data_std = float(data.std())
    model, mean = Denoiser(network, data_std), copy.deepcopy(network)
    optimiser = torch.optim.Adam(network.parameters(), rate)
    first = float(time_of_ratio(process, torch.tensor(END)))
    for update in range(updates):
        x0 = data[torch.randint(len(data), (batch,))]
        t = first + (process.horizon - first) * torch.rand(batch, dtype=torch.float64)
        ratio = (process.sigma(t) / process.alpha(t)).float()
        denoised = model(x0 + expand(ratio, x0) * torch.randn_like(x0), ratio)
        loss = (((denoised - x0) / expand(ratio, x0)) ** 2).mean()
        for group in optimiser.param_groups:
            group["lr"] = rate * (1 + math.cos(math.pi * update / updates)) / 2
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        follow(mean, network, max(0.01, 1 / (update + 1)))
    return Denoiser(mean.eval(), data_std)


@torch.no_grad()
def follow(mean: nn.Module, network: nn.Module, share: float) -> None:
    """Move an average of a network's weights a share of the way to them."""
    for kept, weight in zip(mean.parameters(), network.parameters(), strict=True):
        kept.lerp_(weight, share)
