"""Handwritten digits of 8×8 pixels: a model of real pictures that trains in a minute on one core.

The pictures are the 1,797 UCI digits that scikit-learn bundles: nothing is downloaded. A state is
one channel of pixels in [−1, 1]; there are no prompts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoretune.core.conditions import Condition
from scoretune.diffusion import estimates
from scoretune.diffusion.estimates import Prediction
from scoretune.diffusion.processes import VP, Process

SIZE = 8
PIXELS = SIZE * SIZE
FREQUENCIES = (1.0, 2.0, 4.0, 8.0, 16.0)


@dataclass(frozen=True)
class Handwriting:
    """Pictures [n, 3, 8, 8] in [0, 1] and their digits [n]."""

    images: Tensor
    digits: Tensor

    def __len__(self) -> int:
        return len(self.images)


def handwriting(held_out: int = 597) -> tuple[Handwriting, Handwriting]:
    """All 1,797 digits in a fixed random order: those to learn from, and those held out."""
    from sklearn.datasets import load_digits

    bundle = load_digits()
    images = torch.tensor(bundle.images, dtype=torch.float32)[:, None] / 16  # ink is 0 … 16
    digits = torch.tensor(bundle.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images, digits = images[order].expand(-1, 3, -1, -1), digits[order]
    kept = len(images) - held_out
    return Handwriting(images[:kept], digits[:kept]), Handwriting(images[kept:], digits[kept:])


class DigitNetwork(nn.Module):
    """A residual perceptron on the 64 pixels, each block given the time: 0.25 M weights.

    An image of 8×8 is so small that convolutions would only cost time. Blocks of one layer and a
    clock of half the angle: another network than `models.networks.Perceptron`, whose first weights
    and numbers would be other ones than those of the published pages.
    """

    def __init__(self, width: int = 192, blocks: int = 3) -> None:
        super().__init__()
        self.enter = nn.Linear(PIXELS, width)
        self.clock = nn.Sequential(nn.Linear(2 * len(FREQUENCIES), width), nn.SiLU())
        self.tell = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.leave = nn.Linear(width, PIXELS)

    def forward(self, x: Tensor, share: Tensor) -> Tensor:
        """The output [B, 1, 8, 8] for states x of that shape at the share t/horizon [B]."""
        angle = share[:, None] * torch.tensor(FREQUENCIES, device=x.device) * math.pi / 2
        embedding = self.clock(torch.cat([angle.sin(), angle.cos()], 1))
        hidden = self.enter(x.flatten(1))
        for tell, layer in zip(self.tell, self.layers, strict=True):
            hidden = hidden + layer(
                F.silu(F.layer_norm(hidden, hidden.shape[1:]) + tell(embedding))
            )
        return cast(Tensor, self.leave(F.silu(hidden)).view(x.shape))


class DigitReader(nn.Module):
    """A perceptron that reads digits, by way of 32 features."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Flatten(), nn.Linear(PIXELS, 128), nn.SiLU(), nn.Linear(128, 32), nn.SiLU()
        )
        self.leave = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, 10] of images [B, 3, 8, 8], of which one channel is looked at."""
        return cast(Tensor, self.leave(self.features(images[:, :1])))

    @torch.no_grad()
    def look(self, images: Tensor) -> Tensor:
        """Features [B, 32] of images."""
        return cast(Tensor, self.features(images[:, :1]))


def train_reader(data: Handwriting, updates: int = 1500) -> DigitReader:
    """AdamW 1e-3 in batches of 128, on pixels with noise of 0.05; always the same weights."""
    torch.manual_seed(0)
    reader = DigitReader()
    optimiser = torch.optim.AdamW(reader.parameters(), 1e-3)
    for _ in range(updates):
        index = torch.randint(len(data), (128,))
        images = data.images[index] + 0.05 * torch.randn(128, 3, SIZE, SIZE)
        optimiser.zero_grad()
        F.cross_entropy(reader(images), data.digits[index]).backward()
        optimiser.step()
    return reader


@dataclass
class Digits:
    """A trainable model of digits without prompts.

    It predicts v unless told otherwise: a sampler of few steps must say what to draw from pure
    noise, where a noise prediction tells x̂0 only through a division by α ≈ 0.
    """

    process: Process = field(default_factory=VP)
    width: int = 192
    prediction: Prediction = field(default=estimates.v)
    network: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        self.network = DigitNetwork(self.width)

    @property
    def shape(self) -> tuple[int, ...]:
        return (1, SIZE, SIZE)

    def encode(self, prompts: Sequence[str]) -> Condition:
        return Condition.none(len(prompts))

    def predict(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        return cast(Tensor, self.network(x, (t / self.process.horizon).to(x.dtype)))

    def decode(self, x0: Tensor) -> Tensor:
        return ((x0 + 1) / 2).clamp(0, 1).expand(-1, 3, -1, -1)

    def embed(self, images: Tensor) -> Tensor:
        return images.mean(1, keepdim=True) * 2 - 1
