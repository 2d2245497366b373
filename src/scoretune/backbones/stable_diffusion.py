"""Stable Diffusion 1.x and 2.x: any diffusers StableDiffusionPipeline, from a folder or the hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor

from scoretune import pipelines
from scoretune.backbones.base import Pipelined, latent_shape
from scoretune.diffusion.estimates import prediction_named
from scoretune.diffusion.processes import Tabulated

KIND = "StableDiffusionPipeline"


@dataclass
class StableDiffusion(Pipelined):
    """A StableDiffusionPipeline as a continuous-time model; everything but the UNet is frozen."""

    part: ClassVar[str] = "unet"

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

    @property
    def feature_size(self) -> int:
        """The channels of the UNet's bottleneck."""
        return int(self.pipeline.unet.config.block_out_channels[-1])

    def predict_with_features(self, x: Tensor, t: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """`predict`, and the mid-block's output [B, F, h, w] averaged over the picture."""
        output, hidden = self.predict_and_watch(self.pipeline.unet.mid_block, x, t, tokens)
        return output, cast(Tensor, hidden).float().mean((2, 3))


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
    scheduler, unet = pipeline.scheduler, pipeline.unet
    return StableDiffusion(
        pipeline=pipeline,
        process=Tabulated(tuple(scheduler.alphas_cumprod.double().tolist())),
        prediction=prediction_named(scheduler.config.get("prediction_type", "epsilon")),
        shape=latent_shape(pipeline, unet.config, size),
    )
