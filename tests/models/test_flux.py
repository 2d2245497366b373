"""FLUX.1 as a backbone: tiny random pipelines against diffusers' own call."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from scoretune.core import config
from scoretune.core.errors import UserError
from scoretune.diffusion import grids, solvers
from scoretune.diffusion import named as named_parts
from scoretune.diffusion.kernels import Renoise, Still
from scoretune.diffusion.processes import RectifiedFlow
from scoretune.models.families import FAMILIES
from scoretune.models.observed import Observed, ObservedTold
from scoretune.models.tiny import flux as miniature
from scoretune.policy import Distilled, Policy
from scoretune.training import build
from slow_cases import slow

PROMPTS = ["a red circle", "a blue square and a green sea", "a dark sky"]
SHIFTS = {256: (0.5, 1.648721), 512: (0.63, 1.877611), 1024: (1.15, 3.158193)}
"""Side in pixels: μ of the scheduler of [dev], and e^μ."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return miniature.build(tmp_path_factory.mktemp("dev"))


@pytest.fixture(scope="module")
def free(tmp_path_factory) -> Path:
    """As [schnell] is: not told of guidance."""
    where = tmp_path_factory.mktemp("schnell")
    miniature.pipeline(distilled=False).save_pretrained(where)
    return where


@pytest.fixture(scope="module")
def backbone(folder) -> Observed:
    return FAMILIES["FluxPipeline"].load(str(folder))


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    """The folder, to be spoilt."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def plain(folder: Path, dtype: torch.dtype = torch.float32) -> FluxPipeline:
    """The folder as diffusers loads it."""
    pipe = FluxPipeline.from_pretrained(folder, dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def rewrite(path: Path, without: tuple[str, ...] = (), **changes: Any) -> None:
    found = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in found.items() if k not in without}))


def noise(batch: int = len(PROMPTS), side: int = 4) -> torch.Tensor:
    return torch.randn(batch, 4, side, side, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def theirs(pipe: Any, steps: int = 5, side: int = 4, kind: str = "latent", **rest: Any) -> Any:
    """Latents [B, C, h, w] or pictures of the pipeline, which then knows the times it took."""
    z, pixels = noise(side=side), 8 * side
    found = pipe(
        PROMPTS,
        height=pixels,
        width=pixels,
        num_inference_steps=steps,
        latents=pipe._pack_latents(z, *z.shape),
        max_sequence_length=miniature.TOKENS,
        output_type=kind,
        **rest,
    ).images
    return pipe._unpack_latents(found, pixels, pixels, 8) if kind == "latent" else found


@torch.no_grad()
def ours(found: Observed, guidance: float, times: torch.Tensor, side: int = 4) -> torch.Tensor:
    field = Policy(found, Renoise(Still()), guidance).field(found.encode(PROMPTS))
    return solvers.euler(found.process, field, noise(side=side), times)


# ------------------------------------------------------------------------------------ parity


@pytest.mark.parametrize("scale", [slow(1.0), 3.5])
def test_euler_is_the_pipeline(folder, scale):
    found, pipe = FAMILIES["FluxPipeline"].load(str(folder)), plain(folder)
    assert isinstance(found, ObservedTold)
    found.scale = scale
    latents = theirs(pipe, guidance_scale=scale)
    assert float(latents.std()) > 0.5
    mine = ours(found, 1.0, pipe.scheduler.sigmas)
    torch.testing.assert_close(mine, latents, rtol=0, atol=1e-4)
    with torch.no_grad():
        pictures = found.decode(mine)
    torch.testing.assert_close(
        pictures, theirs(pipe, kind="pt", guidance_scale=scale), rtol=0, atol=1e-4
    )
    assert float(pictures.std()) > 0.01
    found.scale = scale + 1
    assert float((ours(found, 1.0, pipe.scheduler.sigmas) - mine).abs().max()) > 1e-3


@pytest.mark.parametrize("guidance", [slow(1.0), 3.0])
def test_without_distilled_guidance_it_is_the_classifier_free_kind(free, guidance):
    """As the pipeline has it with a true_cfg_scale and an empty negative prompt."""
    found, pipe = FAMILIES["FluxPipeline"].load(str(free)), plain(free)
    latents = theirs(pipe, negative_prompt=[""] * 3, true_cfg_scale=guidance)
    mine = ours(found, guidance, pipe.scheduler.sigmas)
    torch.testing.assert_close(mine, latents, rtol=0, atol=1e-4)
    assert float((ours(found, guidance + 1, pipe.scheduler.sigmas) - mine).abs().max()) > 1e-3


def test_a_picture_of_another_size_is_the_pipelines(folder):
    found, pipe = FAMILIES["FluxPipeline"].load(str(folder), size=64), plain(folder)
    assert found.shape == (4, 8, 8)
    latents = theirs(pipe, side=8, guidance_scale=3.5)
    mine = ours(found, 1.0, pipe.scheduler.sigmas, side=8)
    torch.testing.assert_close(mine, latents, rtol=0, atol=1e-4)


def test_a_state_is_packed_as_the_pipeline_packs_it(backbone):
    """Also one that is not square: patches of 2×2, row by row, each at its place."""
    pipe, x = backbone.pipeline, torch.randn(2, 4, 4, 6)
    found = replace(backbone, shape=(4, 4, 6), twin=None)
    seen: list[dict[str, Any]] = []
    hook = backbone.network.register_forward_pre_hook(
        lambda module, given, named: seen.append(named), with_kwargs=True
    )
    with torch.no_grad():
        t = torch.tensor([0.25, 1.0])
        output = found.predict(x, t, found.encode(PROMPTS[:2]).tokens)
    hook.remove()
    (told,) = seen
    assert torch.equal(told["hidden_states"], pipe._pack_latents(x, *x.shape))
    places = pipe._prepare_latent_image_ids(2, 2, 3, torch.device("cpu"), torch.float32)
    assert torch.equal(told["img_ids"], places)
    assert told["img_ids"][[1, 3]].tolist() == [[0, 0, 1], [0, 1, 0]]
    assert not told["txt_ids"].any() and told["txt_ids"].shape == (miniature.TOKENS, 3)
    assert told["timestep"].tolist() == [0.25, 1.0]
    assert told["guidance"].tolist() == [3.5, 3.5]
    with torch.no_grad():
        (raw,) = pipe.transformer(**told)
    assert torch.equal(output, pipe._unpack_latents(raw, 32, 48, 8))


# ------------------------------------------------------------------------------------- times


@pytest.mark.parametrize("pixels", SHIFTS)
def test_the_schedulers_dynamic_shift_is_a_shifted_grid(pixels):
    """σ = e^μ / (e^μ + 1/u − 1), u = 1, 1 − 1/n, …: a grid of shift e^μ, of the size's own μ."""
    mu, shift = SHIFTS[pixels]
    assert calculate_shift((pixels // 16) ** 2) == pytest.approx(mu)
    assert math.exp(mu) == pytest.approx(shift, abs=1e-6)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / 28, 28).numpy(), mu=mu)
    times = grids.shifted(RectifiedFlow(), 28, shift)
    torch.testing.assert_close(scheduler.sigmas, times, rtol=0, atol=1e-6)


def test_sampling_shift_takes_the_pipelines_steps(folder, free):
    """A run's own grid: of the miniature's four tokens, and the uniform one of [schnell]."""
    for where, shift in ((folder, math.exp(calculate_shift(4))), (free, 1.0)):
        pipe = plain(where)
        theirs(pipe, steps=6)
        chosen = config.Sampling(grid="shifted", shift=shift, steps=6)
        times = named_parts.grid(RectifiedFlow(), chosen)
        torch.testing.assert_close(pipe.scheduler.sigmas, times, rtol=0, atol=1e-6)
    assert times.tolist() == pytest.approx([1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0])


# ------------------------------------------------------------------------------------ prompts


def test_a_prompt_is_read_as_the_pipeline_reads_it(folder, backbone):
    with torch.no_grad():
        states, pooled, _ = plain(folder).encode_prompt(
            PROMPTS, max_sequence_length=miniature.TOKENS
        )
    condition = backbone.encode(PROMPTS)
    rows = condition.tokens.rows
    assert condition.summary.shape == (3, miniature.TOKENS, miniature.STATES)
    torch.testing.assert_close(rows["encoder_hidden_states"], states)
    torch.testing.assert_close(rows["pooled_projections"], pooled)
    assert rows["guidance"].tolist() == [3.5] * 3
    assert float((pooled[0] - pooled[1]).abs().max()) > 0.01
    alone = backbone.encode(["", PROMPTS[0]]).tokens.rows
    for name, row in condition.null.rows.items():
        torch.testing.assert_close(alone[name][:1], row, rtol=0, atol=1e-6)
        torch.testing.assert_close(alone[name][1], rows[name][0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("distilled", "length"), [(True, 512), (False, 256)])
def test_sizes_and_lengths_without_a_note(folder, free, tmp_path, distilled, length):
    where = shutil.copytree(folder if distilled else free, tmp_path / "copy")
    rewrite(where / "transformer" / "config.json", ("_max_sequence_length", "_sample_size"))
    found = FAMILIES["FluxPipeline"].load(str(where))
    assert found.encode(PROMPTS[:1]).summary.shape == (1, length, miniature.STATES)
    assert found.shape == (4, 128, 128)  # 1024 pixels


# -------------------------------------------------------------------------------- the network


def built(source: Path, **rest: Any) -> Policy:
    model = config.Model(source=str(source), **rest)
    return build.build_policy(
        config.Run(recipe="none", objective=config.PolicyGradient(), model=model),
        torch.device("cpu"),
    )


def test_what_it_is(backbone):
    assert backbone.shape == (4, 4, 4)
    assert backbone.process == RectifiedFlow()
    assert backbone.prediction.name == "velocity"


def test_distilled_guidance_is_told_and_asked_once(folder, free):
    told, asked = built(folder, guidance=3.0), built(free, guidance=3.0)
    assert isinstance(told.backbone, Distilled) and not isinstance(asked.backbone, Distilled)
    assert (told.backbone.scale, told.guidance) == (3.0, 1.0)
    assert asked.guidance == 3.0
    for policy, calls in ((told, 3), (asked, 6)):
        with torch.no_grad():
            policy.estimate(noise(), torch.full((3,), 0.5), policy.backbone.encode(PROMPTS))
        assert policy.calls == calls


def test_features_are_what_the_network_reads_its_answer_from(backbone):
    tokens, t = backbone.encode(PROMPTS).tokens, torch.full((3,), 0.5)
    seen: list[torch.Tensor] = []
    hook = backbone.network.norm_out.register_forward_pre_hook(
        lambda module, given: seen.append(given[0])
    )
    with torch.no_grad():
        _, features = backbone.predict_with_features(noise(), t, tokens)
    hook.remove()
    torch.testing.assert_close(features, seen[0].mean(1))  # the picture's tokens, their mean


@pytest.mark.parametrize("steps", [3, slow(5)])
def test_half_precision_is_the_pipelines(folder, steps):
    """Times too are rounded as there: 1000·t to 8 bits, which is far from what float32 draws."""
    half, pipe = (
        FAMILIES["FluxPipeline"].load(str(folder), dtype=torch.bfloat16),
        plain(folder, torch.bfloat16),
    )
    latents = theirs(pipe, steps=steps, guidance_scale=3.5).float()
    times = pipe.scheduler.sigmas
    torch.testing.assert_close(ours(half, 1.0, times), latents, rtol=0, atol=0.05)
    assert (
        float((ours(FAMILIES["FluxPipeline"].load(str(folder)), 1.0, times) - latents).abs().max())
        > 0.3
    )


# ---------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2"])
def test_it_cannot_do_without_its_encoders(folder, part):
    with pytest.raises(UserError, match=f"cannot read prompts without its {part}: drop it") as said:
        built(folder, without=(part,))
    assert "\n" not in str(said.value) and "hardware.cache_prompts=true" in str(said.value)


def test_width_and_height(folder):
    found = built(folder, size="64x32").backbone
    assert found.shape == (4, 4, 8)
    assert found.sides == {"height": 32, "width": 64}
    assert found.decode(torch.zeros(1, *found.shape)).shape == (1, 3, 32, 64)


@pytest.mark.parametrize("size", ["0x64", "64x", "64x32x32", "9000x32", -16, 9000, True, None, 1.5])
def test_what_is_no_size(size):
    with pytest.raises(ValueError, match="a side in pixels, or width x height as 1344x768"):
        config.Model(size=size)


@pytest.mark.parametrize("size", [40, 8, "64x40"])
def test_a_size_that_patches_do_not_fill(folder, size):
    with pytest.raises(UserError, match=rf"model\.size={size} is no multiple of 16: set one"):
        FAMILIES["FluxPipeline"].load(str(folder), size=size)
