"""A module called as `module(x, t)`, no pipeline, from a function; `SETTINGS` say what it is: a
rectified flow on grey pictures of 8 pixels."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

SOURCE = "scoretune.models.tiny.own:denoiser"
SETTINGS = (
    f"model.source={SOURCE}",
    "model.process=RectifiedFlow()",
    "model.prediction=velocity",
    "model.shape=[1,8,8]",
)


class Denoiser(nn.Module):
    """Convolutions, conditioned on the time by a linear layer of sines."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.enter = nn.Conv2d(1, width, 3, padding=1)
        self.clock = nn.Linear(4, width)
        self.mix = nn.Sequential(nn.SiLU(), nn.Conv2d(width, width, 3, padding=1), nn.SiLU())
        self.leave = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The velocity [B, 1, 8, 8] at states x [B, 1, 8, 8] and times t [B] in [0, 1]."""
        angles = t[:, None] * torch.tensor([1.0, 4.0], device=t.device, dtype=t.dtype)
        clock = self.clock(torch.cat([angles.sin(), angles.cos()], 1))
        return cast(Tensor, self.leave(self.mix(self.enter(x) + clock[:, :, None, None])))


def denoiser() -> nn.Module:
    """One of random weights, which are the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return Denoiser()
