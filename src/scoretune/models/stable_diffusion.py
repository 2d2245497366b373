"""Stable Diffusion 1.x and 2.x: any diffusers StableDiffusionPipeline, from a folder or the hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

from torch import Tensor

from scoretune.diffusion.processes import Tabulated
from scoretune.models.base import UNet
from scoretune.models.pipelines import Family, by_noise_table


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
        label, unet = cast(Tabulated, self.process).label(t), self.pipeline.unet
        states = tokens.to(unet.dtype)
        return cast(Tensor, unet(x.to(unet.dtype), label, encoder_hidden_states=states).sample)


FAMILY = Family(
    kinds=("StableDiffusionPipeline",),
    networks=("UNet2DConditionModel",),
    build=partial(by_noise_table, StableDiffusion),
    unused=("safety_checker",),
)
load = FAMILY.load
