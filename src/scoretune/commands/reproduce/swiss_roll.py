"""The Swiss roll of three experiments: its points, and a denoiser that is trained on them."""

from __future__ import annotations

import torch
from torch import Tensor

from scoretune.commands.reproduce.denoiser import Denoiser, Perceptron, fitted
from scoretune.diffusion.processes import Process

CENTRE = (0.401, 0.0434)
"""The mean of the points, from a million of them: every process starts from noise of mean 0."""


def roll(n: int, seed: int) -> Tensor:
    """Points [n, 2] of sklearn's roll, noise 0.5, a fifth of its size, less the mean of all."""
    from sklearn.datasets import make_swiss_roll

    points = torch.tensor(make_swiss_roll(n, noise=0.5, random_state=seed)[0][:, [0, 2]]) / 5
    return points.float() - torch.tensor(CENTRE)


def learned(process: Process, seed: int, updates: int) -> Denoiser:
    """The perceptron, Adam 2e-3 in batches of 256 of 20,000 points."""
    torch.manual_seed(seed)
    return fitted(Perceptron(), roll(20_000, 0), process, updates=updates, batch=256, rate=2e-3)
