"""What each stage learns from: readers, the autoencoder, the text encoder and the denoiser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoretune.commands.pretrain.networks import restored, schedule, tokens
from scoretune.commands.pretrain.stage import Progress, Stage
from scoretune.data.scenes import world
from scoretune.data.scenes.draw import draw
from scoretune.rewards.reader import log_beliefs


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the shipped model was trained."""

    seed: int = 0
    batch: int = 64
    autoencoder_steps: int = 800
    reading_steps: int = 900
    grounding_steps: int = 1000
    denoiser_steps: int = 14000
    pictures: int = 40000
    clean_share: float = 0.5  # of the denoiser's steps before caption noise sets in
    caption_noise: float = 0.1  # share of captions that name another scene, at the end
    drop_caption: float = 0.1
    learning_rate: float = 1e-3
    save_every: int = 250

    def rng(self, *place: int) -> np.random.Generator:
        """The generator of one step of one stage, the same whenever it is asked for."""
        return np.random.default_rng((self.seed, *place))


def asks_by_task() -> dict[str, list[world.Ask]]:
    """The asks of training, by their task."""
    asks = world.training_asks()
    return {task: [ask for ask in asks if ask.task == task] for task in world.TASKS}


def any_layout(rng: np.random.Generator) -> world.Layout:
    """A layout without any held-out rule: readers must read everything."""
    digits = np.where(rng.random(4) < 0.45, world.EMPTY, rng.integers(10, size=4))
    return world.Layout(tuple(map(int, digits)), tuple(map(int, rng.integers(4, size=4))))


def scenes(recipe: Recipe) -> Callable[[np.random.Generator], Tensor]:
    """Batches of pictures [B, 3, 32, 32] in [0, 1] of the world of scenes."""
    by_task = asks_by_task()

    def pictures(rng: np.random.Generator) -> Tensor:
        layouts = [world.lay_out(_any_ask(by_task, rng), rng) for _ in range(recipe.batch)]
        return torch.from_numpy(draw(layouts, "pictures", rng))

    return pictures


def autoencoder_stage(
    model: Any, recipe: Recipe, drawn: Callable[[np.random.Generator], Tensor]
) -> Stage:
    """The autoencoder on batches of pictures in [0, 1]."""

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        pictures = drawn(recipe.rng(1, step)) * 2 - 1
        posterior = model.encode(pictures).latent_dist
        copies = model.decode(posterior.sample()).sample
        error = F.l1_loss(copies, pictures) + F.mse_loss(copies, pictures)
        return error + 1e-4 * posterior.kl().mean() / 64, {}

    return Stage("autoencoder", recipe.autoencoder_steps, {"vae": model}, loss, 2e-3, recipe.seed)


def reading_stage(name: str, model: nn.Module, vae: Any, recipe: Recipe) -> Stage:
    """The reader or the judge, on its own third of the handwriting, half of it through the VAE."""

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = recipe.rng(2, len(name), step)
        layouts = [any_layout(rng) for _ in range(recipe.batch)]
        pictures = torch.from_numpy(draw(layouts, name, rng))
        with torch.no_grad():
            pictures[::2] = restored(vae, pictures[::2])
        pictures = torch.roll(pictures, tuple(rng.integers(-1, 2, size=2).tolist()), (2, 3))
        pictures = pictures + 0.06 * float(rng.random()) * torch.randn_like(pictures)
        digits, colours = log_beliefs(model(pictures))
        truth = torch.tensor([layout.digits for layout in layouts])
        inks = torch.tensor([layout.colours for layout in layouts])
        inks = torch.where(truth == world.EMPTY, -100, inks)  # an empty cell has no colour
        error = F.nll_loss(digits.flatten(0, 1), truth.flatten())
        error = error + F.nll_loss(colours.flatten(0, 1), inks.flatten())
        right = (digits.argmax(-1) == truth).all(-1).float().mean()
        return error, {"whole scenes read": float(right)}

    return Stage(name, recipe.reading_steps, {name: model}, loss, 2e-3, recipe.seed)


def grounding_stage(encoder: Any, words: Any, recipe: Recipe) -> Stage:
    """Teach the text encoder what a caption says, before it meets pictures.

    From the caption's last word each item's digit and colour and the relation are read off
    linearly: what pre-training on image-text pairs gives CLIP.
    """
    by_task = asks_by_task()
    sizes = (11, 11, 5, 5, 5, 4)  # two digits, two colours, relation, number of items
    torch.manual_seed(recipe.seed)
    heads = nn.Linear(64, sum(sizes))

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = recipe.rng(3, step)
        batch = [_any_ask(by_task, rng) for _ in range(recipe.batch)]
        pooled = encoder(tokens(words, [a.text for a in batch])).pooler_output
        error = torch.zeros(())
        targets = torch.tensor([_meaning(a) for a in batch])
        for logits, truth in zip(heads(pooled).split(sizes, -1), targets.T, strict=True):
            error = error + F.cross_entropy(logits, truth)
        return error, {}

    modules = {"text": encoder, "heads": heads}
    return Stage("grounding", recipe.grounding_steps, modules, loss, 2e-3, recipe.seed)


class Captioned(Protocol):
    """Encoded pictures with captions to learn from."""

    def batch(
        self, size: int, noisy: float, dropped: float, rng: np.random.Generator
    ) -> tuple[Tensor, list[str]]:
        """Latents and captions, of which a share `noisy` is wrong and a share `dropped` empty."""
        ...


Error = Callable[[Tensor, list[str]], Tensor]
"""What a denoiser gets wrong about noisy latents [B, 4, h, w] with their captions, a scalar."""


def denoising_stage(
    name: str, trained: nn.Module, average: nn.Module, bank: Captioned, recipe: Recipe, error: Error
) -> Stage:
    """A denoiser and its text encoder on the bank, with captions that become noisy."""

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = recipe.rng({"denoiser": 4, "flow": 6}[name], step)
        noisy = recipe.caption_noise * ramp(step / recipe.denoiser_steps, recipe.clean_share)
        batch = bank.batch(recipe.batch, noisy, recipe.drop_caption, rng)
        return error(*batch), {"caption noise": noisy}

    steps, rate = recipe.denoiser_steps, recipe.learning_rate
    return Stage(name, steps, {"denoiser": trained}, loss, rate, recipe.seed, average=average)


def noise_error(unet: Any, encoder: Any, words: Any) -> Error:
    """Of the noise that a U-Net predicts, on Stable Diffusion's table."""
    from diffusers import DDIMScheduler

    table = DDIMScheduler(**schedule()).alphas_cumprod
    log_ratio = 0.5 * torch.log((1 - table) / table)  # ln(sigma / alpha) at each label

    def error(latents: Tensor, captions: list[str]) -> Tensor:
        labels = choose_labels(log_ratio, len(latents))
        eps = torch.randn_like(latents)
        alpha = table[labels].sqrt()[:, None, None, None]
        sigma = (1 - table[labels]).sqrt()[:, None, None, None]
        hidden = encoder(tokens(words, captions)).last_hidden_state
        guess = unet(alpha * latents + sigma * eps, labels, hidden).sample
        return F.mse_loss(guess, eps)

    return error


def choose_labels(log_ratio: Tensor, batch: int) -> Tensor:
    """Noise levels drawn where captions decide: ln(sigma/alpha) ~ N(0.6, 1.2), clipped."""
    wanted = 0.6 + 1.2 * torch.randn(batch)
    return torch.searchsorted(log_ratio, wanted).clamp(0, len(log_ratio) - 1)


def ramp(done: float, clean: float) -> float:
    """0 until the share `clean` of the run is done, then rising to 1 within a tenth of the run."""
    return float(np.clip((done - clean) / 0.1, 0.0, 1.0))


@dataclass(frozen=True)
class Bank:
    """Encoded pictures and the prompts they were drawn for."""

    latents: Tensor
    asks: list[world.Ask]
    by_task: dict[str, list[world.Ask]]

    def batch(
        self, size: int, noisy: float, dropped: float, rng: np.random.Generator
    ) -> tuple[Tensor, list[str]]:
        """Latents and captions; a share `noisy` of captions names another scene of that task."""
        indices = rng.integers(len(self.asks), size=size)
        captions = []
        for index in indices:
            ask = self.asks[index]
            if rng.random() < noisy:
                ask = world.mistaken(ask, self.by_task, rng)
            captions.append("" if rng.random() < dropped else ask.text)
        return self.latents[torch.from_numpy(indices)], captions


def fill_bank(vae: Any, recipe: Recipe, progress: Progress) -> tuple[Bank, float]:
    """Draw and encode the training pictures; also the factor that gives latents unit variance."""
    rng, by_task = recipe.rng(5), asks_by_task()
    drawn: list[world.Ask] = []
    encoded = []
    while len(drawn) < recipe.pictures:
        batch = [_any_ask(by_task, rng) for _ in range(256)]
        pictures = draw([world.lay_out(ask, rng) for ask in batch], "pictures", rng)
        with torch.no_grad():
            encoded.append(vae.encode(torch.from_numpy(pictures) * 2 - 1).latent_dist.mode())
        drawn += batch
        progress("pictures", min(len(drawn), recipe.pictures), recipe.pictures, {})
    latents = torch.cat(encoded)
    factor = 1.0 / float(latents.std())
    return Bank(latents * factor, drawn, by_task), factor


def _any_ask(by_task: dict[str, list[world.Ask]], rng: np.random.Generator) -> world.Ask:
    asks = by_task[world.TASKS[rng.integers(len(world.TASKS))]]
    return asks[rng.integers(len(asks))]


def _meaning(ask: world.Ask) -> tuple[int, ...]:
    items = list(ask.items[:2]) if ask.task != "counting" else [ask.items[0]]
    digits = [item.digit for item in items] + [10] * (2 - len(items))
    colours = [4 if item.colour is None else item.colour for item in items] + [4] * (2 - len(items))
    relation = 4 if ask.relation is None else ask.relation
    return (*digits, *colours, relation, len(ask.items))
