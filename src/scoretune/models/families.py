"""The families of diffusers pipelines that are one row each; `observed` runs all of them.

    family            told of time       guidance              latents
    SD 1/2, SDXL      a table's index    one batch, distilled  as they are
    SD3               1000·t             one batch             as they are
    FLUX.1, Chroma    t                  distilled; two calls  patches as tokens
    FLUX.2 [klein]    t                  two calls             patches, standardised, as tokens
    Qwen-Image        t                  two calls, rescaled   patches as tokens
    Z-Image           1 − t, output −u   one batch             frames in a list
    Lumina 2          1 − t, output −u   two calls, rescaled   as they are
    SANA, PixArt      1000·t, index      one batch             as they are
    AuraFlow          t                  one batch             as they are
    CogView 4         1000·t             two calls             as they are
    InstructPix2Pix   a table's index    one batch of three    as they are, the picture's behind
    FLUX.1 Kontext    t                  distilled             patches as tokens, the picture's too
    Qwen-Image-Edit   t                  two calls, rescaled   patches as tokens, the picture's too
    Wan               1000·t             two calls             videos as they are
    LTX               1000·t             one batch             places of videos as tokens
    HunyuanVideo      1000·t             distilled             videos as they are
    CogVideoX         a table's index    one batch             frames before channels

u = ε − x0 is the velocity of x_t = (1 − t) x0 + t ε (arXiv 2403.03206 eqs. 13–14). Guidance of
FLUX.1 [dev] was distilled (arXiv 2210.03142): the network is told the scale. [schnell] is not:
there a guidance other than 1 is the classifier-free kind, away from the empty prompt, at twice the
cost.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scoretune.core.errors import UserError
from scoretune.models.base import JOINT_ATTENTION
from scoretune.models.lora import ATTENTION
from scoretune.models.observed import (
    TIMES,
    Observed,
    Row,
    of_fraction,
    of_progress,
    rescaled,
)
from scoretune.models.packing import LIST, PATCHES, TIME_FIRST, TOKENS
from scoretune.models.pipelines import Family
from scoretune.models.schedulers import is_flow

SIZES = 6  # original height and width, top and left of the crop, target height and width
T5_TOKENS = {True: 512, False: 256}
"""How many FLUX.1 pads a prompt to: with distilled guidance, and without (as it was trained)."""


def _longest(tokens: int, **given: Any) -> Callable[[Any], dict[str, Any]]:
    """The call's arguments: so many tokens, unless a miniature's config says fewer, and `given`."""

    def arguments(pipeline: Any) -> dict[str, Any]:
        config = pipeline.transformer.config
        return {**given, "max_sequence_length": config.get("_max_sequence_length", tokens)}

    return arguments


def _told(pipeline: Any) -> bool:
    return bool(pipeline.unet.config.time_cond_proj_dim)


def _flow(source: str, pipeline: Any) -> None:
    """Refuse a scheduler of another process than that of a network that learned a flow."""
    if not is_flow(pipeline.scheduler):
        raise UserError(
            f"the scheduler of {source!r} is a {type(pipeline.scheduler).__name__} of a noise "
            "table, and its network learned a flow: give the pipeline a "
            "FlowMatchEulerDiscreteScheduler"
        )


def _sdxl(source: str, pipeline: Any) -> None:
    """Refuse encoders that are not what the UNet was trained with, and the refiner's UNet; in half
    precision an autoencoder that overflows in it (`force_upcast`) is kept in float32."""
    if pipeline.text_encoder is None:
        pipeline.register_modules(tokenizer=None)  # else the second encoder reads the first's words
    unet, second = pipeline.unet, pipeline.text_encoder_2
    if unet.config.addition_embed_type != "text_time":
        raise UserError(f"{source!r} has a UNet that is not told of sizes: it is no SDXL's")
    taken = SIZES * int(unet.config.addition_time_embed_dim)
    pooled = int(unet.config.projection_class_embeddings_input_dim) - taken
    if pooled != second.config.projection_dim:
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
    if pipeline.vae.config.force_upcast and unet.dtype == torch.float16:
        pipeline.vae.to(torch.float32)


def _before_shift(model: Observed, label: Tensor, x: Tensor) -> Tensor:
    """The time u before the shift σ = m/(m + 1/u − 1), m by the picture's size: CogView 4's."""
    config: Any = model.pipeline.scheduler.config
    patch = model.pipeline.transformer.config.patch_size
    factor: float = config.shift
    if config.use_dynamic_shifting:
        tokens = math.prod(side // patch for side in x.shape[-2:])
        relative = math.sqrt(tokens / config.base_image_seq_len)
        mu = relative * config.max_shift + config.base_shift
        factor = mu if config.time_shift_type == "linear" else math.exp(mu)
    time: Tensor = TIMES / (1 + factor * (TIMES / label - 1))
    return time


def _of_places(model: Observed, label: Tensor, x: Tensor) -> Tensor:
    """The scheduler's time; of Wan 2.2 5B for each of the network's places, [B, Thw/4]."""
    pipeline: Any = model.pipeline
    if not pipeline.config.expand_timesteps:
        return label
    frames, rows, columns = x.shape[-3:]
    return label[:, None].expand(-1, frames * (rows // 2) * (columns // 2))


def _as_large(model: Observed) -> dict[str, Any]:
    """Kontext's call draws, and reads the picture, in the model's size."""
    height, width = model.sides["height"], model.sides["width"]
    return {"max_area": height * width, "_auto_resize": False}


AS_GIVEN = {"use_resolution_binning": False}
"""Sizes are not rounded to those that a model was trained on."""
ROWS = (
    Row(
        kind="StableDiffusionPipeline",
        networks=("UNet2DConditionModel",),
        state="sample",
        distilled=_told,
        unused=("safety_checker",),
    ),
    Row(
        kind="StableDiffusionXLPipeline",
        networks=("UNet2DConditionModel",),
        state="sample",
        distilled=_told,
        prepare=_sdxl,
        needed=("text_encoder_2",),
    ),
    Row(
        kind="StableDiffusionInstructPix2PixPipeline",
        networks=("UNet2DConditionModel",),
        state="sample",
        unprompted="last",
        edits=lambda model: {},
        image_scale="image_guidance_scale",
        pictures=2,
        unused=("safety_checker", "image_encoder"),
    ),
    Row(
        kind="StableDiffusion3Pipeline",
        networks=("SD3Transformer2DModel",),
        prepare=_flow,
        arguments=_longest(256),
        targets=JOINT_ATTENTION,
    ),
    Row(
        kind="FluxPipeline",
        networks=("FluxTransformer2DModel",),
        clock=of_fraction,
        layout=PATCHES,
        prepare=_flow,
        distilled=lambda pipeline: bool(pipeline.transformer.config.guidance_embeds),
        unprompted="empty",
        shared=("img_ids", "txt_ids"),
        arguments=lambda pipeline: _longest(
            T5_TOKENS[bool(pipeline.transformer.config.guidance_embeds)]
        )(pipeline),
        targets=JOINT_ATTENTION,
        needed=("text_encoder", "text_encoder_2"),
    ),
    Row(
        kind="FluxKontextPipeline",
        networks=("FluxTransformer2DModel",),
        clock=of_fraction,
        layout=PATCHES,
        prepare=_flow,
        distilled=lambda pipeline: bool(pipeline.transformer.config.guidance_embeds),
        unprompted="empty",
        shared=("img_ids", "txt_ids"),
        arguments=_longest(512),
        edits=_as_large,
        targets=JOINT_ATTENTION,
        unused=("image_encoder", "feature_extractor"),
        needed=("text_encoder", "text_encoder_2"),
    ),
    Row(
        kind="ChromaPipeline",
        networks=("ChromaTransformer2DModel",),
        clock=of_fraction,
        layout=PATCHES,
        prepare=_flow,
        unprompted="second",
        shared=("img_ids", "txt_ids"),
        arguments=_longest(512),
        targets=JOINT_ATTENTION,
        needed=("text_encoder",),
    ),
    Row(
        kind="Flux2KleinPipeline",
        networks=("Flux2Transformer2DModel",),
        clock=of_fraction,
        layout=TOKENS,
        prepare=_flow,
        unprompted="second",
        arguments=_longest(512),
        targets=(*JOINT_ATTENTION, "to_qkv_mlp_proj"),
        needed=("text_encoder",),
    ),
    Row(
        kind="QwenImagePipeline",
        networks=("QwenImageTransformer2DModel",),
        clock=of_fraction,
        layout=PATCHES,
        prepare=_flow,
        unprompted="second",
        combine=rescaled,
        scale="true_cfg_scale",
        negative=" ",
        masks={"encoder_hidden_states": "encoder_hidden_states_mask"},
        targets=JOINT_ATTENTION,
        needed=("text_encoder",),
    ),
    Row(
        kind="QwenImageEditPipeline",
        networks=("QwenImageTransformer2DModel",),
        clock=of_fraction,
        layout=PATCHES,
        prepare=_flow,
        unprompted="second",
        combine=rescaled,
        scale="true_cfg_scale",
        negative=" ",
        masks={"encoder_hidden_states": "encoder_hidden_states_mask"},
        edits=lambda model: {},
        sees=True,
        targets=JOINT_ATTENTION,
        needed=("text_encoder", "processor"),
    ),
    Row(
        kind="ZImagePipeline",
        networks=("ZImageTransformer2DModel",),
        state="x",
        time="t",
        clock=of_progress,
        sign=-1.0,
        layout=LIST,
        prepare=_flow,
        unprompted="last",
        offset=1.0,
        summary="cap_feats",
        arguments=_longest(512),
        side=1024,
        needed=("text_encoder",),
    ),
    Row(
        kind="Lumina2Pipeline",
        networks=("Lumina2Transformer2DModel",),
        clock=of_progress,
        sign=-1.0,
        prepare=_flow,
        unprompted="second",
        combine=rescaled,
        arguments=_longest(256),
        needed=("text_encoder",),
    ),
    Row(
        kind="SanaPipeline",
        networks=("SanaTransformer2DModel",),
        arguments=_longest(300, **AS_GIVEN),
        prepare=_flow,
        needed=("text_encoder",),
    ),
    Row(
        kind="PixArtSigmaPipeline",
        networks=("PixArtTransformer2DModel",),
        arguments=_longest(300, **AS_GIVEN),
        needed=("text_encoder",),
    ),
    Row(
        kind="PixArtAlphaPipeline",
        networks=("PixArtTransformer2DModel",),
        arguments=_longest(120, **AS_GIVEN),
        needed=("text_encoder",),
    ),
    Row(
        kind="AuraFlowPipeline",
        networks=("AuraFlowTransformer2DModel",),
        clock=of_fraction,
        prepare=_flow,
        arguments=_longest(256),
        targets=(*ATTENTION, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
        needed=("text_encoder",),
    ),
    Row(
        kind="CogView4Pipeline",
        networks=("CogView4Transformer2DModel",),
        prepare=_flow,
        unprompted="second",
        masked=False,
        picture_first=True,
        clock=_before_shift,
        arguments=_longest(1024),
        needed=("text_encoder",),
    ),
    Row(
        kind="WanPipeline",
        networks=("WanTransformer3DModel",),
        clock=_of_places,
        prepare=_flow,
        unprompted="second",
        side="832x480",
        arguments=_longest(512),
        needed=("text_encoder",),
    ),
    Row(
        kind="LTXPipeline",
        networks=("LTXVideoTransformer3DModel",),
        layout=TOKENS,
        prepare=_flow,
        side="704x512",
        arguments=_longest(128),
        needed=("text_encoder",),
    ),
    Row(
        kind="HunyuanVideoPipeline",
        networks=("HunyuanVideoTransformer3DModel",),
        prepare=_flow,
        distilled=lambda pipeline: bool(pipeline.transformer.config.guidance_embeds),
        unprompted="empty",
        picture_first=True,
        side="1280x720",
        arguments=_longest(256),
        targets=JOINT_ATTENTION,
        needed=("text_encoder", "text_encoder_2"),
    ),
    Row(
        kind="CogVideoXPipeline",
        networks=("CogVideoXTransformer3DModel",),
        layout=TIME_FIRST,
        picture_first=True,
        arguments=_longest(226),
        needed=("text_encoder",),
    ),
)
FAMILIES: dict[str, Family[Any]] = {row.kind: row.family for row in ROWS}
"""Each row's family, by the class of its pipeline."""
