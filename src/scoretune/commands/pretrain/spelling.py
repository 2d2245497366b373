"""A miniature Stable Diffusion that writes words, `pretrain words`: 24×48 pixels, three letters.

Captions are spelt: every letter is a token, so that the model can be asked for words that it has
not seen. It learns from letters at random; towards the end of its training a share of the captions
has a wrong letter, and so has what the model writes. With plain diffusers:

    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe('"cat"', height=24, width=48, num_inference_steps=20, guidance_scale=1)
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scoretune.commands.pretrain.lessons import (
    Recipe,
    autoencoder_stage,
    denoising_stage,
    noise_error,
)
from scoretune.commands.pretrain.pretrain import diffusion_pipeline, save_nameless
from scoretune.commands.pretrain.stage import Progress
from scoretune.data import words
from scoretune.data.scenes import world
from scoretune.models.tiny.words import tokenizer

RECIPE = Recipe(
    batch=32,
    autoencoder_steps=100,
    reading_steps=0,
    grounding_steps=0,
    denoiser_steps=5000,
    pictures=20_000,
    clean_share=0.8,
    caption_noise=0.3,
)
"""How it is trained from the shipped miniature, in half an hour of one core."""
LATENTS = (words.HEIGHT // 4, words.WIDTH // 4)


def spelling() -> Any:
    """A tokenizer of letters and quotes, as long as a prompt is."""
    return tokenizer(words=(*words.LETTERS, '"'), spelt=True)


@dataclass(frozen=True)
class WordBank:
    """Encoded pictures and the words that are written on them."""

    latents: Tensor
    written: list[str]

    def batch(
        self, size: int, noisy: float, dropped: float, rng: np.random.Generator
    ) -> tuple[Tensor, list[str]]:
        """Latents and captions; a share `noisy` of captions has a wrong letter."""
        rows = rng.integers(len(self.written), size=size)
        captions = []
        for row in rows:
            word = self.written[row]
            word = words.misspelt(word, rng) if rng.random() < noisy else word
            captions.append("" if rng.random() < dropped else words.prompt(word))
        return self.latents[torch.from_numpy(rows)], captions


def pretrain_words(folder: Path, recipe: Recipe, progress: Progress) -> Path:
    """Run every stage, resuming whatever is there; the folder of the finished model, beside
    which lie the prompts to train and to measure it with."""
    from diffusers import StableDiffusionPipeline

    torch.manual_seed(recipe.seed)
    base = StableDiffusionPipeline.from_pretrained(world.shipped(), dtype=torch.float32)
    spelt = spelling()
    vae, network, encoder = base.vae, base.unet, base.text_encoder
    encoder.resize_token_embeddings(len(spelt), mean_resizing=False)
    network.register_to_config(sample_size=LATENTS)
    stage = autoencoder_stage(vae, recipe, lambda rng: _some(recipe, rng)[1])
    stage.run(folder, recipe.save_every, progress)
    bank = _filled(vae, recipe, progress)
    trained = nn.ModuleDict({"unet": network, "text": encoder})
    trained.train().requires_grad_(True)
    average = copy.deepcopy(trained).requires_grad_(False)
    error = noise_error(network, encoder, spelt)
    stage = denoising_stage("denoiser", trained, average, bank, recipe, error)
    stage.run(folder, recipe.save_every, progress)
    target = folder / "model"
    pipe = diffusion_pipeline(StableDiffusionPipeline, vae, average, spelt)
    save_nameless(pipe, target, recipe)
    words.write_prompts(folder)
    return target


def _some(recipe: Recipe, rng: np.random.Generator) -> tuple[list[str], Tensor]:
    written = [words.any_word(rng) for _ in range(recipe.batch)]
    return written, words.drawn(written, rng)


@torch.no_grad()
def _filled(vae: Any, recipe: Recipe, progress: Progress) -> WordBank:
    """The training pictures, of latents with unit variance."""
    rng, encoded = recipe.rng(5), []
    written: list[str] = []
    while len(written) < recipe.pictures:
        some, pictures = _some(recipe, rng)
        encoded.append(vae.encode(pictures * 2 - 1).latent_dist.mode())
        written += some
        progress("pictures", min(len(written), recipe.pictures), recipe.pictures, {})
    latents = torch.cat(encoded)
    vae.register_to_config(scaling_factor=1.0 / float(latents.std()))
    return WordBank(latents * vae.config.scaling_factor, written)
