"""A tiny UNet2DModel on pictures of 8×8, without prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from scoretune.models.tiny.stable_diffusion_xl import jittered


def build(folder: Path, seed: int = 0) -> Path:
    """Save a DDIMPipeline of colour pictures in a folder; returns the folder."""
    from diffusers import DDIMPipeline, DDIMScheduler

    scheduler = DDIMScheduler(clip_sample=False)
    DDIMPipeline(unet(seed), scheduler).save_pretrained(folder)
    return folder


def unet(
    seed: int = 0,
    *,
    channels: int = 3,
    attention: bool = True,
    classes: int | None = None,
    class_kind: str | None = None,
) -> Any:
    """A UNet2DModel of random weights; `class_kind` is what diffusers calls class_embed_type."""
    from diffusers import UNet2DModel

    torch.manual_seed(seed)
    network = UNet2DModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D" if attention else "DownBlock2D"),
        up_block_types=("AttnUpBlock2D" if attention else "UpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        add_attention=attention,
        num_class_embeds=classes,
        class_embed_type=class_kind,
    )
    return jittered(network).eval()
