"""A Stable Diffusion 1.x or 2.x of a few thousand random weights: pictures of 32 pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from scoretune.models.tiny import words
from scoretune.models.tiny.stable_diffusion_xl import (
    FIRST,
    TABLE,
    autoencoder,
    denoiser,
    encoder,
    jittered,
)


def build(folder: Path, seed: int = 0, prediction: str = "epsilon") -> Path:
    """Save one as plain diffusers would; the folder. `v_prediction` is what 2.x puts out."""
    from diffusers import DDIMScheduler

    kept = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
    scheduler = DDIMScheduler(**TABLE, **kept, prediction_type=prediction)
    pipeline(scheduler, seed).save_pretrained(folder)
    return folder


def pipeline(
    scheduler: Any,
    seed: int = 0,
    *,
    kind: str = "StableDiffusionPipeline",
    guidance: int | None = None,
    pictures: int = 1,
) -> Any:
    """A pipeline of a `kind` of diffusers; `guidance` is the width of its embedded guidance, and
    its UNet gets the latents of so many `pictures`."""
    import diffusers

    torch.manual_seed(seed)
    return getattr(diffusers, kind)(
        unet=jittered(denoiser(FIRST, guidance=guidance, pictures=pictures)),
        vae=autoencoder(),
        text_encoder=encoder(FIRST).eval(),
        tokenizer=words.tokenizer(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def build_editor(folder: Path, seed: int = 0) -> Path:
    """Save an InstructPix2Pix, whose UNet gets the picture's latents as channels; the folder."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(**TABLE, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    made = pipeline(scheduler, seed, kind="StableDiffusionInstructPix2PixPipeline", pictures=2)
    made.save_pretrained(folder)
    return folder
