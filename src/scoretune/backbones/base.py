"""What every model family must offer: a process, a prediction and four verbs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from scoretune.batches import Condition
from scoretune.diffusion.estimates import Prediction
from scoretune.diffusion.processes import Process


class Backbone(Protocol):
    """A pretrained generative model, seen as a network on noisy states of a known process."""

    @property
    def process(self) -> Process:
        """How data are noised."""
        ...

    @property
    def prediction(self) -> Prediction:
        """What the network was trained to output."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one state, *S."""
        ...

    @property
    def network(self) -> nn.Module:
        """The part that is fine-tuned."""
        ...

    def encode(self, prompts: Sequence[str]) -> Condition:
        """Prompts as the network is told them. Done once a rollout, without gradient."""
        ...

    def predict(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """The network's raw output [B, *S] at states x [B, *S] and times t [B]."""
        ...

    def decode(self, x0: Tensor) -> Tensor:
        """Finished states as people see them: for images [B, 3, H, W] in [0, 1]."""
        ...

    def embed(self, images: Tensor) -> Tensor:
        """The inverse of `decode`, without gradient: data as clean states [B, *S]."""
        ...
