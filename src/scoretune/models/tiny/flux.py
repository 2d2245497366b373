"""A tiny FLUX.1: patches of 2×2 on latents of 4×4, one block of each kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from scoretune.models.tiny import words
from scoretune.models.tiny.stable_diffusion_xl import autoencoder, encoder, jittered, t5

SIDE = 4
"""Of the latents that it draws unless set otherwise; a picture is eight times as large."""
TOKENS = 6
"""How many T5 reads."""
STATES, POOLED = 12, 16
"""Widths of T5's states and of CLIP's; a pooled state takes two rows of a condition."""


def build(folder: Path, seed: int = 0) -> Path:
    """Save the pipeline, with distilled guidance as [dev], in a folder; returns the folder."""
    pipeline(seed).save_pretrained(folder)
    return folder


def build_editor(folder: Path, seed: int = 0) -> Path:
    """Save a FLUX.1 Kontext, which edits pictures; returns the folder."""
    pipeline(seed, kind="FluxKontextPipeline").save_pretrained(folder)
    return folder


def pipeline(seed: int = 0, *, distilled: bool = True, kind: str = "FluxPipeline") -> Any:
    """A FluxPipeline of random weights, or another `kind`; not `distilled`: as [schnell], without
    dynamic shift."""
    import diffusers
    from diffusers import FlowMatchEulerDiscreteScheduler

    torch.manual_seed(seed)
    vae = autoencoder()
    vae.register_to_config(scaling_factor=0.4, shift_factor=0.1)
    scheduler = FlowMatchEulerDiscreteScheduler(
        shift=3.0 if distilled else 1.0, use_dynamic_shifting=distilled
    )
    return getattr(diffusers, kind)(
        transformer=jittered(transformer(distilled), 0.1).eval(),
        scheduler=scheduler,
        vae=vae,
        text_encoder=encoder(POOLED).eval(),
        tokenizer=words.tokenizer(),
        text_encoder_2=t5(STATES).eval(),
        tokenizer_2=words.tokenizer(),
    )


def transformer(distilled: bool = True) -> Any:
    """A FluxTransformer2DModel that notes how large it draws and how much it reads."""
    from diffusers import FluxTransformer2DModel

    network = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=STATES,
        pooled_projection_dim=POOLED,
        guidance_embeds=distilled,
        axes_dims_rope=(2, 4, 2),
    )
    network.register_to_config(_sample_size=SIDE, _max_sequence_length=TOKENS)
    return network
