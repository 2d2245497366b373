"""Stable Diffusion 1.x and 2.x: any diffusers StableDiffusionPipeline, from a folder or the hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor

from scoretune.models.base import GuidedUNet, UNet
from scoretune.models.pipelines import Family, by_schedule


@dataclass
class StableDiffusion(UNet):
    """A StableDiffusionPipeline as a continuous-time model; everything but the UNet is frozen."""

    def text_states(self, prompts: Sequence[str]) -> Tensor:
        """Text states [B, L, D]."""
        tokens = self.pipeline.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.pipeline.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        encoder = self.pipeline.text_encoder
        return cast(Tensor, encoder(tokens.input_ids.to(encoder.device))[0])

    def predict(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        (shown, label), unet = self.told(x, t), self.pipeline.unet
        output = unet(
            shown.to(self.dtype),
            label,
            encoder_hidden_states=tokens.to(self.dtype),
            timestep_cond=self.timestep_cond(x),
        )
        return cast(Tensor, output.sample)


@dataclass
class GuidedStableDiffusion(GuidedUNet, StableDiffusion):
    """The same, with a UNet that guidance was distilled into (arXiv 2210.03142)."""


def build(pipeline: Any, source: str, size: int) -> StableDiffusion:
    """The model of a pipeline, guidance distilled into it or not."""
    guided = pipeline.unet.config.time_cond_proj_dim
    model = GuidedStableDiffusion if guided else StableDiffusion
    return by_schedule(model, pipeline, source, size)


FAMILY = Family(
    kinds=("StableDiffusionPipeline",),
    networks=("UNet2DConditionModel",),
    build=build,
    unused=("safety_checker",),
)
load = FAMILY.load
