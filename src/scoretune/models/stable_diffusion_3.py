"""Stable Diffusion 3 and 3.5: any diffusers StableDiffusion3Pipeline, from a folder or the hub.

A rectified flow, x_t = (1 − t) x0 + t ε, whose network is told 1000·t and predicts the velocity
u = ε − x0 (arXiv 2403.03206 eqs. 13–14). Two CLIP encoders and a T5 read a prompt; the T5, nearly
two thirds of SD3 medium, may be missing, as it may in diffusers: zeros stand in its place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from torch import Tensor

from scoretune.models.autoencoder import latent_shape
from scoretune.models.base import JOINT_ATTENTION, Transformer, packed, unpacked
from scoretune.models.pipelines import Family, flow_of
from scoretune.models.schedulers import dynamic_shift

T5_TOKENS = 256  # what a StableDiffusion3Pipeline takes unless told otherwise


@dataclass
class StableDiffusion3(Transformer):
    """A StableDiffusion3Pipeline as a continuous-time model; all but the transformer is frozen."""

    targets: ClassVar[tuple[str, ...]] = JOINT_ATTENTION
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2", "text_encoder_3")

    def text_states(self, prompts: Sequence[str]) -> Tensor:
        """What the pipeline itself makes of prompts: states [B, L, D] and the pooled state, packed.

        The states are the two CLIP encoders' side by side, zeros up to D, and behind them T5's.
        """
        states, _, pooled, _ = self.pipeline.encode_prompt(
            list(prompts),
            prompt_2=None,
            prompt_3=None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.pipeline.transformer.config.get(
                "_max_sequence_length", T5_TOKENS
            ),
        )
        return packed(states, pooled)

    def timestep_arguments(self, steps: int) -> dict[str, Any]:
        """The shift by the picture's size, where the scheduler takes one."""
        config, patch = self.pipeline.scheduler.config, self.pipeline.transformer.config.patch_size
        tokens = math.prod(side // patch for side in self.shape[1:])
        return (
            dynamic_shift(config, tokens, most=1.16) if config.get("use_dynamic_shifting") else {}
        )

    def predict(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        transformer = self.pipeline.transformer
        states, pooled = unpacked(tokens.to(self.dtype), transformer.config.pooled_projection_dim)
        shown, label = self.told(x, t)
        output = transformer(
            hidden_states=shown.to(self.dtype),
            encoder_hidden_states=states,
            pooled_projections=pooled,
            timestep=label,
        )
        return cast(Tensor, output.sample)


def build(pipeline: Any, source: str, size: int) -> StableDiffusion3:
    """The model of a pipeline."""
    shape = latent_shape(source, pipeline, "transformer", size)
    return StableDiffusion3(pipeline, flow_of(source, pipeline.scheduler), shape)


FAMILY = Family(
    kinds=("StableDiffusion3Pipeline",), networks=("SD3Transformer2DModel",), build=build
)
load = FAMILY.load
