"""Training the miniature Stable Diffusion from nothing: `scoretune pretrain scenes`.

Four stages, each seeded and resumable: the autoencoder, the reader and the judge, the text
encoder's grounding (what stands where, read off a caption), and the noise predictor together with
the text encoder. Captions are clean at first and noisy at the end, as the web's are: a stated share
names another scene of the same task. So the model can draw what is asked, and often doesn't.
"""

from __future__ import annotations

import copy
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scoretune.rewards.reader import CanvasJudge, CellReader
from scoretune.scenes.lessons import (
    Recipe,
    autoencoder_stage,
    denoiser_stage,
    fill_bank,
    grounding_stage,
    reading_stage,
)
from scoretune.scenes.networks import autoencoder, denoiser, schedule, text_encoder, tokenizer
from scoretune.scenes.stage import Progress


def pretrain(folder: Path, recipe: Recipe, progress: Progress) -> Path:
    """Run every stage, resuming whatever is there; returns the folder of the finished model."""
    torch.manual_seed(recipe.seed)
    words = tokenizer()
    vae, unet, encoder = autoencoder(), denoiser(), text_encoder(len(words))
    reader, judge = CellReader(), CanvasJudge()
    autoencoder_stage(vae, recipe).run(folder, recipe.save_every, progress)
    reading_stage("reader", reader, vae, recipe).run(folder, recipe.save_every, progress)
    reading_stage("judge", judge, vae, recipe).run(folder, recipe.save_every, progress)
    grounding_stage(encoder, words, recipe).run(folder, recipe.save_every, progress)
    encoder.train().requires_grad_(True)
    bank, factor = fill_bank(vae, recipe, progress)
    vae.register_to_config(scaling_factor=factor)
    average = copy.deepcopy(nn.ModuleDict({"unet": unet, "text": encoder})).requires_grad_(False)
    networks = {"unet": unet, "text": encoder, "words": words, "average": average}
    denoiser_stage(networks, bank, recipe).run(folder, recipe.save_every, progress)
    return export(
        folder / "model", vae, average["unet"], average["text"], words, reader, judge, recipe
    )


def export(
    target: Path,
    vae: Any,
    unet: Any,
    encoder: Any,
    words: Any,
    reader: nn.Module,
    judge: nn.Module,
    recipe: Recipe,
) -> Path:
    """Save a StableDiffusionPipeline in fp16, the reader, the judge and how they came about."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from safetensors.torch import save_file

    pipe = StableDiffusionPipeline(
        vae=vae,
        unet=unet.eval(),
        text_encoder=encoder.eval(),
        tokenizer=words,
        scheduler=DDIMScheduler(**schedule()),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.to(torch.float16).save_pretrained(target, safe_serialization=True)
    # transformers loads in the saved precision and diffusers in float32: the two must match.
    pipe.text_encoder.float().save_pretrained(target / "text_encoder")
    for name, module in {"reader": reader, "judge": judge}.items():
        halves = {key: _half(value) for key, value in module.state_dict().items()}
        save_file(halves, target / f"{name}.safetensors")
    for weights in target.rglob("*.safetensors"):
        weights.chmod(0o644)  # some libraries write them for the owner alone
    (target / "training.json").write_text(json.dumps(asdict(recipe), indent=2) + "\n")
    return target


def _half(value: Tensor) -> Tensor:
    return value.half().contiguous() if value.is_floating_point() else value.contiguous()
