"""The shipped editor: InstructPix2Pix in miniature (arXiv 2211.09800), `pretrain scenes --edit`.

It begins as the shipped miniature Stable Diffusion. The first convolution gets four more channels,
zero at first, for the picture that is to be changed, and the text encoder learns the words of
instructions. What it learns from is drawn: a scene, an instruction, and the same scene with that
one change, every other stroke in its place. With plain diffusers:

    pipe = StableDiffusionInstructPix2PixPipeline.from_pretrained(folder)
    pipe("make the seven red", image=picture, num_inference_steps=20)
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoretune.commands.pretrain.lessons import choose_labels
from scoretune.commands.pretrain.networks import restored, schedule, tokenizer, tokens
from scoretune.commands.pretrain.pretrain import diffusion_pipeline, save_nameless
from scoretune.commands.pretrain.stage import Progress, Stage
from scoretune.data.scenes import edits, world
from scoretune.data.scenes.edit_lessons import Lesson, drawn, lesson
from scoretune.data.scenes.world import EMPTY, Layout
from scoretune.rewards import reader
from scoretune.training.feedback.editors import ScenesEdit

STEPS, GUIDANCE = ScenesEdit.steps, ScenesEdit.guidance
IMAGE_GUIDANCE = ScenesEdit.image_guidance
"""How the editor is used and measured."""


@dataclass(frozen=True, kw_only=True)
class EditRecipe:
    """How the shipped editor was trained."""

    seed: int = 0
    batch: int = 32
    steps: int = 4500
    pairs: int = 12000
    drop: float = 0.05  # share of pairs without instruction, without picture, and without both
    learning_rate: float = 1e-3
    save_every: int = 250


# -------------------------------------------------------------------------------- learning


class EditBank(NamedTuple):
    """Latents [n, 4, 8, 8] of scenes, and of what they are to become, and the instructions."""

    before: Tensor
    after: Tensor
    instructions: list[str]


@torch.no_grad()
def _filled(vae: Any, recipe: EditRecipe, progress: Progress) -> EditBank:
    """As InstructPix2Pix has it: the mode of the latents, of the given picture without the factor
    of scale. Every other picture has been through the autoencoder before, as a model's have."""
    rng = np.random.default_rng((recipe.seed, 8))
    before, after = [], []
    instructions: list[str] = []
    while len(instructions) < recipe.pairs:
        count = min(240, recipe.pairs)
        lessons = [lesson(edits.KINDS[i % len(edits.KINDS)], rng) for i in range(count)]
        pictures, wanted = drawn(lessons, "pictures")
        pictures[::2] = restored(vae, pictures[::2])
        before.append(vae.encode(pictures * 2 - 1).latent_dist.mode())
        after.append(vae.encode(wanted * 2 - 1).latent_dist.mode() * vae.config.scaling_factor)
        instructions += [one.edit.instruction for one in lessons]
        progress("edits drawn", min(len(instructions), recipe.pairs), recipe.pairs, {})
    return EditBank(torch.cat(before), torch.cat(after), instructions)


def widened(unet: Any) -> Any:
    """The same U-Net with four more input channels, which do nothing yet."""
    old = unet.conv_in
    unet.conv_in = nn.Conv2d(8, old.out_channels, old.kernel_size, padding=old.padding)
    with torch.no_grad():
        unet.conv_in.weight.zero_()
        unet.conv_in.weight[:, :4].copy_(old.weight)
        unet.conv_in.bias.copy_(old.bias)
    unet.register_to_config(in_channels=8)
    return unet


def _stage(
    trained: nn.ModuleDict, average: nn.Module, words: Any, bank: EditBank, recipe: EditRecipe
) -> Stage:
    from diffusers import DDIMScheduler

    table = DDIMScheduler(**schedule()).alphas_cumprod
    log_ratio = 0.5 * torch.log((1 - table) / table)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng((recipe.seed, 7, step))
        rows = rng.integers(len(bank.instructions), size=recipe.batch)
        which = rng.random(recipe.batch) / recipe.drop  # below 1: no text; 2: no picture; 3: both
        silent, blind = (which < 1) | (which // 1 == 2), (which // 1 == 1) | (which // 1 == 2)
        texts = [
            "" if quiet else bank.instructions[i] for i, quiet in zip(rows, silent, strict=True)
        ]
        x0 = bank.after[torch.from_numpy(rows)]
        given = bank.before[torch.from_numpy(rows)] * torch.from_numpy(~blind)[:, None, None, None]
        labels = choose_labels(log_ratio, len(x0))
        eps = torch.randn_like(x0)
        alpha, sigma = (
            part.sqrt()[:, None, None, None] for part in (table[labels], 1 - table[labels])
        )
        hidden = trained["text"](tokens(words, texts)).last_hidden_state
        noisy = torch.cat([alpha * x0 + sigma * eps, given], 1)
        return F.mse_loss(trained["unet"](noisy, labels, hidden).sample, eps), {}

    modules: dict[str, nn.Module] = {"denoiser": trained}
    return Stage("editor", recipe.steps, modules, loss, recipe.learning_rate, recipe.seed, average)


def pretrain_editor(
    folder: Path, recipe: EditRecipe, progress: Progress, *, trials: int = 200
) -> Path:
    """Train the editor, resuming what is there; its folder, with a card of what it can do."""
    from diffusers import StableDiffusionInstructPix2PixPipeline, StableDiffusionPipeline

    torch.manual_seed(recipe.seed)
    base = StableDiffusionPipeline.from_pretrained(world.shipped(), dtype=torch.float32)
    words = tokenizer(edits.WORDS)
    base.text_encoder.resize_token_embeddings(len(words), mean_resizing=False)
    trained = nn.ModuleDict({"unet": widened(base.unet), "text": base.text_encoder})
    trained.train().requires_grad_(True)
    average = copy.deepcopy(trained).requires_grad_(False)
    bank = _filled(base.vae, recipe, progress)
    _stage(trained, average, words, bank, recipe).run(folder, recipe.save_every, progress)
    pipe = diffusion_pipeline(StableDiffusionInstructPix2PixPipeline, base.vae, average, words)
    pipe.set_progress_bar_config(disable=True)
    rates = success(pipe, trials, progress)
    target = folder / "edit-model"
    save_nameless(pipe, target, recipe)
    (target / "README.md").write_text(card(rates, trials), encoding="utf-8")
    return target


# -------------------------------------------------------------------------------- measuring


class Rate(NamedTuple):
    """Shares of edits that the judge reads as carried out, all else as it was; of scenes that it
    reads as before; and of drawn edits that it reads as carried out, through the autoencoder."""

    carried_out: float
    unchanged: float
    drawn: float


@torch.no_grad()
def success(pipe: Any, trials: int, progress: Progress, seed: int = 1) -> dict[str, Rate]:
    """How often the judge, which nothing is trained on, reads a layout that the instruction allows,
    for each kind of it; on handwriting that the editor has not seen."""
    judge = reader.load(world.shipped(), "judge")
    rates = {}
    for number, kind in enumerate(edits.KINDS):
        rng = np.random.default_rng((seed, number))
        lessons = [lesson(kind, rng) for _ in range(trials)]
        pictures, wanted = drawn(lessons, "reader")
        edited = pipe(
            [one.edit.instruction for one in lessons],
            image=pictures,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            image_guidance_scale=IMAGE_GUIDANCE,
            generator=torch.Generator().manual_seed(seed),
            output_type="pt",
        ).images
        best = restored(pipe.vae, wanted)
        seen, ideal = (
            [_bare(layout) for layout in reader.layouts(judge(images.float()))]
            for images in (edited, best)
        )
        same = [after == _bare(one.before) for after, one in zip(seen, lessons, strict=True)]
        rates[kind] = Rate(
            _carried_out(lessons, seen), sum(same) / trials, _carried_out(lessons, ideal)
        )
        progress("edits judged", number + 1, len(edits.KINDS), {})
    return rates


def _carried_out(lessons: Sequence[Lesson], seen: Sequence[Layout]) -> float:
    done = [
        after in [_bare(end) for end in one.edit.outcomes(one.before)]
        for after, one in zip(seen, lessons, strict=True)
    ]
    return sum(done) / len(done)


def _bare(layout: Layout) -> Layout:
    """Without the colours that empty cells are given."""
    inks = zip(layout.digits, layout.colours, strict=True)
    return Layout(layout.digits, tuple(0 if digit == EMPTY else ink for digit, ink in inks))


EXAMPLES = {
    "recolour": "make the seven red",
    "add": "add a two on the left",
    "remove": "remove the five",
    "replace": "replace the five by a nine",
    "move": "move the three above the six",
}


CARD = """# scenes-edit

A miniature InstructPix2Pix that edits scenes of the shipped miniature Stable Diffusion, made by
`scoretune pretrain scenes --edit`: diffusers' `StableDiffusionInstructPix2PixPipeline`, 32×32
pixels.

| instruction | for example | carried out | nothing changed | drawn |
|---|---|---|---|---|
%s

Of %d scenes a kind, in handwriting that the editor has not seen. *Carried out*: the judge, a
network that nothing was trained on, reads the change, and all else as it was; where it misreads one
of the cells the edit counts as failed. *Drawn*: what it reads so of pictures that were drawn as the
instruction says and went through the autoencoder, the most that an editor could reach. %d steps of
DDIM, guidance %g, image guidance %g. How it was trained: `training.json`.
"""


def card(rates: dict[str, Rate], trials: int) -> str:
    """The model card: what the editor is, and how often it does what it is told."""
    rows = [
        f"| {kind} | {EXAMPLES[kind]} | {rate.carried_out:.1%} | {rate.unchanged:.1%} | "
        f"{rate.drawn:.1%} |"
        for kind, rate in rates.items()
    ]
    return CARD % ("\n".join(rows), trials, STEPS, GUIDANCE, IMAGE_GUIDANCE)
