"""The smallest model that every recipe on rewards can train: pictures of 4×4, prompts by length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from scoretune.core.conditions import Condition
from scoretune.diffusion import estimates
from scoretune.diffusion.estimates import Prediction
from scoretune.diffusion.processes import VP, Process, RectifiedFlow


class Mixer(nn.Module):
    """Two layers on the channels of each pixel, the time and the token."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_out = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        beside = torch.stack([t, (6 * t).sin(), tokens.flatten(1).mean(1)], 1)[:, :, None, None]
        seen = torch.cat([x, beside.expand(-1, -1, *x.shape[2:])], 1).movedim(1, -1)
        out: Tensor = self.to_out(torch.tanh(self.to_q(seen)))
        return out.movedim(-1, 1)


@dataclass
class Little:
    """A backbone of random weights, always the same."""

    process: Process
    prediction: Prediction
    shape: tuple[int, ...] = (3, 4, 4)
    network: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            self.network = Mixer()

    def encode(self, prompts: Sequence[str]) -> Condition:
        tokens = torch.tensor([[[len(prompt) / 10.0]] for prompt in prompts])
        return Condition(tokens, torch.zeros(1, 1))

    def predict(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        out: Tensor = self.network(x, t.to(x.dtype), tokens.to(x.dtype))
        return out

    def decode(self, x0: Tensor) -> Tensor:
        return (x0 / 2 + 0.5).sigmoid()

    def embed(self, images: Tensor) -> Tensor:
        return images * 2 - 1


def noising() -> Little:
    """Variance-preserving, which predicts noise."""
    return Little(VP(), estimates.noise)


def flow() -> Little:
    """A rectified flow, which predicts its velocity."""
    return Little(RectifiedFlow(), estimates.prediction_named("velocity"))


def bright(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """A reward with a gradient, which depends on the prompt."""
    sign = torch.tensor([1.0 if len(prompt) % 2 else -1.0 for prompt in prompts])
    return (images.flatten(1) ** 2).mean(1) * sign.to(images)


def without_gradient(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """The same, read off as a program that torch knows nothing of would."""
    return bright(images.detach(), prompts)
