"""The shipped miniature Stable Diffusion with the smallest UNet in the place of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from scoretune.data.scenes import world


def build(folder: Path) -> Path:
    """Save one: autoencoder, text encoder, reader and judge are the shipped ones, the UNet has one
    block down and one up, and random weights."""
    from diffusers import UNet2DConditionModel

    shutil.copytree(world.shipped(), folder, ignore=shutil.ignore_patterns("unet"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            block_out_channels=(8,),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D",),
            mid_block_type=None,
            up_block_types=("UpBlock2D",),
            attention_head_dim=2,
            norm_num_groups=4,
            cross_attention_dim=64,
        ).save_pretrained(folder / "unet")
    return folder
