"""A small decoder of random weights, as `model.slope_decoder` takes one."""

from __future__ import annotations

from pathlib import Path

import torch


def build(folder: Path, latent_channels: int, blocks: int) -> Path:
    """An AutoencoderTiny of so many latent channels and 2^(blocks − 1) pixels a latent."""
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    made = AutoencoderTiny(
        encoder_block_out_channels=(8,) * blocks,
        decoder_block_out_channels=(8,) * blocks,
        num_encoder_blocks=(1,) * blocks,
        num_decoder_blocks=(1,) * blocks,
        latent_channels=latent_channels,
    )
    made.save_pretrained(folder)
    return folder
