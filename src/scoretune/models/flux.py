"""FLUX.1: any diffusers FluxPipeline, from a folder or the hub.

A rectified flow, x_t = (1 − t) x0 + t ε, whose network predicts the velocity u = ε − x0 (arXiv
2403.03206 eqs. 13–14) of latents in patches of 2×2. A T5 reads a prompt word by word and a CLIP as
a whole. Guidance was distilled into FLUX.1 [dev] (arXiv 2210.03142): it is told the scale, as
model.guidance has it (diffusers' own default is 3.5). FLUX.1 [schnell] is not told one: there a
guidance other than 1 is the classifier-free kind, away from the empty prompt, at twice the cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from scoretune.core.errors import UserError
from scoretune.diffusion import estimates
from scoretune.diffusion.processes import RectifiedFlow
from scoretune.models import pipelines
from scoretune.models.base import Pipelined, packed, unpacked

KIND = "FluxPipeline"
PATCH = 2
TIMES = 1000  # the transformer multiplies the time by this
T5_TOKENS = {True: 512, False: 256}
"""How many a prompt is padded to: with distilled guidance, and without (as it was trained)."""


@dataclass
class Flux(Pipelined):
    """A FluxPipeline as a continuous-time model; everything but the transformer is frozen."""

    part: ClassVar[str] = "transformer"
    # Picture and prompt attend jointly, at first each with projections of its own.
    targets: ClassVar[tuple[str, ...]] = (
        *("to_q", "to_k", "to_v", "to_out.0"),
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    )
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2")

    def told(self, prompts: Sequence[str]) -> Tensor:
        """T5's states [B, L, D] and CLIP's pooled state, packed."""
        config = self.pipeline.transformer.config
        states, pooled, _ = self.pipeline.encode_prompt(
            list(prompts),
            device=next(self.network.parameters()).device,
            max_sequence_length=config.get(
                "_max_sequence_length", T5_TOKENS[bool(config.guidance_embeds)]
            ),
        )
        return packed(states, pooled)

    def told_scale(self, x: Tensor) -> Tensor | None:
        """The scale of guidance [B], for a network that is told it."""
        return None

    def predict(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        transformer = self.pipeline.transformer
        states, pooled = unpacked(
            tokens.to(transformer.dtype), transformer.config.pooled_projection_dim
        )
        rows, columns = (side // PATCH for side in x.shape[-2:])
        output = transformer(
            hidden_states=F.pixel_unshuffle(x, PATCH).flatten(2).mT.to(transformer.dtype),
            encoder_hidden_states=states,
            pooled_projections=pooled,
            # Rounded as the pipeline rounds it: half precision tells few times apart.
            timestep=(TIMES * t).to(transformer.dtype) / TIMES,
            guidance=self.told_scale(x),
            img_ids=_places(rows, columns, x.device),
            txt_ids=torch.zeros(states.shape[1], 3, device=x.device),
        )
        return F.pixel_shuffle(output.sample.mT.unflatten(2, (rows, columns)), PATCH)

    @property
    def feature_size(self) -> int:
        """The width of the transformer."""
        return int(self.pipeline.transformer.inner_dim)

    def predict_with_features(self, x: Tensor, t: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """`predict`, and the last block's tokens [B, n, F] averaged over the picture."""
        transformer = self.pipeline.transformer
        last = (transformer.single_transformer_blocks or transformer.transformer_blocks)[-1]
        output, (_, hidden) = self.predict_and_watch(last, x, t, tokens)
        return output, cast(Tensor, hidden).float().mean(1)


@dataclass
class DistilledFlux(Flux):
    """The same with guidance distilled into it: it is told the scale, and asked once."""

    scale: float = 3.5

    def told_scale(self, x: Tensor) -> Tensor | None:
        return torch.full((len(x),), self.scale, device=x.device)


@lru_cache(maxsize=8)
def _places(rows: int, columns: int, device: torch.device) -> Tensor:
    """Where each patch lies, [rows * columns, 3]: 0, its row and its column."""
    down, across = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([0 * down, down, across], -1).flatten(0, 1).float().to(device)


def load(
    source: str,
    *,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    size: int = 0,
    without: Sequence[str] = (),
) -> Flux:
    """Load a pipeline from a local folder or a hub id. Weights must be safetensors.

    Raises UserError when the folder is missing, no such pipeline, or holds pickled weights; and
    without a text encoder.
    """
    index = pipelines.described(source, revision)
    for part in Flux.encoders:
        if part in without or index.get(part) == [None, None]:
            raise UserError(
                f"FLUX.1 cannot read prompts without its {part}: drop it from model.without; "
                "hardware.cache_prompts=true lets go of it once they are read"
            )
    pipeline = pipelines.load(KIND, source, revision=revision, dtype=dtype, without=without)
    distilled = bool(pipeline.transformer.config.guidance_embeds)
    return (DistilledFlux if distilled else Flux)(
        pipeline=pipeline,
        process=RectifiedFlow(),
        prediction=estimates.velocity,
        shape=_shape(pipeline, size),
    )


def _shape(pipeline: Any, size: int) -> tuple[int, ...]:
    """[C, h, w] of the latents of square pictures: of `size` pixels, or (0) the pipeline's default.

    A transformer's config may note another default as `_sample_size`, in latents.
    """
    config, factor = pipeline.transformer.config, int(pipeline.vae_scale_factor)
    if size % (PATCH * factor):
        raise UserError(f"model.size={size} is no multiple of {PATCH * factor}: set one, in pixels")
    side = size // factor or int(config.get("_sample_size", pipeline.default_sample_size))
    return (config.in_channels // PATCH**2, side, side)
