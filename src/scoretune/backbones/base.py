"""What every model family must offer: a process, a prediction and four verbs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, cast, runtime_checkable

import torch
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


@runtime_checkable
class WithFeatures(Backbone, Protocol):
    """A backbone whose own forward pass can feed a critic, which then costs no second network."""

    @property
    def feature_size(self) -> int:
        """F, the number of features of one state."""
        ...

    def predict_with_features(self, x: Tensor, t: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The same output as `predict`, and features [B, F] in float32 of the same forward pass.

        Both are differentiable with respect to x and to the network's weights.
        """
        ...


@dataclass
class Pipelined(ABC):
    """A diffusers pipeline as a continuous-time model: pictures go through its autoencoder, and
    everything but one `part` of it is frozen.
    """

    pipeline: Any
    process: Process
    prediction: Prediction
    shape: tuple[int, ...]
    part: ClassVar[str]
    """What diffusers calls the part that is fine-tuned."""

    @property
    def network(self) -> nn.Module:
        return cast(nn.Module, getattr(self.pipeline, self.part))

    @abstractmethod
    def predict(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor: ...

    def predict_and_watch(
        self, module: nn.Module, x: Tensor, t: Tensor, tokens: Tensor
    ) -> tuple[Tensor, Any]:
        """`predict`, and what a module inside the network put out on the way."""
        seen: list[Any] = []
        hook = module.register_forward_hook(lambda module, given, found: seen.append(found))
        try:
            output = self.predict(x, t, tokens)
        finally:
            hook.remove()
        return output, seen[0]

    def decode(self, x0: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1]; differentiable, as gradient-based rewards need."""
        vae, shift = self.pipeline.vae, self.pipeline.vae.config.shift_factor or 0.0
        latents = x0.to(vae.dtype) / vae.config.scaling_factor + shift
        return cast(Tensor, (vae.decode(latents).sample.float() / 2 + 0.5).clamp(0, 1))

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """Latents [B, C, H/f, W/f] of images in [0, 1], the mode of the encoder's law."""
        vae, shift = self.pipeline.vae, self.pipeline.vae.config.shift_factor or 0.0
        parts = [
            vae.encode(part.to(vae.dtype) * 2 - 1).latent_dist.mode() for part in images.split(64)
        ]
        return (torch.cat(parts).float() - shift) * float(vae.config.scaling_factor)


class Adapter(nn.Module):
    """A part that training adds to a frozen network, and that can be switched off.

    The two names are those of peft's tuner layers, so that a policy treats both alike.
    """

    def __init__(self) -> None:
        super().__init__()
        self.disable_adapters = False

    def enable_adapters(self, enabled: bool) -> None:
        """Off: the network is the pretrained one."""
        self.disable_adapters = not enabled
