"""Stable Diffusion 1.x and 2.x: any diffusers StableDiffusionPipeline, from a folder or the hub."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from scoretune.batches import Condition
from scoretune.diffusion.estimates import Prediction, prediction_named
from scoretune.diffusion.processes import Process, Tabulated
from scoretune.errors import UserError


@dataclass
class StableDiffusion:
    """A StableDiffusionPipeline as a continuous-time model; everything but the UNet is frozen."""

    pipeline: Any
    process: Process
    prediction: Prediction
    shape: tuple[int, ...]

    @property
    def network(self) -> nn.Module:
        return cast(nn.Module, self.pipeline.unet)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Condition:
        """Text states [B, L, D]; the empty prompt's states serve guidance."""
        words = self.pipeline.tokenizer(
            [*prompts, ""],
            padding="max_length",
            max_length=self.pipeline.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        encoder = self.pipeline.text_encoder
        tokens = encoder(words.input_ids.to(encoder.device))[0]
        return Condition(tokens[:-1], tokens[-1])

    def predict(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        label, unet = cast(Tabulated, self.process).label(t), self.pipeline.unet
        told = tokens.to(unet.dtype)
        return cast(Tensor, unet(x.to(unet.dtype), label, encoder_hidden_states=told).sample)

    @property
    def feature_size(self) -> int:
        """The channels of the UNet's bottleneck."""
        return int(self.pipeline.unet.config.block_out_channels[-1])

    def predict_with_features(self, x: Tensor, t: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """`predict`, and the mid-block's output [B, F, h, w] averaged over the picture."""
        seen: list[Tensor] = []
        hook = self.pipeline.unet.mid_block.register_forward_hook(
            lambda module, given, hidden: seen.append(hidden)
        )
        try:
            output = self.predict(x, t, tokens)
        finally:
            hook.remove()
        return output, seen[0].float().mean((2, 3))

    def decode(self, x0: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1]; differentiable, as gradient-based rewards need."""
        vae = self.pipeline.vae
        pixels = vae.decode(x0.to(vae.dtype) / vae.config.scaling_factor).sample
        return cast(Tensor, (pixels.float() / 2 + 0.5).clamp(0, 1))

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """Latents [B, C, H/f, W/f] of images in [0, 1], the mode of the encoder's law."""
        vae = self.pipeline.vae
        parts = [
            vae.encode(part.to(vae.dtype) * 2 - 1).latent_dist.mode() for part in images.split(64)
        ]
        return torch.cat(parts).float() * float(vae.config.scaling_factor)


def load(
    source: str, *, revision: str | None = None, dtype: torch.dtype = torch.float32
) -> StableDiffusion:
    """Load a pipeline from a local folder or a hub id. Weights must be safetensors.

    Raises UserError when the folder is missing, no pipeline, or holds pickled weights.
    """
    folder = Path(source)
    if folder.exists() or source.startswith((".", "/", "~")):
        _check_folder(folder)
    pipeline = _read_pipeline(source, revision, dtype)
    scheduler = pipeline.scheduler.config
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.requires_grad_(False).eval()
    pipeline.vae.to(memory_format=torch.channels_last)  # a quarter off the decoder's time
    return StableDiffusion(
        pipeline=pipeline,
        process=Tabulated(tuple(pipeline.scheduler.alphas_cumprod.double().tolist())),
        prediction=prediction_named(scheduler.get("prediction_type", "epsilon")),
        shape=(pipeline.unet.config.in_channels, *(pipeline.unet.config.sample_size,) * 2),
    )


def _read_pipeline(source: str, revision: str | None, dtype: torch.dtype) -> Any:
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    from diffusers import StableDiffusionPipeline  # only now: importing it warns of torchvision

    try:
        pipeline = StableDiffusionPipeline.from_pretrained(
            source, revision=revision, use_safetensors=True, safety_checker=None, dtype=dtype
        )
    except Exception as error:  # diffusers raises many kinds for a broken folder or a missing hub
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"cannot load the model {source!r} ({first_line}): give a folder or hub id of a "
            "StableDiffusionPipeline with safetensors weights"
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _check_folder(folder: Path) -> None:
    index = folder / "model_index.json"
    if not folder.is_dir():
        raise UserError(f"model folder {str(folder)!r} does not exist: check the path")
    try:
        described = json.loads(index.read_text())
    except (OSError, ValueError):
        raise UserError(
            f"{str(folder)!r} is no diffusers pipeline (no readable model_index.json): "
            "save one with pipe.save_pretrained(folder)"
        ) from None
    if described.get("_class_name") != "StableDiffusionPipeline":
        raise UserError(
            f"{str(folder)!r} holds a {described.get('_class_name')}, not a "
            "StableDiffusionPipeline: this version fine-tunes Stable Diffusion 1.x and 2.x"
        )
    pickled = [p for p in folder.rglob("*") if p.suffix in {".bin", ".ckpt", ".pt", ".pth"}]
    safe = {p.parent for p in folder.rglob("*.safetensors")}
    for file in pickled:
        if file.parent not in safe:
            raise UserError(
                f"{str(file)!r} is a pickle, which can run code when read: convert it with "
                "pipe.save_pretrained(folder, safe_serialization=True)"
            )
