"""Training the miniature Stable Diffusion from nothing: `scoretune pretrain scenes`.

Four stages, each seeded and resumable: the autoencoder, the reader and the judge, the text
encoder's grounding (what stands where, read off a caption), and the noise predictor together with
the text encoder. Captions are clean at first and noisy at the end, as the web's are: a stated share
names another scene of the same task. So the model can draw what is asked, and often doesn't.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scoretune.commands.pretrain import flow
from scoretune.commands.pretrain.lessons import (
    Bank,
    Error,
    Recipe,
    autoencoder_stage,
    denoising_stage,
    fill_bank,
    grounding_stage,
    noise_error,
    reading_stage,
    scenes,
)
from scoretune.commands.pretrain.networks import (
    autoencoder,
    denoiser,
    schedule,
    text_encoder,
    tokenizer,
)
from scoretune.commands.pretrain.stage import Progress
from scoretune.rewards.reader import CanvasJudge, CellReader


@dataclass(frozen=True)
class Ground:
    """What both miniatures stand on, and the denoiser that is to learn on it."""

    vae: Any
    network: Any
    reader: nn.Module
    judge: nn.Module
    encoder: Any
    words: Any
    bank: Bank


def pretrain(folder: Path, recipe: Recipe, progress: Progress) -> Path:
    """Run every stage, resuming whatever is there; returns the folder of the finished model."""
    from diffusers import StableDiffusionPipeline

    ground = _ground(folder, recipe, progress, denoiser)
    trained = nn.ModuleDict({"unet": ground.network, "text": ground.encoder})
    error = noise_error(ground.network, ground.encoder, ground.words)
    average = _denoise("denoiser", trained, error, ground, folder, recipe, progress)
    pipe = diffusion_pipeline(StableDiffusionPipeline, ground.vae, average, ground.words)
    return export(pipe, folder / "model", ground, recipe)


def pretrain_flow(folder: Path, recipe: Recipe, progress: Progress) -> Path:
    """The same for the rectified flow; in a folder of the other miniature only its own stage."""
    ground = _ground(folder, recipe, progress, flow.transformer)
    encoder = flow.projecting(ground.encoder)
    trained = nn.ModuleDict({"transformer": ground.network, "text": encoder})
    error = flow.velocity_error(ground.network, encoder, ground.words)
    average = _denoise("flow", trained, error, ground, folder, recipe, progress)
    pipe = flow.pipeline(ground.vae, average["transformer"], average["text"], ground.words)
    return export(pipe, folder / "flow-model", ground, recipe)


def _denoise(
    name: str,
    trained: nn.ModuleDict,
    error: Error,
    ground: Ground,
    folder: Path,
    recipe: Recipe,
    progress: Progress,
) -> nn.ModuleDict:
    """Train the denoiser and its text encoder; the average of their weights."""
    average = copy.deepcopy(trained).requires_grad_(False)
    stage = denoising_stage(name, trained, average, ground.bank, recipe, error)
    stage.run(folder, recipe.save_every, progress)
    return average


def _ground(
    folder: Path, recipe: Recipe, progress: Progress, network_of: Callable[[], Any]
) -> Ground:
    torch.manual_seed(recipe.seed)
    words = tokenizer()
    vae, network, encoder = autoencoder(), network_of(), text_encoder(len(words))
    reader, judge = CellReader(), CanvasJudge()
    autoencoder_stage(vae, recipe, scenes(recipe)).run(folder, recipe.save_every, progress)
    reading_stage("reader", reader, vae, recipe).run(folder, recipe.save_every, progress)
    reading_stage("judge", judge, vae, recipe).run(folder, recipe.save_every, progress)
    grounding_stage(encoder, words, recipe).run(folder, recipe.save_every, progress)
    encoder.train().requires_grad_(True)
    bank, factor = fill_bank(vae, recipe, progress)
    vae.register_to_config(scaling_factor=factor)
    return Ground(vae, network, reader, judge, encoder, words, bank)


def diffusion_pipeline(kind: Any, vae: Any, average: nn.ModuleDict, words: Any) -> Any:
    """A pipeline of diffusers, of this kind, of the averaged weights."""
    from diffusers import DDIMScheduler

    return kind(
        vae=vae,
        unet=average["unet"].eval(),
        text_encoder=average["text"].eval(),
        tokenizer=words,
        scheduler=DDIMScheduler(**schedule()),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def export(pipe: Any, target: Path, ground: Ground, recipe: Recipe) -> Path:
    """Save a pipeline in fp16, the reader, the judge and how they came about."""
    from safetensors.torch import save_file

    target.mkdir(parents=True, exist_ok=True)
    for name, module in {"reader": ground.reader, "judge": ground.judge}.items():
        halves = {key: _half(value) for key, value in module.state_dict().items()}
        save_file(halves, target / f"{name}.safetensors")
    save_pipeline(pipe, target, recipe)
    return target


def save_pipeline(pipe: Any, target: Path, recipe: Any) -> None:
    """Save a pipeline in fp16, and the recipe, a dataclass, by which it was trained."""
    pipe.to(torch.float16).save_pretrained(target, safe_serialization=True)
    # transformers loads in the saved precision and diffusers in float32: the two must match.
    for part in ("text_encoder", "text_encoder_2"):
        if part in pipe.components:
            pipe.components[part].float().save_pretrained(target / part)
    for weights in target.rglob("*.safetensors"):
        weights.chmod(0o644)  # some libraries write them for the owner alone
    (target / "training.json").write_text(json.dumps(asdict(recipe), indent=2) + "\n")


def save_nameless(pipe: Any, target: Path, recipe: Any) -> None:
    """The same of a pipeline that began as another, whose folder its parts would name."""
    for part in (pipe.unet, pipe.vae):
        part.register_to_config(_name_or_path="")
    save_pipeline(pipe, target, recipe)


def _half(value: Tensor) -> Tensor:
    return value.half().contiguous() if value.is_floating_point() else value.contiguous()
