"""Stable Diffusion 1.x and 2.x: any diffusers StableDiffusionPipeline, from a folder or the hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from scoretune.diffusion.processes import Tabulated
from scoretune.models import pipelines
from scoretune.models.base import Conditional, latent_shape, scheduled

KIND = "StableDiffusionPipeline"


@dataclass
class StableDiffusion(Conditional):
    """A StableDiffusionPipeline as a continuous-time model; everything but the UNet is frozen."""

    def told(self, prompts: Sequence[str]) -> Tensor:
        """Text states [B, L, D]."""
        words = self.pipeline.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.pipeline.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        encoder = self.pipeline.text_encoder
        return cast(Tensor, encoder(words.input_ids.to(encoder.device))[0])

    def predict(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        label, unet = cast(Tabulated, self.process).label(t), self.pipeline.unet
        told = tokens.to(unet.dtype)
        return cast(Tensor, unet(x.to(unet.dtype), label, encoder_hidden_states=told).sample)


def load(
    source: str,
    *,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    size: int = 0,
    without: Sequence[str] = (),
) -> StableDiffusion:
    """Load a pipeline from a local folder or a hub id. Weights must be safetensors.

    Raises UserError when the folder is missing, no such pipeline, or holds pickled weights.
    """
    pipeline = pipelines.load(
        KIND, source, revision=revision, dtype=dtype, without=("safety_checker", *without)
    )
    process, prediction = scheduled(source, pipeline.scheduler)
    return StableDiffusion(
        pipeline=pipeline,
        process=process,
        prediction=prediction,
        shape=latent_shape(pipeline, pipeline.unet.config, size),
    )
