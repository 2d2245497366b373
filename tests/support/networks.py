"""Small models that several tests share: points whose prompts are numbers, fresh score networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from scoretune.core.conditions import Condition
from scoretune.diffusion import estimates
from scoretune.diffusion.estimates import Prediction, prediction_named
from scoretune.diffusion.processes import Process
from scoretune.models.networks import Content, Design
from scoretune.models.score_network import ScoreNetwork
from scoretune.models.toy import Vectors, perceptron


class PointNetwork(nn.Module):
    """A small perceptron on (x, t, condition) for points."""

    def __init__(self, dimension: int, tokens: int = 0, width: int = 128) -> None:
        super().__init__()
        self.layers = perceptron(dimension + 4 + tokens, width, dimension)

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        phase = t[:, None] * torch.tensor([1.0, 4.0], device=t.device) * torch.pi / 2
        clock = torch.cat([phase.sin(), phase.cos()], 1)
        return cast(Tensor, self.layers(torch.cat([x, clock, tokens.flatten(1)], 1)))


@dataclass
class Points(Vectors):
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


def score_network(
    kind: str,
    shape: tuple[int, ...],
    *,
    process: Process,
    prediction: str = "v_prediction",
    width: int = 0,
    depth: int = 0,
) -> ScoreNetwork:
    """A fresh `unet`, `dit` or `mlp` for data of mean 0 and variance 1.

    The content follows from the number of dimensions of `shape`.
    """
    contents: dict[int, Content] = {1: "points", 2: "series", 3: "images"}
    design = Design(kind, tuple(shape), contents[len(shape)], width, depth)
    ones = torch.ones(1)
    return ScoreNetwork(design, process, prediction_named(prediction), 0 * ones, ones)
