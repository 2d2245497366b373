"""A Stable Diffusion 1.x or 2.x of a few thousand random weights: pictures of 32 pixels."""

from __future__ import annotations

from pathlib import Path

import torch

from scoretune.models.tiny import words
from scoretune.models.tiny.stable_diffusion_xl import (
    FIRST,
    autoencoder,
    denoiser,
    encoder,
    jittered,
)


def build(folder: Path, seed: int = 0, prediction: str = "epsilon") -> Path:
    """Save one as plain diffusers would; the folder. `v_prediction` is what 2.x puts out."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    torch.manual_seed(seed)
    pipeline = StableDiffusionPipeline(
        unet=jittered(denoiser(FIRST)),
        vae=autoencoder(),
        text_encoder=encoder(FIRST).eval(),
        tokenizer=words.tokenizer(),
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            prediction_type=prediction,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder
