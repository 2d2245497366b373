"""FLUX.1: any diffusers FluxPipeline, from a folder or the hub.

A rectified flow, x_t = (1 − t) x0 + t ε, whose network predicts the velocity u = ε − x0 (arXiv
2403.03206 eqs. 13–14) of latents in patches of 2×2. A T5 reads a prompt word by word and a CLIP as
a whole. Guidance was distilled into FLUX.1 [dev] (arXiv 2210.03142): it is told the scale, as
model.guidance has it (unless set, diffusers' own 3.5). FLUX.1 [schnell] is not told one: there a
guidance other than 1 is the classifier-free kind, away from the empty prompt, at twice the cost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoretune.core.errors import UserError
from scoretune.models.autoencoder import latent_channels, pair
from scoretune.models.base import JOINT_ATTENTION, Told, Transformer, packed, unpacked
from scoretune.models.pipelines import Family, flow_of
from scoretune.models.schedulers import dynamic_shift
from scoretune.policy import Deployment

PATCH = 2
TIMES = 1000  # the transformer multiplies the time by this
T5_TOKENS = {True: 512, False: 256}
"""How many a prompt is padded to: with distilled guidance, and without (as it was trained)."""


@dataclass
class Flux(Transformer):
    """A FluxPipeline as a continuous-time model; everything but the transformer is frozen."""

    targets: ClassVar[tuple[str, ...]] = JOINT_ATTENTION
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2")

    def text_states(self, prompts: Sequence[str]) -> Tensor:
        """T5's states [B, L, D] and CLIP's pooled state, packed."""
        config = self.pipeline.transformer.config
        states, pooled, _ = self.pipeline.encode_prompt(
            list(prompts),
            device=self.device,
            max_sequence_length=config.get(
                "_max_sequence_length", T5_TOKENS[bool(config.guidance_embeds)]
            ),
        )
        return packed(states, pooled)

    def guidance_scale(self, x: Tensor) -> Tensor | None:
        """The scale of guidance [B], for a network that guidance was distilled into."""
        return None

    @property
    def deployment(self) -> Deployment | None:
        """As of any pipeline; without distilled guidance its scale is not read at all."""
        own = super().deployment
        told = self.pipeline.transformer.config.guidance_embeds
        return own if own is None or told else replace(own, guidance=None)

    def timestep_arguments(self, steps: int) -> dict[str, Any]:
        """Equal steps of the flow, and the shift by the picture's size where it is taken."""
        config = self.pipeline.scheduler.config
        tokens = math.prod(side // PATCH for side in self.shape[1:])
        equal = [] if config.get("use_flow_sigmas") else [1 - k / steps for k in range(steps)]
        shift = dynamic_shift(config, tokens, most=1.15)
        return ({"sigmas": equal} if equal else {}) | (
            shift if config.get("use_dynamic_shifting") else {}
        )

    def predict(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        transformer = self.pipeline.transformer
        states, pooled = unpacked(tokens.to(self.dtype), transformer.config.pooled_projection_dim)
        rows, columns = (side // PATCH for side in x.shape[-2:])
        output = transformer(
            hidden_states=F.pixel_unshuffle(x, PATCH).flatten(2).mT.to(self.dtype),
            encoder_hidden_states=states,
            pooled_projections=pooled,
            # Rounded as the pipeline rounds it: half precision tells few times apart.
            timestep=self.schedule.label(t).to(self.dtype) / TIMES,
            guidance=self.guidance_scale(x),
            img_ids=_places(rows, columns, x.device),
            txt_ids=torch.zeros(states.shape[1], 3, device=x.device),
        )
        return F.pixel_shuffle(output.sample.mT.unflatten(2, (rows, columns)), PATCH)

    @property
    def last_block(self) -> nn.Module:
        transformer = self.pipeline.transformer
        blocks = transformer.single_transformer_blocks or transformer.transformer_blocks
        return cast(nn.Module, blocks[-1])


@dataclass
class DistilledFlux(Told, Flux):
    """The same with guidance distilled into it: it is told the scale, and asked once."""

    def guidance_scale(self, x: Tensor) -> Tensor | None:
        return torch.full((len(x),), self.scale, device=x.device)


@lru_cache(maxsize=8)
def _places(rows: int, columns: int, device: torch.device) -> Tensor:
    """Where each patch lies, [rows * columns, 3]: 0, its row and its column."""
    down, across = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([0 * down, down, across], -1).flatten(0, 1).float().to(device)


def build(pipeline: Any, source: str, size: int) -> Flux:
    """The model of a pipeline, guidance distilled into it or not."""
    family = DistilledFlux if pipeline.transformer.config.guidance_embeds else Flux
    return family(pipeline, flow_of(source, pipeline.scheduler), _shape(source, pipeline, size))


def _shape(source: str, pipeline: Any, size: int) -> tuple[int, ...]:
    """[C, h, w] of square pictures of `size` pixels, or (0) of `_sample_size` or the default."""
    config, factor = pipeline.transformer.config, int(pipeline.vae_scale_factor)
    if size % (PATCH * factor):
        raise UserError(f"model.size={size} is no multiple of {PATCH * factor}: set one, in pixels")
    sides = size // factor or config.get("_sample_size", pipeline.default_sample_size)
    return (latent_channels(source, config, pipeline.vae, PATCH), *pair(sides))


FAMILY = Family(
    kinds=("FluxPipeline",), networks=("FluxTransformer2DModel",), build=build, needed=Flux.encoders
)
load = FAMILY.load
