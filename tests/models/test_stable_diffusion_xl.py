"""Stable Diffusion XL as a backbone: a tiny random pipeline against diffusers' own call."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
)

from scoretune.core.errors import UserError
from scoretune.diffusion import solvers
from scoretune.diffusion.kernels import GDDIM, Renoise, Still
from scoretune.models.families import FAMILIES
from scoretune.models.observed import Observed, ObservedTold
from scoretune.models.tiny import stable_diffusion_xl as miniature
from scoretune.models.tiny import words
from scoretune.models.tiny.stable_diffusion_xl import TABLE
from scoretune.policy import Distilled, Policy
from slow_cases import slow

PROMPTS = ["a red circle", "a blue square and a green sea", "a dark sky"]
SCHEDULERS = {
    "its own": {},
    "euler, v": {
        "kind": EulerDiscreteScheduler,
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
        "rescale_betas_zero_snr": True,
    },
    "ddim, v": {
        "kind": DDIMScheduler,
        "prediction_type": "v_prediction",
        "steps_offset": 1,
        "clip_sample": False,
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return miniature.build(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def backbone(folder) -> Observed:
    return FAMILIES["StableDiffusionXLPipeline"].load(str(folder))


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    """The folder, to be spoilt."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def saved(folder: Path, pipe: Any) -> Path:
    pipe.save_pretrained(folder)
    return folder


def plain(folder: Path, dtype: torch.dtype = torch.float32) -> StableDiffusionXLPipeline:
    """The folder as diffusers loads it."""
    pipe = StableDiffusionXLPipeline.from_pretrained(folder, dtype=dtype, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def scheduled(pipe: Any, **settings: Any) -> Any:
    """The pipeline with another scheduler; none named, its own."""
    if settings:
        kind = settings.pop("kind")
        pipe.scheduler = kind(**TABLE, **settings)
    return pipe


def noise(batch: int = len(PROMPTS), side: int = 4) -> torch.Tensor:
    return torch.randn(batch, 4, side, side, generator=torch.Generator().manual_seed(2))


def times_of(pipe: Any, steps: int) -> torch.Tensor:
    """The scheduler's own times, and data."""
    pipe.scheduler.set_timesteps(steps)
    nodes = (pipe.scheduler.timesteps.double() + 1) / 1000
    return torch.cat([nodes, torch.zeros(1)]).float()


@torch.no_grad()
def ours(found: Any, guidance: float, times: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    field = Policy(found, Renoise(Still()), guidance).field(found.encode(PROMPTS))
    return solvers.ddim(found.process, field, x, times)


@torch.no_grad()
def theirs(pipe: Any, guidance: float, steps: int, kind: str = "latent", **rest: Any) -> Any:
    asked = {"latents": noise(), **rest}
    return pipe(
        PROMPTS, num_inference_steps=steps, guidance_scale=guidance, output_type=kind, **asked
    ).images


def started(found: Any, pipe: Any, times: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Where the pipeline begins with latents z: Euler's are x/α."""
    own = isinstance(pipe.scheduler, EulerDiscreteScheduler)
    scale = found.process.alpha(times[0].double()) if own else 1.0
    return (z * pipe.scheduler.init_noise_sigma * scale).float()


# ------------------------------------------------------------------------------------ parity


@pytest.mark.parametrize(
    ("name", "guidance"),
    [
        ("its own", 3.0),
        ("euler, v", 1.0),
        *(slow(*each) for each in (("its own", 1.0), ("euler, v", 3.0))),
        *(slow("ddim, v", guidance) for guidance in (1.0, 3.0)),
    ],
)
def test_ddim_is_the_pipeline(tmp_path, name, guidance):
    saved(tmp_path, scheduled(miniature.pipeline(), **SCHEDULERS[name]))
    found, pipe = FAMILIES["StableDiffusionXLPipeline"].load(str(tmp_path)), plain(tmp_path)
    assert found.prediction.name == pipe.scheduler.config.prediction_type
    times = times_of(pipe, 5)
    mine = ours(found, guidance, times, started(found, pipe, times, noise()))
    latents = theirs(pipe, guidance, 5)
    assert float(latents.std()) > 0.5
    torch.testing.assert_close(mine, latents, rtol=0, atol=1e-4)
    with torch.no_grad():
        pictures = found.decode(mine)
    torch.testing.assert_close(pictures, theirs(pipe, guidance, 5, "pt"), rtol=0, atol=1e-4)
    assert float(pictures.std()) > 0.01


def test_a_picture_of_another_size_is_the_pipelines(folder):
    found, pipe = FAMILIES["StableDiffusionXLPipeline"].load(str(folder), size=64), plain(folder)
    assert found.shape == (4, 8, 8)
    times, z = times_of(pipe, 3), noise(side=8)
    latents = theirs(pipe, 3.0, 3, latents=z, height=64, width=64)
    mine = ours(found, 3.0, times, started(found, pipe, times, z))
    torch.testing.assert_close(mine, latents, rtol=0, atol=1e-4)
    told_else = theirs(pipe, 3.0, 3, latents=z, height=64, width=64, original_size=(32, 32))
    assert float((told_else - latents).abs().max()) > 1e-3


def test_what_is_told_of_sizes(folder):
    found = FAMILIES["StableDiffusionXLPipeline"].load(str(folder), size=48)
    seen: list[dict[str, Any]] = []
    found.network.register_forward_pre_hook(
        lambda module, given, named: seen.append(named), with_kwargs=True
    )
    tokens = found.encode(PROMPTS).tokens
    with torch.no_grad():
        found.predict(noise(side=6), torch.full((3,), 0.5), tokens)
    assert seen[0]["added_cond_kwargs"]["time_ids"].tolist() == [[48, 48, 0, 0, 48, 48]] * 3
    pooled = tokens.rows["added_cond_kwargs.text_embeds"]
    assert torch.equal(seen[0]["added_cond_kwargs"]["text_embeds"], pooled)
    assert seen[0].get("timestep_cond") is None


def test_a_unet_that_is_told_of_guidance(tmp_path):
    saved(tmp_path, miniature.pipeline(guidance=6))
    found, pipe = FAMILIES["StableDiffusionXLPipeline"].load(str(tmp_path)), plain(tmp_path)
    assert isinstance(found, ObservedTold)
    assert isinstance(found, Distilled)
    found.scale = 4.0
    times = times_of(pipe, 4)
    x = started(found, pipe, times, noise())
    mine = ours(found, 1.0, times, x)
    torch.testing.assert_close(mine, theirs(pipe, 4.0, 4), rtol=0, atol=1e-4)
    found.scale = 7.0
    assert float((ours(found, 1.0, times, x) - mine).abs().max()) > 1e-3


@pytest.mark.parametrize("steps", [slow(1), 4])
def test_turbos_ancestral_euler_is_gddim_of_one(tmp_path, steps):
    """SDXL-Turbo's scheduler, without guidance and on the same noises; it begins at σ(1)·ξ."""
    pipe = miniature.pipeline()
    pipe.scheduler = EulerAncestralDiscreteScheduler(**TABLE, timestep_spacing="trailing")
    saved(tmp_path, pipe)
    found, pipe = FAMILIES["StableDiffusionXLPipeline"].load(str(tmp_path)), plain(tmp_path)
    times, generator = times_of(pipe, steps), torch.Generator().manual_seed(5)
    field = Policy(found, GDDIM(1.0)).field(found.encode(PROMPTS))
    x = noise() * found.process.sigma(times[:1])
    with torch.no_grad():
        mine = solvers.gddim(found.process, field, x, times, eta=1.0, generator=generator)
    latents = theirs(pipe, 0.0, steps, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(mine, latents, rtol=0, atol=1e-4)


# ------------------------------------------------------------------------------------ prompts


@pytest.mark.parametrize(
    ("first", "zeros"), [(True, True), (False, False), slow(True, False), slow(False, True)]
)
def test_a_prompt_is_read_as_the_pipeline_reads_it(tmp_path, first, zeros):
    saved(tmp_path, miniature.pipeline(first=first, zeros=zeros))
    found, pipe = FAMILIES["StableDiffusionXLPipeline"].load(str(tmp_path)), plain(tmp_path)
    with torch.no_grad():
        states, empty, pooled, free = pipe.encode_prompt(PROMPTS, do_classifier_free_guidance=True)
    condition, width = found.encode(PROMPTS), 20 if first else 8
    assert condition.summary.shape == (3, 10, width)
    rows, unprompted = condition.tokens.rows, condition.null.rows
    torch.testing.assert_close(rows["encoder_hidden_states"], states)
    torch.testing.assert_close(rows["added_cond_kwargs.text_embeds"], pooled)
    torch.testing.assert_close(unprompted["encoder_hidden_states"], empty[:1])
    torch.testing.assert_close(unprompted["added_cond_kwargs.text_embeds"], free[:1])
    assert bool(unprompted["encoder_hidden_states"].any()) is not zeros


@pytest.mark.parametrize(("first", "zeros"), [(False, True), slow(True, False)])
def test_without_the_first_encoder_or_the_zeros_it_is_the_pipeline(tmp_path, first, zeros):
    saved(tmp_path, miniature.pipeline(first=first, zeros=zeros))
    found, pipe = FAMILIES["StableDiffusionXLPipeline"].load(str(tmp_path)), plain(tmp_path)
    times = times_of(pipe, 3)
    mine = ours(found, 3.0, times, started(found, pipe, times, noise()))
    torch.testing.assert_close(mine, theirs(pipe, 3.0, 3), rtol=0, atol=1e-4)


def test_the_second_encoder_reads_its_own_words(tmp_path):
    """A first tokenizer without its encoder is left out."""
    saved(tmp_path, miniature.pipeline(first=False))
    alone = FAMILIES["StableDiffusionXLPipeline"].load(str(tmp_path)).encode(PROMPTS)
    pipe = plain(tmp_path)
    pipe.register_modules(tokenizer=words.tokenizer(6))
    found = FAMILIES["StableDiffusionXLPipeline"].load(str(saved(tmp_path, pipe)))
    torch.testing.assert_close(found.encode(PROMPTS).tokens.rows, alone.tokens.rows)


# -------------------------------------------------------------------------------- the network


def test_what_it_is(backbone):
    assert backbone.shape == (4, 4, 4)
    assert backbone.process.n == 1000
    assert backbone.process.alphas_cumprod[-1] == pytest.approx(0.00466, abs=1e-5)
    assert not isinstance(backbone, Distilled)


@pytest.mark.parametrize("upcast", [True, slow(False)])
def test_a_decoder_that_overflows_in_half_precision_is_kept_whole(tmp_path, upcast):
    pipe = miniature.pipeline()
    pipe.vae.register_to_config(force_upcast=upcast)
    pipe.vae.decoder.conv_in.weight.data *= 3e5
    saved(tmp_path, pipe)
    half = FAMILIES["StableDiffusionXLPipeline"].load(str(tmp_path), dtype=torch.float16)
    assert half.pipeline.unet.dtype == torch.float16
    assert half.pipeline.vae.dtype == (torch.float32 if upcast else torch.float16)
    z = noise(2).requires_grad_(True)
    pictures = half.decode(z)
    assert pictures.dtype == torch.float32
    assert bool(torch.isfinite(pictures).all()) is upcast
    if upcast:
        whole = FAMILIES["StableDiffusionXLPipeline"].load(str(tmp_path)).decode(z)
        torch.testing.assert_close(pictures, whole, rtol=0, atol=5e-3)
        pictures.sum().backward()
        assert bool(torch.isfinite(z.grad).all()) and bool(z.grad.any())
        assert half.embed(torch.rand(1, 3, 32, 32)).shape == (1, 4, 4, 4)


# ---------------------------------------------------------------------------------- bad input


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


SPOILT = [
    (
        lambda f: rewrite(f / "model_index.json", text_encoder_2=[None, None]),
        "cannot read prompts without its text_encoder_2: drop it",
    ),
    (
        lambda f: rewrite(f / "model_index.json", text_encoder=[None, None]),
        "give states of width 8, and the UNet takes 20",
    ),
    (
        lambda f: rewrite(f / "scheduler" / "scheduler_config.json", prediction_type="flow"),
        "has prediction_type 'flow': unknown prediction 'flow'",
    ),
]


@pytest.mark.parametrize(("spoil", "said"), SPOILT)
def test_a_folder_that_is_no_such_model_says_so_in_a_line(copy, spoil, said):
    spoil(copy)
    with pytest.raises(UserError) as caught:
        FAMILIES["StableDiffusionXLPipeline"].load(str(copy))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_refiners_unet_is_refused(tmp_path):
    pipe = miniature.pipeline(first=False)
    pipe.unet = miniature.denoiser(miniature.SECOND, pooled=10 - 8)  # five sizes, not six
    saved(tmp_path, pipe)
    with pytest.raises(UserError, match="as the refiner's does: fine-tune the base model"):
        FAMILIES["StableDiffusionXLPipeline"].load(str(tmp_path))
