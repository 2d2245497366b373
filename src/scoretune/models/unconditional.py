"""A UNet2DModel on pixels: any diffusers DDPMPipeline or DDIMPipeline, from a folder or the hub.

The states are the pictures themselves, in [-1, 1]. Most such networks know no prompts; one with a
class embedding takes a class number as the prompt. The scheduler's `clip_sample` is not applied:
the likelihood of a step is that of the network's own estimate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from scoretune.core.conditions import Condition
from scoretune.core.errors import UserError
from scoretune.models.autoencoder import check_multiple, pair
from scoretune.models.base import Pipelined
from scoretune.models.class_labels import Labels
from scoretune.models.pipelines import Family
from scoretune.models.schedulers import schedule_of


@dataclass
class PixelUNet(Pipelined):
    """A UNet2DModel as a continuous-time model of pictures; there is nothing else in its pipeline.

    The empty prompt is no class. A network without classes ignores prompts: they are the reward's.
    """

    any_size: ClassVar[bool] = False

    @property
    def labels(self) -> Labels | None:
        """The classes: of a table, unit vectors, or numbers on a sinusoid; None: there are none."""
        unet, config = self.pipeline.unet, self.pipeline.unet.config
        if unet.class_embedding is None:
            return None
        if config.class_embed_type == "identity":
            return Labels(int(unet.time_embedding.linear_2.out_features))
        return Labels(
            int(config.num_class_embeds or self.pipeline.scheduler.config.num_train_timesteps)
        )

    def text_states(self, prompts: Sequence[str]) -> Tensor:
        """One-hot classes [B, 1, K], zeros for an empty prompt; [B, 0, 0] where there are none."""
        if self.labels is None:
            return torch.zeros(len(prompts), 0, 0, device=self.device)
        return self.labels.one_hot(prompts, empty=False).to(self.device)

    def condition(self, prompts: Sequence[str]) -> Condition:
        """One-hot classes, if any. There is no empty class, hence no guidance."""
        return Condition(self.text_states(prompts))

    def predict(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """Of a network that also predicts its variance, the first half of the channels."""
        (shown, label), unet = self.told(x, t), self.pipeline.unet
        output = unet(shown.to(self.dtype), label, class_labels=self._classes(tokens))
        return cast(Tensor, output.sample)[:, : x.shape[1]]

    def _classes(self, tokens: Tensor) -> Tensor | None:
        unet = self.pipeline.unet
        if unet.class_embedding is None:
            return None
        if not bool(tokens.any(-1).all()):
            raise UserError("this model draws a class: set prompts to a file of class numbers")
        if unet.config.class_embed_type == "identity":
            return tokens[:, 0].to(self.dtype)
        return tokens[:, 0].argmax(1)

    def decode(self, x0: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1]; grey ones in three equal channels."""
        return (x0.float() / 2 + 0.5).clamp(0, 1).expand(-1, 3, -1, -1)

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """States [B, C, H, W] in [-1, 1]; of a grey model, the mean of the channels."""
        grey = self.shape[0] == 1
        return (images.mean(1, keepdim=True) if grey else images).float() * 2 - 1


@dataclass
class ConvolutionalPixelUNet(PixelUNet):
    """The same without attention: a LoRA adapts the convolutions of the residual blocks."""

    @property
    def targets(self) -> tuple[str, ...]:
        return ("conv1", "conv2")


def build(pipeline: Any, source: str, size: int | str) -> PixelUNet:
    """The model of a pipeline. Raises UserError for other pixels, and for no times in numbers."""
    unet = pipeline.unet
    schedule = schedule_of(source, pipeline.scheduler)
    attends = any(name.endswith(".to_q") for name, _ in unet.named_modules())
    family = PixelUNet if attends else ConvolutionalPixelUNet
    return family(pipeline, schedule, _shape(source, unet.config, size))


def _shape(source: str, config: Any, size: int | str) -> tuple[int, ...]:
    """[C, H, W] of pictures, of `size` pixels or (0) as the network's config has it."""
    if config.in_channels not in (1, 3):
        raise UserError(
            f"{source!r} draws states of {config.in_channels} channels, which are no pixels: give "
            "a model of 1 (grey) or 3 (colours)"
        )
    if config.time_embedding_type != "positional":
        raise UserError(
            f"{source!r} has a {config.time_embedding_type} embedding of time, which is not known "
            "between its steps: give a model with a positional one"
        )
    sides = pair(size or config.sample_size)
    if not sides:
        raise UserError(f"{source!r} does not say how large its pictures are: set model.size")
    height, width = sides
    multiple = 2 ** (len(config.block_out_channels) - 1)
    check_multiple(size or f"{width}x{height}", multiple)
    return (int(config.in_channels), height, width)


FAMILY = Family(kinds=("DDPMPipeline", "DDIMPipeline"), networks=("UNet2DModel",), build=build)
load = FAMILY.load
