"""Any backbone under another process: the same weights, other dynamics (`diffusion.recycling`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from scoretune.core.conditions import Condition
from scoretune.diffusion import estimates
from scoretune.diffusion.estimates import Prediction
from scoretune.diffusion.processes import Process
from scoretune.diffusion.recycling import at_base, check_recyclable
from scoretune.policy import Backbone, WithFeatures


@dataclass
class Recycled:
    """`base` run under `process`. Raises ValueError if that starts from more noise than it knows.

    It predicts noise whatever `base` predicts, since ε̂ is the same under every process.
    """

    base: Backbone
    process: Process
    prediction: Prediction = field(default=estimates.noise, init=False)

    def __post_init__(self) -> None:
        check_recyclable(self.base.process, self.process)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def network(self) -> nn.Module:
        return self.base.network

    def encode(self, prompts: Sequence[str]) -> Condition:
        return self.base.encode(prompts)

    def decode(self, x0: Tensor) -> Tensor:
        return self.base.decode(x0)

    def embed(self, images: Tensor) -> Tensor:
        return self.base.embed(images)

    def predict(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        state, tau = at_base(self.base.process, self.process, x, t)
        return self._noise(state, tau, self.base.predict(state, tau, tokens))

    def _noise(self, state: Tensor, tau: Tensor, output: Tensor) -> Tensor:
        base = self.base
        return estimates.read(base.process, base.prediction, tau, state, output.to(state)).noise


@dataclass
class RecycledWithFeatures(Recycled):
    """The same of a backbone whose forward pass also feeds a critic."""

    base: WithFeatures

    @property
    def feature_size(self) -> int:
        return self.base.feature_size

    def predict_with_features(self, x: Tensor, t: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        state, tau = at_base(self.base.process, self.process, x, t)
        output, features = self.base.predict_with_features(state, tau, tokens)
        return self._noise(state, tau, output), features


def recycle(base: Backbone, process: Process) -> Recycled:
    """`base` under `process`, with features if it has any."""
    if isinstance(base, WithFeatures):
        return RecycledWithFeatures(base, process)
    return Recycled(base, process)


def inner(backbone: Backbone) -> Backbone:
    """The backbone that is run under another process, or itself."""
    return backbone.base if isinstance(backbone, Recycled) else backbone
