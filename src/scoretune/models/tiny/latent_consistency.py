"""A latent consistency model of a few thousand random weights: pictures of 32 pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from scoretune.models.tiny import words
from scoretune.models.tiny.stable_diffusion_xl import (
    FIRST,
    autoencoder,
    denoiser,
    encoder,
    jittered,
)

TABLE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
"""Stable Diffusion's noise table, as schedulers take it."""


def build(folder: Path, seed: int = 0) -> Path:
    """Save one as plain diffusers would; the folder."""
    pipeline(seed).save_pretrained(folder)
    return folder


def pipeline(seed: int = 0, prediction: str = "epsilon", guidance: int | None = 8) -> Any:
    """A LatentConsistencyModelPipeline; `guidance` is the width of its embedded guidance."""
    from diffusers import LatentConsistencyModelPipeline, LCMScheduler

    scheduler = LCMScheduler(**TABLE, prediction_type=prediction)
    return LatentConsistencyModelPipeline(
        scheduler=scheduler, **parts(seed, guidance), requires_safety_checker=False
    )


def plain(scheduler: Any, seed: int = 0) -> Any:
    """A StableDiffusionPipeline of the same size: without embedded guidance, as SD-Turbo."""
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline(
        scheduler=scheduler, **parts(seed, None), requires_safety_checker=False
    )


def parts(seed: int, guidance: int | None) -> dict[str, Any]:
    """Everything but the scheduler."""
    torch.manual_seed(seed)
    return {
        "unet": jittered(denoiser(FIRST, guidance=guidance)),
        "vae": autoencoder(),
        "text_encoder": encoder(FIRST).eval(),
        "tokenizer": words.tokenizer(),
        "safety_checker": None,
        "feature_extractor": None,
    }
