"""A latent consistency model of a few thousand random weights: pictures of 32 pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scoretune.models.tiny import stable_diffusion
from scoretune.models.tiny.stable_diffusion_xl import TABLE


def build(folder: Path, seed: int = 0) -> Path:
    """Save one as plain diffusers would; the folder."""
    pipeline(seed).save_pretrained(folder)
    return folder


def pipeline(seed: int = 0, prediction: str = "epsilon", guidance: int | None = 8) -> Any:
    """A LatentConsistencyModelPipeline; `guidance` is the width of its embedded guidance."""
    from diffusers import LCMScheduler

    scheduler = LCMScheduler(**TABLE, prediction_type=prediction)
    kind = "LatentConsistencyModelPipeline"
    return stable_diffusion.pipeline(scheduler, seed, kind=kind, guidance=guidance)
