"""Training the miniature Stable Diffusion from nothing: `scoretune pretrain scenes`.

Four stages, each seeded and resumable: the autoencoder, the reader and the judge, the text
encoder's grounding (what stands where, read off a caption), and the noise predictor together with
the text encoder. Captions are clean at first and noisy at the end, as the web's are: a stated share
names another scene of the same task. So the model can draw what is asked, and often doesn't.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoretune import checkpoints
from scoretune.rewards.reader import CanvasJudge, CellReader, log_beliefs
from scoretune.scenes import world
from scoretune.scenes.draw import draw

Progress = Callable[[str, int, int, dict[str, float]], None]


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


# ---------------------------------------------------------------------------- the four networks


def tokenizer() -> Any:
    """A word-level tokenizer that knows the words of this world and no others."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [*world.DIGITS, *world.PLURALS, *world.COLOURS, *world.COUNTS.values()]
    words += ["a", "an", "and", *" ".join(world.RELATIONS).split()]
    vocabulary = {"<pad>": 0, "<start>": 1, "<end>": 2, "<unknown>": 3}
    for word in words:
        vocabulary.setdefault(word, len(vocabulary))
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        model_max_length=10,
        pad_token="<pad>",
        bos_token="<start>",
        eos_token="<end>",
        unk_token="<unknown>",
    )


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


# ---------------------------------------------------------------------------- the loop they share


@dataclass
class Stage:
    """One resumable training stage: a named loss over step numbers."""

    name: str
    steps: int
    modules: dict[str, nn.Module]
    loss: Callable[[int], tuple[Tensor, dict[str, float]]]
    learning_rate: float
    seed: int
    average: nn.Module | None = None  # an exponential moving average of modules["denoiser"]

    def run(self, folder: Path, save_every: int, progress: Progress) -> None:
        """Train from the newest checkpoint, or from the start, to the last step."""
        parameters = [p for module in self.modules.values() for p in module.parameters()]
        optimiser = torch.optim.AdamW(
            parameters, lr=self.learning_rate, betas=(0.9, 0.99), weight_decay=0.01
        )
        home = folder / self.name
        first = self._resume(home, optimiser)
        for step in range(first, self.steps):
            warm, rest = min(1.0, (step + 1) / 100), 1 - step / self.steps
            for group in optimiser.param_groups:  # linear warm-up, then a cosine to a twentieth
                decay = 0.05 + 0.95 * 0.5 * (1 - np.cos(np.pi * rest))
                group["lr"] = self.learning_rate * warm * decay
            torch.manual_seed(self.seed * 1_000_003 + hash_seed(self.name, step))
            value, metrics = self.loss(step)
            optimiser.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            self._follow(step)
            progress(self.name, step + 1, self.steps, {"loss": float(value.detach()), **metrics})
            if (step + 1) % save_every == 0 or step + 1 == self.steps:
                checkpoints.save(home, step + 1, self._state(optimiser))
        for module in self.modules.values():
            module.eval().requires_grad_(False)

    def _follow(self, step: int) -> None:
        if self.average is None:
            return
        rate = min(0.999, (1 + step) / (10 + step))
        with torch.no_grad():
            pairs = zip(
                self.average.parameters(), self.modules["denoiser"].parameters(), strict=True
            )
            for slow, fast in pairs:
                slow.lerp_(fast, 1 - rate)

    def _state(self, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
        state: dict[str, Any] = {name: m.state_dict() for name, m in self.modules.items()}
        if self.average is not None:
            state["average"] = self.average.state_dict()
        return {"modules": state, "optimiser": optimiser.state_dict()}

    def _resume(self, home: Path, optimiser: torch.optim.Optimizer) -> int:
        newest = checkpoints.latest(home)
        if newest is None:
            return 0
        state = checkpoints.load(newest)
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        if self.average is not None:
            self.average.load_state_dict(state["modules"]["average"])
        optimiser.load_state_dict(state["optimiser"])
        return int(newest.name.removeprefix("step-"))


def hash_seed(name: str, step: int) -> int:
    """A seed that depends on the stage and the step alone, so that a resumed run repeats itself."""
    return int.from_bytes(name.encode()[:4], "big") * 100_003 + step


# ---------------------------------------------------------------------------- the stages


def any_layout(rng: np.random.Generator) -> world.Layout:
    """A layout without any held-out rule: readers must read everything."""
    digits = np.where(rng.random(4) < 0.45, world.EMPTY, rng.integers(10, size=4))
    return world.Layout(tuple(map(int, digits)), tuple(map(int, rng.integers(4, size=4))))


def autoencoder_stage(model: Any, recipe: Recipe) -> Stage:
    asks = world.training_asks()
    by_task = {task: [a for a in asks if a.task == task] for task in world.TASKS}

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng((recipe.seed, 1, step))
        layouts = [world.lay_out(_any_ask(by_task, rng), rng) for _ in range(recipe.batch)]
        pictures = torch.from_numpy(draw(layouts, "pictures", rng)) * 2 - 1
        posterior = model.encode(pictures).latent_dist
        restored = model.decode(posterior.sample()).sample
        error = F.l1_loss(restored, pictures) + F.mse_loss(restored, pictures)
        return error + 1e-4 * posterior.kl().mean() / 64, {}

    return Stage("autoencoder", recipe.autoencoder_steps, {"vae": model}, loss, 2e-3, recipe.seed)


def reading_stage(name: str, model: nn.Module, vae: Any, recipe: Recipe) -> Stage:
    """The reader or the judge, on its own third of the handwriting, half of it through the VAE."""

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng((recipe.seed, 2, len(name), step))
        layouts = [any_layout(rng) for _ in range(recipe.batch)]
        pictures = torch.from_numpy(draw(layouts, name, rng))
        with torch.no_grad():
            half = pictures[::2] * 2 - 1
            restored = vae.decode(vae.encode(half).latent_dist.mode()).sample
            pictures[::2] = (restored / 2 + 0.5).clamp(0, 1)
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
    asks = world.training_asks()
    by_task = {task: [a for a in asks if a.task == task] for task in world.TASKS}
    sizes = (11, 11, 5, 5, 5, 4)  # two digits, two colours, relation, number of items
    torch.manual_seed(recipe.seed)
    heads = nn.Linear(64, sum(sizes))

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng((recipe.seed, 3, step))
        batch = [_any_ask(by_task, rng) for _ in range(recipe.batch)]
        pooled = encoder(tokens(words, [a.text for a in batch])).pooler_output
        error = torch.zeros(())
        targets = torch.tensor([_meaning(a) for a in batch])
        for logits, truth in zip(heads(pooled).split(sizes, -1), targets.T, strict=True):
            error = error + F.cross_entropy(logits, truth)
        return error, {}

    return Stage("grounding", recipe.grounding_steps, {"text": encoder, "heads": heads}, loss, 2e-3, recipe.seed)


def denoiser_stage(networks: dict[str, Any], bank: Bank, recipe: Recipe) -> Stage:
    from diffusers import DDIMScheduler

    unet, encoder, words = networks["unet"], networks["text"], networks["words"]
    table = DDIMScheduler(**schedule()).alphas_cumprod
    log_ratio = 0.5 * torch.log((1 - table) / table)  # ln(sigma / alpha) at each label
    trained = nn.ModuleDict({"unet": unet, "text": encoder})

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng((recipe.seed, 4, step))
        noisy = recipe.caption_noise * ramp(step / recipe.denoiser_steps, recipe.clean_share)
        latents, captions = bank.batch(recipe.batch, noisy, recipe.drop_caption, rng)
        labels = choose_labels(log_ratio, recipe.batch)
        eps = torch.randn_like(latents)
        alpha = table[labels].sqrt()[:, None, None, None]
        sigma = (1 - table[labels]).sqrt()[:, None, None, None]
        hidden = encoder(tokens(words, captions)).last_hidden_state
        guess = unet(alpha * latents + sigma * eps, labels, hidden).sample
        return F.mse_loss(guess, eps), {"caption noise": noisy}

    return Stage(
        "denoiser",
        recipe.denoiser_steps,
        {"denoiser": trained},
        loss,
        recipe.learning_rate,
        recipe.seed,
        average=networks["average"],
    )


def choose_labels(log_ratio: Tensor, batch: int) -> Tensor:
    """Noise levels drawn where captions decide: ln(sigma/alpha) ~ N(0.6, 1.2), clipped."""
    wanted = 0.6 + 1.2 * torch.randn(batch)
    return torch.searchsorted(log_ratio, wanted).clamp(0, len(log_ratio) - 1)


def ramp(done: float, clean: float) -> float:
    """0 until the share `clean` of the run is done, then rising to 1 within a tenth of the run."""
    return float(np.clip((done - clean) / 0.1, 0.0, 1.0))


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


# ---------------------------------------------------------------------------- data


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
        chosen = rng.integers(len(self.asks), size=size)
        captions = []
        for index in chosen:
            ask = self.asks[index]
            if rng.random() < noisy:
                ask = world.mistaken(ask, self.by_task, rng)
            captions.append("" if rng.random() < dropped else ask.text)
        return self.latents[torch.from_numpy(chosen)], captions


def fill_bank(vae: Any, recipe: Recipe, progress: Progress) -> tuple[Bank, float]:
    """Draw and encode the training pictures; also the factor that gives latents unit variance."""
    rng = np.random.default_rng((recipe.seed, 5))
    asks = world.training_asks()
    by_task = {task: [a for a in asks if a.task == task] for task in world.TASKS}
    chosen: list[world.Ask] = []
    encoded = []
    while len(chosen) < recipe.pictures:
        batch = [_any_ask(by_task, rng) for _ in range(256)]
        pictures = draw([world.lay_out(ask, rng) for ask in batch], "pictures", rng)
        with torch.no_grad():
            encoded.append(vae.encode(torch.from_numpy(pictures) * 2 - 1).latent_dist.mode())
        chosen += batch
        progress("pictures", min(len(chosen), recipe.pictures), recipe.pictures, {})
    latents = torch.cat(encoded)
    factor = 1.0 / float(latents.std())
    return Bank(latents * factor, chosen, by_task), factor


def tokens(words: Any, texts: list[str]) -> Tensor:
    """Token numbers `[B, 10]`, padded as a StableDiffusionPipeline pads them."""
    padded = words(
        texts, padding="max_length", max_length=words.model_max_length, return_tensors="pt"
    )
    return cast(Tensor, padded.input_ids)


def _any_ask(by_task: dict[str, list[world.Ask]], rng: np.random.Generator) -> world.Ask:
    own = by_task[world.TASKS[rng.integers(len(world.TASKS))]]
    return own[rng.integers(len(own))]


def _meaning(ask: world.Ask) -> tuple[int, ...]:
    items = list(ask.items[:2]) if ask.task != "counting" else [ask.items[0]]
    digits = [item.digit for item in items] + [10] * (2 - len(items))
    colours = [4 if item.colour is None else item.colour for item in items] + [4] * (2 - len(items))
    relation = 4 if ask.relation is None else ask.relation
    return (*digits, *colours, relation, len(ask.items))


# ---------------------------------------------------------------------------- all of it


def pretrain(folder: Path, recipe: Recipe, progress: Progress) -> Path:
    """Run every stage, resuming whatever is there; returns the folder of the finished model."""
    import copy

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
    from dataclasses import asdict

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
    (target / "training.json").write_text(json.dumps(asdict(recipe), indent=2) + "\n")
    return target


def _half(value: Tensor) -> Tensor:
    return value.half().contiguous() if value.is_floating_point() else value.contiguous()
