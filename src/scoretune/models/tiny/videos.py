"""Tiny text-to-video transformers of random weights: videos of 5 frames of 32×32 pixels, latents of
3 frames of 4×4."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from scoretune.models.tiny.stable_diffusion_xl import encoder, t5
from scoretune.models.tiny.transformers import HEADS, TOKENS, WIDTH, language, reader, saved, umt5

FRAMES = 5
"""Of a video: two are a frame of the latents, behind the first."""
MOMENTS: dict[str, Any] = {
    "latents_mean": [0.1, -0.2, 0.3, 0.0],
    "latents_std": [1.5, 0.8, 1.1, 2.0],
}


def build(name: str, folder: Path, seed: int = 0) -> Path:
    """Save the pipeline of a family in a folder; returns the folder."""
    torch.manual_seed(seed)
    kind, make = MADE[name]
    return saved(kind, make(), folder, _sample_frames=FRAMES)


def wan(*, in_places: bool = False) -> dict[str, Any]:
    """Wan 2.1; `in_places`: 2.2 TI2V 5B, which is told the time of each place."""
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel

    network = WanTransformer3DModel(
        in_channels=4,
        out_channels=4,
        text_dim=WIDTH,
        freq_dim=8,
        ffn_dim=WIDTH,
        num_layers=2,
        rope_max_seq_len=32,
        **HEADS,
    )
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, False, True],
        scale_factor_temporal=2,
        **MOMENTS,
    )
    scheduler = UniPCMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
    )
    parts = {"transformer": network, "vae": vae, "text_encoder": umt5(), "scheduler": scheduler}
    return {**parts, "expand_timesteps": in_places}


def ltx() -> dict[str, Any]:
    """LTX, whose decoder is told a time, as from 0.9.1 on."""
    from diffusers import (
        AutoencoderKLLTXVideo,
        FlowMatchEulerDiscreteScheduler,
        LTXVideoTransformer3DModel,
    )

    network = LTXVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        cross_attention_dim=WIDTH,
        num_layers=2,
        caption_channels=WIDTH,
        **HEADS,
    )
    vae = AutoencoderKLLTXVideo(
        latent_channels=4,
        block_out_channels=(8, 8),
        down_block_types=("LTXVideoDownBlock3D",) * 2,
        decoder_block_out_channels=(8, 8),
        layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        spatio_temporal_scaling=(True, False),
        decoder_spatio_temporal_scaling=(True, False),
        decoder_inject_noise=(False, False, False),
        timestep_conditioning=True,
    )
    for name, values in MOMENTS.items():
        getattr(vae, name).copy_(torch.tensor(values))
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, shift_terminal=0.1
    )
    return {"transformer": network, "vae": vae, "text_encoder": t5(WIDTH), "scheduler": scheduler}


def hunyuan_video() -> dict[str, Any]:
    from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoTransformer3DModel

    network = HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        rope_axes_dim=(2, 4, 2),
        **HEADS,
    )
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=4,
        block_out_channels=(4, 4, 4, 4),
        layers_per_block=1,
        norm_num_groups=2,
    )
    parts = {"transformer": network, "vae": vae, "text_encoder": language("LlamaModel")}
    return {**parts, "text_encoder_2": encoder(WIDTH, length=77), "tokenizer_2": reader()}


def cogvideox() -> dict[str, Any]:
    from diffusers import (
        AutoencoderKLCogVideoX,
        CogVideoXDDIMScheduler,
        CogVideoXTransformer3DModel,
    )

    network = CogVideoXTransformer3DModel(
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=WIDTH,
        num_layers=2,
        sample_width=4,
        sample_height=4,
        sample_frames=FRAMES,
        temporal_compression_ratio=2,
        max_text_seq_length=TOKENS,
        num_attention_heads=1,
        attention_head_dim=WIDTH,
        use_rotary_positional_embeddings=True,
    )
    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=2,
        sample_height=32,
        sample_width=32,
        scaling_factor=0.7,
    )
    scheduler = CogVideoXDDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        snr_shift_scale=3.0,
        timestep_spacing="trailing",
    )
    return {"transformer": network, "vae": vae, "text_encoder": t5(WIDTH), "scheduler": scheduler}


MADE: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "wan": ("WanPipeline", wan),
    "wan-2.2-5b": ("WanPipeline", partial(wan, in_places=True)),
    "ltx": ("LTXPipeline", ltx),
    "hunyuan-video": ("HunyuanVideoPipeline", hunyuan_video),
    "cogvideox": ("CogVideoXPipeline", cogvideox),
}
"""The families by name: their pipelines, and the parts of a miniature."""
