"""What the comparison on pictures stands on: a small U-Net, and a reader of pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoretune.commands.reproduce.base import kept_tensors
from scoretune.commands.reproduce.denoiser import Denoiser, fitted, waves
from scoretune.commands.reproduce.digits import DigitNetwork
from scoretune.commands.reproduce.image_data import Pictures
from scoretune.diffusion.processes import Process


@dataclass(frozen=True)
class Budget:
    """How much of everything, for pictures of one kind."""

    updates: int
    batch: int
    rate: float
    samples: int
    reading: int
    """Updates of the reader."""


FULL = {
    "digits": Budget(4000, 128, 1e-3, 1000, 1500),
    "mnist": Budget(2000, 64, 2e-3, 1000, 470),
    "cifar10": Budget(600, 64, 2e-3, 1000, 780),
}
QUICK = Budget(4, 8, 1e-3, 40, 20)


# ----------------------------------------------------------------------------- the denoiser


class Block(nn.Module):
    """Two convolutions around a shortcut, scaled and shifted by the noise level."""

    def __init__(self, channels: int, clock_width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(8, channels) for _ in range(2))
        self.layers = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.tell = nn.Linear(clock_width, 2 * channels)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        hidden = self.layers[0](F.silu(self.norms[0](x)))
        scale, shift = self.tell(embedding)[:, :, None, None].chunk(2, 1)
        return x + cast(Tensor, self.layers[1](F.silu(self.norms[1](hidden) * (1 + scale) + shift)))


class SmallUNet(nn.Module):
    """A U-Net of two levels on patches of 2×2 pixels: 0.3 M weights at width 32."""

    def __init__(self, channels: int, width: int = 32, clock_width: int = 64) -> None:
        super().__init__()
        wide = 2 * width
        self.clock = nn.Sequential(
            nn.Linear(16, clock_width), nn.SiLU(), nn.Linear(clock_width, clock_width), nn.SiLU()
        )
        self.enter = nn.Conv2d(4 * channels, width, 3, padding=1)
        self.down = nn.Conv2d(width, wide, 3, stride=2, padding=1)
        self.outer = nn.ModuleList(Block(width, clock_width) for _ in range(2))
        self.inner = nn.ModuleList(Block(wide, clock_width) for _ in range(3))
        self.up = nn.Conv2d(wide, width, 1)
        self.leave = nn.Conv2d(width, 4 * channels, 3, padding=1)
        nn.init.zeros_(self.leave.weight)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """The output [B, C, H, W] for x of that shape and ¼ ln ρ, [B]."""
        embedding = self.clock(waves(level))
        fine = self.outer[0](self.enter(F.pixel_unshuffle(x, 2)), embedding)
        hidden = self.down(fine)
        for block in self.inner:
            hidden = block(hidden, embedding)
        fine = fine + F.interpolate(self.up(hidden), size=fine.shape[2:])
        return F.pixel_shuffle(self.leave(F.silu(self.outer[1](fine, embedding))), 2)


def network_for(kind: str, shape: tuple[int, ...]) -> nn.Module:
    """Of 8×8 digits the perceptron of the shipped digits, of larger pictures the U-Net."""
    return DigitNetwork() if kind == "digits" else SmallUNet(shape[0])


def trained(pictures: Pictures, process: Process, budget: Budget, seed: int) -> Denoiser:
    """A network trained under a process; a seed gives all of them the same first weights."""
    torch.manual_seed(seed)
    network = network_for(pictures.kind, tuple(pictures.centred.shape[1:]))
    return fitted(
        network,
        pictures.centred,
        process,
        updates=budget.updates,
        batch=budget.batch,
        rate=budget.rate,
    )


# ----------------------------------------------------------------------------- the reader


class Reader(nn.Module):
    """A small convolutional classifier; its 64 penultimate features are what is compared."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inside, outside in ((channels, 24), (24, 48), (48, 96)):
            conv = nn.Conv2d(inside, outside, 3, stride=2, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(outside), nn.ReLU()]
            conv = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(outside), nn.ReLU()]
        ends = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * 96, 64), nn.ReLU()]
        self.features = nn.Sequential(*layers, *ends)
        self.leave = nn.Linear(64, 10)

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits [B, 10] of pictures [B, C, H, W] in [−1, 1]."""
        return cast(Tensor, self.leave(self.features(pictures)))

    @torch.no_grad()
    def look(self, pictures: Tensor) -> Tensor:
        """Features [B, 64]."""
        return torch.cat([self.features(part) for part in pictures.split(500)])


def reader_for(pictures: Pictures, budget: Budget, folder: Path) -> Reader:
    """A reader trained on the labels of these pictures, always the same; kept in `folder`."""
    file = folder / f"reader-{pictures.kind}-{budget.reading}.safetensors"
    weights = kept_tensors(file, lambda: _read(pictures, budget.reading).state_dict())
    reader = Reader(pictures.centred.shape[1])
    reader.load_state_dict(weights)
    return reader.eval()


def _read(pictures: Pictures, updates: int) -> Reader:
    torch.manual_seed(0)
    reader = Reader(pictures.centred.shape[1])
    optimiser = torch.optim.AdamW(reader.parameters(), 3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=updates)
    everything = pictures.shown(pictures.centred)
    for _ in range(updates):
        index = torch.randint(len(everything), (128,))
        seen = everything[index]
        if pictures.kind == "cifar10" and torch.rand(()) < 0.5:
            seen = seen.flip(3)
        optimiser.zero_grad()
        loss = F.cross_entropy(reader(seen), pictures.labels[index], label_smoothing=0.05)
        loss.backward()
        optimiser.step()
        schedule.step()
    return reader
