"""Stable Diffusion XL and its few-step kin: any diffusers StableDiffusionXLPipeline.

Two CLIP encoders read a prompt; the UNet takes their last but one states side by side, the pooled
state of the second, and how large the picture is, was and where it was cropped (arXiv 2307.01952
sec. 2.2). Of the base model only: the refiner is another pipeline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from scoretune.core.errors import UserError
from scoretune.models.base import GuidedUNet, UNet, packed, unpacked
from scoretune.models.pipelines import Family, by_schedule

SIZES = 6  # original height and width, top and left of the crop, target height and width


@dataclass
class StableDiffusionXL(UNet):
    """A StableDiffusionXLPipeline as a continuous-time model; everything but the UNet is frozen."""

    encoders: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2")

    def text_states(self, prompts: Sequence[str]) -> Tensor:
        """Text states [B, L, D] and the pooled state behind them, packed."""
        states, _, pooled, _ = self.pipeline.encode_prompt(
            list(prompts), device=self.device, do_classifier_free_guidance=False
        )
        return packed(states, pooled)

    def null(self, empty: Tensor) -> Tensor:
        """Zeros where the pipeline says so, as SDXL's does, else the empty prompt's states."""
        zeros = self.pipeline.config.force_zeros_for_empty_prompt
        return torch.zeros_like(empty) if zeros else empty

    @property
    def sides(self) -> tuple[float, ...]:
        """Height and width of the pictures in pixels, an input of the UNet."""
        return tuple(float(side * self.pipeline.vae_scale_factor) for side in self.shape[1:])

    def predict(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        unet = self.pipeline.unet
        states, pooled = unpacked(tokens.to(self.dtype), _pooled_size(unet))
        sizes = torch.tensor([*self.sides, 0.0, 0.0, *self.sides], device=x.device)
        shown, label = self.told(x, t)
        output = unet(
            shown.to(self.dtype),
            label,
            encoder_hidden_states=states,
            timestep_cond=self.timestep_cond(x),
            added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes.expand(len(x), SIZES)},
        )
        return cast(Tensor, output.sample)


@dataclass
class GuidedStableDiffusionXL(GuidedUNet, StableDiffusionXL):
    """The same, with a UNet that guidance was distilled into (arXiv 2210.03142), as LCM-SDXL."""


def build(pipeline: Any, source: str, size: int) -> StableDiffusionXL:
    """The model of a pipeline. Raises UserError for foreign encoders and the refiner's UNet.

    In half precision an autoencoder that overflows in it (`force_upcast`) is kept in float32.
    """
    if pipeline.text_encoder is None:
        pipeline.register_modules(tokenizer=None)  # else the second encoder reads the first's words
    unet, vae = pipeline.unet, pipeline.vae
    _check(source, pipeline)
    if vae.config.force_upcast and unet.dtype == torch.float16:
        vae.to(torch.float32)
    model = GuidedStableDiffusionXL if unet.config.time_cond_proj_dim else StableDiffusionXL
    return by_schedule(model, pipeline, source, size)


def _pooled_size(unet: Any) -> int:
    """P: what the UNet's added embedding takes besides the sizes."""
    taken = SIZES * int(unet.config.addition_time_embed_dim)
    return int(unet.config.projection_class_embeddings_input_dim) - taken


def _check(source: str, pipeline: Any) -> None:
    """Refuse encoders that are not what the UNet was trained with, and the refiner's UNet."""
    unet, second = pipeline.unet, pipeline.text_encoder_2
    if unet.config.addition_embed_type != "text_time":
        raise UserError(f"{source!r} has a UNet that is not told of sizes: it is no SDXL's")
    if _pooled_size(unet) != second.config.projection_dim:
        raise UserError(
            f"{source!r} has a UNet that takes other sizes or another pooled state than SDXL's "
            "base model, as the refiner's does: fine-tune the base model"
        )
    present = [each for each in (pipeline.text_encoder, second) if each is not None]
    width, wanted = sum(e.config.hidden_size for e in present), unet.config.cross_attention_dim
    if width != wanted:
        raise UserError(
            f"the text encoders of {source!r} give states of width {width}, and the UNet takes "
            f"{wanted}: leave both in"
        )


FAMILY = Family(
    kinds=("StableDiffusionXLPipeline",),
    networks=("UNet2DConditionModel",),
    build=build,
    needed=("text_encoder_2",),
)
load = FAMILY.load
