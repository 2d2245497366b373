"""Folders of published models without weights: `scoretune plan` needs no more.

    .venv/bin/python benchmarks/published_models.py FOLDER
    scoretune plan ddpo model.source=FOLDER/flux-dev prompts=prompts.txt hardware.memory=24GB

The configurations are those of stabilityai/stable-diffusion-xl-base-1.0,
black-forest-labs/FLUX.1-dev, Qwen/Qwen-Image and Wan-AI/Wan2.1-T2V-{1.3B,14B}-Diffusers, as
diffusers' scripts/convert_wan_to_diffusers.py has the last two; tokenizers are those of the
miniatures, which changes no shape but that of a Qwen prompt. Numbers of weights are compared with
those of the published files (of Wan as their index says: 57,153,966,336 bytes in float32 for 14B).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scoretune.commands.plan.meta_device import meta_pipeline
from scoretune.models.tiny import flux, stable_diffusion_xl, transformers, videos

CLIP_L = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "projection_dim": 768,
}
CLIP_G = {
    **CLIP_L,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
}
T5_XXL = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
    "is_gated_act": True,
    "dense_act_fn": "gelu_new",
}
VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "sample_size": 1024,
}
SDXL = {
    "unet": {
        "sample_size": 128,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "layers_per_block": 2,
        "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [5, 10, 20],
        "num_attention_heads": None,
        "cross_attention_dim": 2048,
        "norm_num_groups": 32,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "vae": {**VAE, "latent_channels": 4, "force_upcast": True},
    "text_encoder": CLIP_L,
    "text_encoder_2": CLIP_G,
}
FLUX = {
    "transformer": {
        "in_channels": 64,
        "num_layers": 19,
        "num_single_layers": 38,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "guidance_embeds": True,
        "axes_dims_rope": [16, 56, 56],
        "_sample_size": 128,
        "_max_sequence_length": 512,
    },
    "vae": {**VAE, "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False},
    "text_encoder": CLIP_L,
    "text_encoder_2": T5_XXL,
}
QWEN = {
    "transformer": {
        "in_channels": 64,
        "out_channels": 16,
        "num_layers": 60,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 3584,
        "axes_dims_rope": [16, 56, 56],
    },
    "vae": {
        "base_dim": 96,
        "z_dim": 16,
        "dim_mult": [1, 2, 4, 4],
        "num_res_blocks": 2,
        "latents_mean": [0.0] * 16,
        "latents_std": [1.0] * 16,
    },
    "text_encoder": {
        "text_config": {
            "vocab_size": 152064,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "max_position_embeddings": 128000,
            "layer_types": ["full_attention"] * 28,
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": [16, 24, 24],
                "rope_theta": 1e6,
            },
        },
        "vision_config": {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 3584,
            "patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
    },
}
UMT5_XXL = {**T5_XXL, "vocab_size": 256384}
WAN_VAE = {
    "base_dim": 96,
    "z_dim": 16,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "temperal_downsample": [False, True, True],
    "scale_factor_temporal": 4,
    "latents_mean": [0.0] * 16,
    "latents_std": [1.0] * 16,
}
WAN = {
    "transformer": {
        "in_channels": 16,
        "out_channels": 16,
        "attention_head_dim": 128,
        "num_attention_heads": 12,
        "num_layers": 30,
        "ffn_dim": 8960,
        "freq_dim": 256,
        "text_dim": 4096,
        "rope_max_seq_len": 1024,
        "_sample_size": [60, 104],
        "_sample_frames": 81,
        "_max_sequence_length": 512,
    },
    "vae": WAN_VAE,
    "text_encoder": UMT5_XXL,
}
WAN_14B = {
    **WAN,
    "transformer": {
        **WAN["transformer"],
        "num_attention_heads": 40,
        "num_layers": 40,
        "ffn_dim": 13824,
    },
}
WAN_PARTS = {"text_encoder": 5_680_910_336, "vae": 126_892_531}
Model = tuple[Callable[[Path], Path], str, dict[str, Any], dict[str, int]]
MODELS: dict[str, Model] = {
    "sdxl": (
        stable_diffusion_xl.build,
        "StableDiffusionXLPipeline",
        SDXL,
        {"unet": 2_567_463_684, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840},
    ),
    "flux-dev": (
        flux.build,
        "FluxPipeline",
        FLUX,
        {"transformer": 11_901_408_320, "text_encoder_2": 4_762_310_656},
    ),
    "qwen-image": (
        lambda folder: transformers.build("qwen-image", folder),
        "QwenImagePipeline",
        QWEN,
        {"transformer": 20_430_401_088, "text_encoder": 8_292_166_656},
    ),
    "wan-1.3b": (
        lambda folder: videos.build("wan", folder),
        "WanPipeline",
        WAN,
        {"transformer": 1_418_996_800, **WAN_PARTS},
    ),
    "wan-14b": (
        lambda folder: videos.build("wan", folder),
        "WanPipeline",
        WAN_14B,
        {"transformer": 14_288_491_584, **WAN_PARTS},
    ),
}
"""What builds the miniature, the pipeline's class, the parts' settings, and published numbers of
weights."""


def build(name: str, home: Path) -> Path:
    """The folder of a model without weights."""
    make, kind, parts, sizes = MODELS[name]
    folder = make(home / name)
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()
    for part, settings in parts.items():
        path = folder / part / "config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps(_over(config, settings)))
    pipeline = meta_pipeline(kind, str(folder), revision=None, dtype=torch.bfloat16)
    for part, published in sizes.items():
        module: nn.Module = getattr(pipeline, part)
        counted = sum(each.numel() for each in module.parameters())
        if counted != published:
            raise SystemExit(f"the {part} of {name} has {counted:,} weights, not {published:,}")
    return folder


def _over(config: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    nested = {n: _over(config[n], v) for n, v in settings.items() if isinstance(v, dict)}
    return {**config, **settings, **nested}


if __name__ == "__main__":
    for each in sys.argv[2:] or MODELS:
        print(build(each, Path(sys.argv[1])))
