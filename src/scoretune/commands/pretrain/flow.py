"""The rectified-flow miniature: a Stable Diffusion 3 beside the noise-predicting one.

Same world, autoencoder and text encoder; the denoiser is diffusers' SD3 transformer on the straight
line x_t = (1 − t) x0 + t ε, and predicts the velocity ε − x0 (arXiv 2403.03206 eq. 13). SD3 reads a
caption through two CLIP encoders and a T5: here the one encoder serves as both, and there is no T5.
With plain diffusers:

    pipe = StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)
    pipe("a red seven", max_sequence_length=0)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoretune.commands.pretrain.lessons import Error
from scoretune.commands.pretrain.networks import tokens

PATCH = 2  # latents a side of one token
WIDTH = 128


def transformer() -> Any:
    """The velocity network: 16 tokens of picture, 10 of caption, 2.9 M parameters."""
    from diffusers import SD3Transformer2DModel

    network = SD3Transformer2DModel(
        sample_size=8,
        patch_size=PATCH,
        in_channels=4,
        out_channels=4,
        num_layers=5,
        attention_head_dim=32,
        num_attention_heads=WIDTH // 32,
        joint_attention_dim=128,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=128,
        pos_embed_max_size=8 // PATCH,
        qk_norm="rms_norm",
    )
    # diffusers puts 256 empty tokens in T5's place unless told otherwise; this one knows none. Its
    # configuration keeps what begins with _ through any loading and saving, without a warning.
    network.register_to_config(_max_sequence_length=0)
    return network


def projecting(encoder: Any) -> Any:
    """A CLIPTextModel as SD3 wants it: the same weights, and a projection that changes nothing."""
    from transformers import CLIPTextModelWithProjection

    projected = CLIPTextModelWithProjection(encoder.config)
    projected.text_model.load_state_dict(encoder.state_dict())
    nn.init.eye_(projected.text_projection.weight)
    return projected


def caption_states(encoder: Any, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """States [B, 10, 128] and pooled [B, 128], as StableDiffusion3Pipeline makes them of two."""
    outputs = encoder(numbers, output_hidden_states=True)
    return outputs.hidden_states[-2].repeat(1, 1, 2), outputs[0].repeat(1, 2)


def velocity_error(network: Any, encoder: Any, words: Any) -> Error:
    """Of the velocity that a transformer predicts."""

    def error(latents: Tensor, captions: list[str]) -> Tensor:
        # ln(t/(1−t)) is the log noise-to-signal ratio: the same emphasis as the other denoiser's.
        t = torch.sigmoid(0.6 + 1.2 * torch.randn(len(latents)))
        eps, share = torch.randn_like(latents), t[:, None, None, None]
        states, pooled = caption_states(encoder, tokens(words, captions))
        guess = network((1 - share) * latents + share * eps, states, pooled, 1000 * t).sample
        return F.mse_loss(guess, eps - latents)

    return error


def pipeline(vae: Any, network: Any, encoder: Any, words: Any) -> Any:
    """A StableDiffusion3Pipeline without the third encoder, and without tokens in its place."""
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    vae.register_to_config(shift_factor=0.0)
    return StableDiffusion3Pipeline(
        transformer=network.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=vae,
        text_encoder=encoder.eval(),
        tokenizer=words,
        text_encoder_2=encoder,
        tokenizer_2=words,
        text_encoder_3=None,
        tokenizer_3=None,
    )
