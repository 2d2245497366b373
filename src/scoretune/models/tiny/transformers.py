"""Tiny text-to-image transformers of random weights, a pipeline of each family: pictures of 32
pixels, latents of 4×4."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from scoretune.models.tiny import words
from scoretune.models.tiny.stable_diffusion_xl import autoencoder, jittered, t5

WIDTH = 16
"""Of the transformers and of their text states, two heads of 8."""
TOKENS = 12
"""How many of a prompt each reads, templates and all; Qwen-Image reads its whole template."""
SIDE = 32
"""Of pictures, in pixels."""
HEADS: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 8}
UMT5: dict[str, Any] = {"d_kv": 4, "d_ff": 8, "num_heads": 2}
LANGUAGE: dict[str, Any] = {
    "vocab_size": words.VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": WIDTH,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "max_position_embeddings": 1024,
}
"""A tiny language model, as transformers' configs take it."""


def build(name: str, folder: Path, seed: int = 0) -> Path:
    """Save the pipeline of a family in a folder; returns the folder."""
    torch.manual_seed(seed)
    kind, make = MADE[name]
    return saved(kind, make(), folder)


def saved(kind: str, parts: dict[str, Any], folder: Path, **noted: int) -> Path:
    """Save a pipeline of these parts, whose network notes how large it draws and how much it
    reads; returns the folder."""
    import diffusers

    network = jittered(parts["transformer"], 0.1).eval()
    network.register_to_config(_max_sequence_length=TOKENS, _sample_size=4, **noted)
    for name in ("text_encoder", "vae"):
        parts[name].eval()
    parts = {"scheduler": flow(), "tokenizer": reader(), **parts}
    getattr(diffusers, kind)(**parts).save_pretrained(folder)
    return folder


def reader() -> Any:
    """Words to numbers, and a conversation to words."""
    tokenizer = words.tokenizer(TOKENS)
    tokenizer.chat_template = "{% for each in messages %}{{ each['content'] }}{% endfor %}"
    return tokenizer


def flow(**settings: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(shift=3.0, **settings)


def language(kind: str, layers: int = 2, **settings: Any) -> Any:
    """A language model of a class of transformers."""
    import transformers

    made = getattr(transformers, kind)
    return made(made.config_class(**LANGUAGE, num_hidden_layers=layers, **settings))


def chroma() -> dict[str, Any]:
    from diffusers import ChromaTransformer2DModel

    network = ChromaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(2, 4, 2),
        approximator_num_channels=8,
        approximator_hidden_dim=8,
        approximator_layers=1,
        **HEADS,
    )
    parts = {"transformer": network, "vae": shifted(), "text_encoder": t5(WIDTH)}
    return {**parts, "scheduler": flow(use_dynamic_shifting=True)}


def shifted() -> Any:
    vae = autoencoder()
    vae.register_to_config(scaling_factor=0.4, shift_factor=0.1)
    return vae


def flux_2_klein() -> dict[str, Any]:
    from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel

    network = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        joint_attention_dim=3 * WIDTH,
        timestep_guidance_channels=8,
        axes_dims_rope=(2, 2, 2, 2),
        guidance_embeds=False,
        **HEADS,
    )
    blocks = ("DownEncoderBlock2D",) * 3, ("UpDecoderBlock2D",) * 3
    vae = AutoencoderKLFlux2(
        down_block_types=blocks[0],
        up_block_types=blocks[1],
        block_out_channels=(4, 4, 4),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=32,
        mid_block_add_attention=False,
    )
    vae.bn.running_mean.uniform_(-0.5, 0.5)
    vae.bn.running_var.uniform_(0.5, 2)
    encoder = language("Qwen3ForCausalLM", 28)  # the 9th, 18th and 27th states are read
    shift = flow(use_dynamic_shifting=True)
    return {"transformer": network, "vae": vae, "text_encoder": encoder, "scheduler": shift}


def qwen_image() -> dict[str, Any]:
    from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel

    network = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(2, 4, 2),
        **HEADS,
    )
    vae = AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 0.8, 1.1, 2.0],
    )
    parts = {"transformer": network, "vae": vae, "text_encoder": _seeing()}
    return {**parts, "scheduler": flow(use_dynamic_shifting=True)}


def qwen_image_edit() -> dict[str, Any]:
    """A Qwen-Image whose Qwen2.5-VL reads pictures too, of which it makes four tokens."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    from scoretune.models.tiny.picture_reader import PictureReader

    tokenizer = words.tokenizer(1024)
    tokenizer.add_special_tokens({"additional_special_tokens": list(MARKS)})
    looks = Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, min_pixels=64, max_pixels=256)
    parts = {"tokenizer": tokenizer, "processor": PictureReader(looks, tokenizer)}
    return {**qwen_image(), **parts}


@contextmanager
def small_sources() -> Iterator[None]:
    """Within this context Qwen-Image-Edit's call reads pictures at 32 pixels a side: it has no
    argument for the megapixel, of which the miniature's autoencoder would be busy for minutes."""
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit as module

    whole = module.calculate_dimensions
    module.calculate_dimensions = lambda area, ratio: whole(SIDE**2, ratio)
    try:
        yield
    finally:
        module.calculate_dimensions = whole


MARKS = (
    "<|image_pad|>",
    "<|video_pad|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|im_start|>",
    "<|im_end|>",
)
"""Of a Qwen2.5-VL's prompts: the first is as often there as a picture has tokens."""


def _seeing() -> Any:
    """A tiny Qwen2.5-VL, of which Qwen-Image reads texts alone."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = {name: value for name, value in LANGUAGE.items() if name != "head_dim"}
    text["vocab_size"] = words.VOCABULARY + len(MARKS)
    image, video, start, end = range(words.VOCABULARY, words.VOCABULARY + 4)
    rotary = {"rope_type": "default", "type": "default", "mrope_section": [1, 1, 2]}
    config = Qwen2_5_VLConfig(
        text_config={**text, "num_hidden_layers": 2, "rope_scaling": rotary},
        vision_config={
            "depth": 1,
            "hidden_size": WIDTH,
            "intermediate_size": WIDTH,
            "num_heads": 2,
            "out_hidden_size": WIDTH,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "window_size": 16,
            "fullatt_block_indexes": [0],
        },
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def z_image() -> dict[str, Any]:
    from diffusers import ZImageTransformer2DModel

    network = ZImageTransformer2DModel(
        in_channels=4,
        dim=WIDTH,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[2, 4, 2],
        axes_lens=[64, 16, 16],
    )
    return {"transformer": network, "vae": shifted(), "text_encoder": language("Qwen3Model")}


def lumina_2() -> dict[str, Any]:
    from diffusers import Lumina2Transformer2DModel

    network = Lumina2Transformer2DModel(
        sample_size=4,
        in_channels=4,
        hidden_size=WIDTH,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        axes_dim_rope=(2, 4, 2),
        axes_lens=(64, 16, 16),
        cap_feat_dim=WIDTH,
    )
    return {"transformer": network, "vae": shifted(), "text_encoder": language("Gemma2Model")}


def sana() -> dict[str, Any]:
    from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaTransformer2DModel

    network = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=WIDTH,
        caption_channels=WIDTH,
        sample_size=4,
        **HEADS,
    )
    widths, layers, plain = (8, 8, 8, 8), (1, 1, 1, 1), ((), (), (), ())
    vae = AutoencoderDC(
        latent_channels=4,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        encoder_layers_per_block=layers,
        decoder_layers_per_block=layers,
        encoder_qkv_multiscales=plain,
        decoder_qkv_multiscales=plain,
        scaling_factor=0.41407,
    )
    scheduler = DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
    )
    encoder = language("Gemma2Model")
    return {"transformer": network, "vae": vae, "text_encoder": encoder, "scheduler": scheduler}


def pixart(**settings: Any) -> dict[str, Any]:
    from diffusers import DDIMScheduler, PixArtTransformer2DModel

    network = PixArtTransformer2DModel(
        in_channels=4,
        out_channels=8,
        num_layers=2,
        norm_num_groups=4,
        caption_channels=WIDTH,
        **settings,
    )
    parts = {"transformer": network, "vae": autoencoder(), "text_encoder": t5(WIDTH)}
    return {**parts, "scheduler": DDIMScheduler(clip_sample=False)}


def pixart_sigma() -> dict[str, Any]:
    return pixart(
        cross_attention_dim=WIDTH, sample_size=4, use_additional_conditions=False, **HEADS
    )


def pixart_alpha() -> dict[str, Any]:
    """Told its picture's size and proportions, as the model of 1024 pixels, of a width for that."""
    return pixart(
        num_attention_heads=3, attention_head_dim=8, cross_attention_dim=24, sample_size=128
    )


def aura_flow() -> dict[str, Any]:
    from diffusers import AuraFlowTransformer2DModel

    network = AuraFlowTransformer2DModel(
        sample_size=4,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        joint_attention_dim=WIDTH,
        caption_projection_dim=WIDTH,
        out_channels=4,
        pos_embed_max_size=64,
        **HEADS,
    )
    return {"transformer": network, "vae": autoencoder(), "text_encoder": umt5()}


def umt5() -> Any:
    from transformers import UMT5Config, UMT5EncoderModel

    return UMT5EncoderModel(
        UMT5Config(vocab_size=words.VOCABULARY, d_model=WIDTH, num_layers=1, **UMT5)
    )


def cogview_4() -> dict[str, Any]:
    from diffusers import CogView4Transformer2DModel

    network = CogView4Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        text_embed_dim=WIDTH,
        time_embed_dim=8,
        condition_dim=4,
        pos_embed_max_size=8,
        sample_size=4,
        rope_axes_dim=(16, 16),
        **HEADS,
    )
    encoder = language("GlmModel")
    shift = flow(
        use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75, time_shift_type="linear"
    )
    return {
        "transformer": network,
        "vae": autoencoder(),
        "text_encoder": encoder,
        "scheduler": shift,
    }


MADE: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "qwen-image": ("QwenImagePipeline", qwen_image),
    "qwen-image-edit": ("QwenImageEditPipeline", qwen_image_edit),
    "z-image": ("ZImagePipeline", z_image),
    "flux-2-klein": ("Flux2KleinPipeline", flux_2_klein),
    "chroma": ("ChromaPipeline", chroma),
    "sana": ("SanaPipeline", sana),
    "pixart-sigma": ("PixArtSigmaPipeline", pixart_sigma),
    "pixart-alpha": ("PixArtAlphaPipeline", pixart_alpha),
    "lumina-2": ("Lumina2Pipeline", lumina_2),
    "aura-flow": ("AuraFlowPipeline", aura_flow),
    "cogview-4": ("CogView4Pipeline", cogview_4),
}
"""The families by name: their pipelines, and the parts of a miniature."""
