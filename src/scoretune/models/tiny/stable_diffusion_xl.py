"""A Stable Diffusion XL of a few thousand random weights: pictures of 32 pixels, latents of 4."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from scoretune.models.tiny import words

FIRST, SECOND = 12, 8
"""Widths of the two text encoders."""
TABLE: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
"""Stable Diffusion's noise table, as schedulers take it."""


def build(folder: Path, seed: int = 0) -> Path:
    """Save one as plain diffusers would; the folder."""
    pipeline(seed).save_pretrained(folder)
    return folder


def pipeline(
    seed: int = 0, *, first: bool = True, zeros: bool = True, guidance: int | None = None
) -> Any:
    """A StableDiffusionXLPipeline; `zeros` for the empty prompt, `guidance` of so many numbers."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    torch.manual_seed(seed)
    reader = words.tokenizer()
    width = SECOND + FIRST * first
    return StableDiffusionXLPipeline(
        unet=jittered(denoiser(width, pooled=10, guidance=guidance)),
        vae=autoencoder(),
        text_encoder=encoder(FIRST).eval() if first else None,
        tokenizer=reader if first else None,
        text_encoder_2=encoder(SECOND, projection=10).eval(),
        tokenizer_2=reader,
        scheduler=EulerDiscreteScheduler(**TABLE, steps_offset=1, timestep_spacing="leading"),
        force_zeros_for_empty_prompt=zeros,
        add_watermarker=False,
    )


def encoder(width: int, projection: int = 0, *, length: int = 10) -> Any:
    """A CLIP text encoder of so many tokens, with a pooled state of `projection` numbers if that is
    not 0."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=words.VOCABULARY,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=length,
        projection_dim=projection or width,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return CLIPTextModelWithProjection(config) if projection else CLIPTextModel(config)


def t5(width: int) -> Any:
    """A T5 text encoder."""
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(
            vocab_size=words.VOCABULARY,
            d_model=width,
            d_kv=4,
            d_ff=2 * width,
            num_layers=1,
            num_heads=2,
            pad_token_id=0,
        )
    )


def denoiser(width: int, *, pooled: int = 0, guidance: int | None = None, pictures: int = 1) -> Any:
    """A UNet on states of `width`; with `pooled`, as SDXL's, on that and on sizes too."""
    from diffusers import UNet2DConditionModel

    added: dict[str, Any] = {}
    if pooled:
        added = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + pooled,
            "use_linear_projection": True,
        }
    return UNet2DConditionModel(
        sample_size=4,
        in_channels=4 * pictures,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(1, 2),  # diffusers reads this as the number of heads
        norm_num_groups=4,
        cross_attention_dim=width,
        time_cond_proj_dim=guidance,
        **added,
    ).eval()


def autoencoder() -> Any:
    """From 32 pixels to 4 and back."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        latent_channels=4,
        block_out_channels=(4, 4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=2,
        sample_size=32,
        scaling_factor=0.13025,
        mid_block_add_attention=False,
    ).eval()


def jittered(network: Any, size: float = 0.05) -> Any:
    """The network with noise on every weight, so that its output shows all of its input."""
    for weight in network.parameters():
        weight.data += size * torch.randn_like(weight)
    return network
