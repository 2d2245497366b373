"""A small diffusion model of vectors: a perceptron that predicts x0 under VP, and its samples."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scoretune.commands.reproduce.denoiser import Perceptron, follow
from scoretune.diffusion import estimates, grids
from scoretune.diffusion.estimates import Estimate, Prediction
from scoretune.diffusion.processes import VP, expand
from scoretune.diffusion.solvers import dpmpp_2m, euler_maruyama

PROCESS, WIDTH, END, BATCH, RATE = VP(), 256, 0.01, 128, 1e-3
SAMPLERS = {
    "EM 200": 200,
    "EM 100": 100,
    "EM 50": 50,
    "EM 25": 25,
    "DPM 20": 20,
    "DPM 10": 10,
}
"""Euler–Maruyama of the reverse SDE in equal steps, and DPM-Solver++(2M) on a Karras grid; both
end at t = 0.01 with x̂0."""


@dataclass(frozen=True)
class Scorer:
    """A perceptron of two hidden layers that predicts x0 (or ε) of latents in one common scale."""

    network: nn.Module
    prediction: Prediction
    mean: Tensor
    std: Tensor

    def __call__(self, x: Tensor, t: Tensor) -> Estimate:
        alpha, sigma = PROCESS.alpha(t), PROCESS.sigma(t)
        scaled = x / expand(torch.hypot(alpha, sigma), x)
        output = self.network(scaled.float(), (torch.log(sigma / alpha) / 4).float())
        return estimates.read(PROCESS, self.prediction, t, x, output)


def trained(z: Tensor, prediction: Prediction, updates: int, seed: int) -> Scorer:
    """Adam with a cosine to 0 on the error of the prediction, t uniform; averaged weights."""
    torch.manual_seed(seed)
    network = Perceptron(z.shape[1], WIDTH)
    kept = copy.deepcopy(network)
    scorer = Scorer(network, prediction, z.mean(), z.std())
    z = (z - scorer.mean) / scorer.std
    optimiser = torch.optim.Adam(network.parameters(), RATE, fused=True)
    for update in range(updates):
        x0 = z[torch.randint(len(z), (BATCH,))]
        t, eps = 1e-3 + (1 - 1e-3) * torch.rand(BATCH), torch.randn_like(x0)
        estimate = scorer(estimates.perturb(PROCESS, t, x0, eps), t)
        missed = estimate.noise - eps if prediction is estimates.noise else estimate.data - x0
        for group in optimiser.param_groups:
            group["lr"] = RATE * (1 + math.cos(math.pi * update / updates)) / 2
        optimiser.zero_grad()
        missed.square().mean().backward()
        optimiser.step()
        follow(kept, network, max(0.005, 1 / (update + 1)))
    return Scorer(kept.eval().requires_grad_(False), prediction, scorer.mean, scorer.std)


@torch.no_grad()
def drawn(
    scorer: Scorer, dimension: int, count: int, sampler: str, seed: int
) -> tuple[Tensor, float]:
    """Latents [count, k], and the CPU seconds that they took."""
    generator, steps = torch.Generator().manual_seed(1000 + seed), SAMPLERS[sampler]
    x = torch.randn(count, dimension, generator=generator)
    start = time.process_time()
    if sampler.startswith("EM"):
        times = grids.uniform(PROCESS, steps, END)
        x = euler_maruyama(PROCESS, scorer, x, times, generator=generator)
    else:
        times = grids.karras(PROCESS, steps, t_end=END)
        x = dpmpp_2m(PROCESS, scorer, x, times)
    x = scorer(x, times[-1:].expand(count)).data * scorer.std + scorer.mean
    return x, time.process_time() - start
