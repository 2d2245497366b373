"""Stable Diffusion 3 and 3.5: any diffusers StableDiffusion3Pipeline, from a folder or the hub.

A rectified flow, x_t = (1 − t) x0 + t ε, whose network is told 1000·t and predicts the velocity
u = ε − x0 (arXiv 2403.03206 eqs. 13–14). Two CLIP encoders and a T5 read a prompt; the T5, nearly
two thirds of SD3 medium, may be missing, as it may in diffusers: zeros stand in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor

from scoretune.diffusion import estimates
from scoretune.diffusion.processes import RectifiedFlow
from scoretune.models import pipelines
from scoretune.models.base import Pipelined, latent_shape, packed, unpacked

KIND = "StableDiffusion3Pipeline"
T5_TOKENS = 256  # what a StableDiffusion3Pipeline takes unless told otherwise


@dataclass
class StableDiffusion3(Pipelined):
    """A StableDiffusion3Pipeline as a continuous-time model; all but the transformer is frozen."""

    part: ClassVar[str] = "transformer"
    # Picture and caption attend jointly, each with projections of its own: a LoRA adapts both.
    targets: ClassVar[tuple[str, ...]] = (
        *("to_q", "to_k", "to_v", "to_out.0"),
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    )
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2", "text_encoder_3")

    def told(self, prompts: Sequence[str]) -> Tensor:
        """What the pipeline itself makes of prompts: states [B, L, D] and the pooled state, packed.

        The states are the two CLIP encoders' side by side, zeros up to D, and behind them T5's.
        """
        states, _, pooled, _ = self.pipeline.encode_prompt(
            list(prompts),
            prompt_2=None,
            prompt_3=None,
            device=next(self.network.parameters()).device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.pipeline.transformer.config.get(
                "_max_sequence_length", T5_TOKENS
            ),
        )
        return packed(states, pooled)

    def predict(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        transformer = self.pipeline.transformer
        states, pooled = unpacked(
            tokens.to(transformer.dtype), transformer.config.pooled_projection_dim
        )
        output = transformer(
            hidden_states=x.to(transformer.dtype),
            encoder_hidden_states=states,
            pooled_projections=pooled,
            timestep=self.pipeline.scheduler.config.num_train_timesteps * t,
        )
        return cast(Tensor, output.sample)

    @property
    def feature_size(self) -> int:
        """The width of the transformer."""
        return int(self.pipeline.transformer.inner_dim)

    def predict_with_features(self, x: Tensor, t: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """`predict`, and the last block's tokens [B, n, F] averaged over the picture."""
        last = self.pipeline.transformer.transformer_blocks[-1]
        output, (_, hidden) = self.predict_and_watch(last, x, t, tokens)
        return output, cast(Tensor, hidden).float().mean(1)


def load(
    source: str,
    *,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    size: int = 0,
    without: Sequence[str] = (),
) -> StableDiffusion3:
    """Load a pipeline from a local folder or a hub id. Weights must be safetensors.

    Raises UserError when the folder is missing, no such pipeline, or holds pickled weights.
    """
    pipeline = pipelines.load(KIND, source, revision=revision, dtype=dtype, without=without)
    return StableDiffusion3(
        pipeline=pipeline,
        process=RectifiedFlow(),
        prediction=estimates.velocity,
        shape=latent_shape(pipeline, pipeline.transformer.config, size),
    )
