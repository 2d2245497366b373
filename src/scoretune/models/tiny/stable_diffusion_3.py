"""A Stable Diffusion 3 of a few thousand random weights, without a T5: pictures of 32 pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from scoretune.models.tiny import words
from scoretune.models.tiny.stable_diffusion_xl import (
    FIRST,
    SECOND,
    autoencoder,
    encoder,
    jittered,
    t5,
)

JOINT, POOLED = 24, 10
"""Width of the text states that the transformer takes, and of each encoder's pooled state."""
T5_TOKENS = 2
"""Rows of zeros in the place of a T5's states."""


def build(folder: Path, seed: int = 0) -> Path:
    """Save one as plain diffusers would; the folder."""
    whole = pipeline(seed)
    whole.transformer.register_to_config(_max_sequence_length=T5_TOKENS)
    whole.save_pretrained(folder)
    return folder


def pipeline(
    seed: int = 0,
    *,
    third: bool = False,
    pooled: int = POOLED,
    shift: float = 3.0,
    offset: float | None = 0.06,
) -> Any:
    """A StableDiffusion3Pipeline of random weights, with a `third` encoder, a T5, or without."""
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    torch.manual_seed(seed)
    reader, vae = words.tokenizer(), autoencoder()
    vae.register_to_config(scaling_factor=1.5, shift_factor=offset)
    return StableDiffusion3Pipeline(
        transformer=jittered(transformer(2 * pooled)),
        vae=vae,
        text_encoder=encoder(FIRST, projection=pooled).eval(),
        tokenizer=reader,
        text_encoder_2=encoder(SECOND, projection=pooled).eval(),
        tokenizer_2=reader,
        text_encoder_3=t5(JOINT).eval() if third else None,
        tokenizer_3=reader if third else None,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
    )


def transformer(pooled: int = 2 * POOLED) -> Any:
    """Two blocks, the first with the second attention of SD3.5 medium."""
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=4,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=JOINT,
        caption_projection_dim=16,
        pooled_projection_dim=pooled,
        pos_embed_max_size=4,
        qk_norm="rms_norm",
        dual_attention_layers=(0,),
    ).eval()
