"""The networks of the miniature Stable Diffusion, in diffusers' and transformers' own classes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from torch import Tensor

from scoretune.data.scenes import world
from scoretune.models.tiny import words


def tokenizer(further: Iterable[str] = ()) -> Any:
    """A word-level tokenizer that knows the words of this world and `further` ones, no others."""
    names = [*world.DIGITS, *world.PLURALS, *world.COLOURS, *world.COUNTS.values()]
    names += ["a", "an", "and", *" ".join(world.RELATIONS).split(), *further]
    return words.tokenizer(words=names)


def text_encoder(vocabulary: int) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=64,
            intermediate_size=192,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=10,
            projection_dim=64,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def autoencoder() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(16, 24, 48),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=32,
        mid_block_add_attention=False,
    )


def restored(vae: Any, pictures: Tensor) -> Tensor:
    """Pictures [B, 3, 32, 32] in [0, 1] after the autoencoder, as a model's own are."""
    latents = vae.encode(pictures * 2 - 1).latent_dist.mode()
    return cast(Tensor, (vae.decode(latents).sample / 2 + 0.5).clamp(0, 1))


def denoiser() -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(40, 80),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),  # diffusers reads this as the number of heads
        norm_num_groups=8,
        cross_attention_dim=64,
        encoder_hid_dim=64,
        addition_embed_type="text",  # a pooled caption joins the time embedding
        addition_embed_type_num_heads=4,
    )


def tokens(tokenizer: Any, texts: list[str]) -> Tensor:
    """Token numbers `[B, 10]`, padded as a StableDiffusionPipeline pads them."""
    longest = tokenizer.model_max_length
    padded = tokenizer(texts, padding="max_length", max_length=longest, return_tensors="pt")
    return cast(Tensor, padded.input_ids)


def schedule() -> dict[str, Any]:
    """Stable Diffusion's noise table; the grid ends at its first node, so every step has noise."""
    return {
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "timestep_spacing": "trailing",
        "prediction_type": "epsilon",
    }
