"""Stable Diffusion 3 as a backbone: tiny random pipelines against diffusers' own call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    StableDiffusion3Pipeline,
)

from scoretune.core import config
from scoretune.core.errors import UserError
from scoretune.data.scenes import world
from scoretune.diffusion import grids, solvers
from scoretune.diffusion.kernels import GDDIM, Renoise, Still
from scoretune.diffusion.processes import VP
from scoretune.models import export
from scoretune.models.families import FAMILIES
from scoretune.models.lora import add_adapter
from scoretune.models.observed import Observed
from scoretune.models.recycled import recycle
from scoretune.models.tiny import stable_diffusion_3 as miniature
from scoretune.models.tiny import words
from scoretune.policy import Policy
from scoretune.rollout import Acting, prior, rollout
from scoretune.training import build
from slow_cases import slow

PROMPTS = list(words.PROMPTS[:3])
SCENES = ["a red seven", "two fives", "a three left of a nine"]
CPU = torch.device("cpu")


def saved(folder: Path, pipe: Any, tokens: int | None = None) -> Path:
    """A folder of the pipeline, in which `tokens` stand in T5's place."""
    if tokens is not None:
        pipe.transformer.register_to_config(_max_sequence_length=tokens)
    pipe.save_pretrained(folder)
    return folder


def plain(folder: Path, third: bool = False) -> StableDiffusion3Pipeline:
    """The folder as diffusers loads it."""
    absent = {} if third else {"text_encoder_3": None, "tokenizer_3": None}
    pipe = StableDiffusion3Pipeline.from_pretrained(folder, **absent)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("model"), miniature.pipeline(), 3)


@pytest.fixture(scope="module")
def backbone(folder) -> Observed:
    return FAMILIES["StableDiffusion3Pipeline"].load(str(folder))


@pytest.fixture(scope="module")
def adapted(folder) -> Observed:
    """The same with a fresh adapter."""
    found = FAMILIES["StableDiffusion3Pipeline"].load(str(folder))
    add_adapter(found.network, 2)
    return found


def noise(batch: int = len(PROMPTS), seed: int = 2) -> torch.Tensor:
    return torch.randn(batch, 4, 4, 4, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def ours(found: Observed, guidance: float, times: torch.Tensor, solver: str = "euler"):
    policy = Policy(found, Renoise(Still()), guidance)
    field = policy.field(found.encode(PROMPTS))
    solve = solvers.SOLVERS[solver].function
    return solve(found.process, field, noise(), times)


@torch.no_grad()
def theirs(pipe: Any, guidance: float, steps: int, tokens: int, kind: str = "latent"):
    return pipe(
        PROMPTS,
        num_inference_steps=steps,
        guidance_scale=guidance,
        latents=noise(),
        max_sequence_length=tokens,
        output_type=kind,
    ).images


def scheduled(pipe: Any, steps: int) -> torch.Tensor:
    """The scheduler's own times, which for shift 3 it shifts twice."""
    pipe.scheduler.set_timesteps(steps)
    return pipe.scheduler.sigmas


# ------------------------------------------------------------------------------------ parity


@pytest.mark.parametrize(
    ("third", "tokens", "shift", "guidance"),
    [
        (False, 5, 1.0, 4.5),
        (True, None, 3.0, 1.0),
        *(slow(*each, 1.0, 4.5) for each in ((False, 0), (True, 10), (True, None))),
        *(slow(*each, 3.0, 1.0) for each in ((False, 0), (False, 5), (True, 10))),
    ],
)
def test_euler_is_the_pipeline(tmp_path, third, tokens, shift, guidance):
    saved(tmp_path, miniature.pipeline(third=third, shift=shift), tokens)
    found, pipe = FAMILIES["StableDiffusion3Pipeline"].load(str(tmp_path)), plain(tmp_path, third)
    times, length = scheduled(pipe, 6), 256 if tokens is None else tokens
    mine, latents = ours(found, guidance, times), theirs(pipe, guidance, 6, length)
    assert float(latents.std()) > 0.5
    torch.testing.assert_close(mine, latents, rtol=0, atol=1e-4)
    pictures = theirs(pipe, guidance, 6, length, "pt")
    with torch.no_grad():
        torch.testing.assert_close(found.decode(mine), pictures, rtol=0, atol=1e-4)


@pytest.mark.parametrize("guidance", [slow(1.0), 3.0])
def test_the_shipped_flow_is_the_pipeline(guidance):
    """On our uniform grid; its scheduler's own has a last step of 1/1000."""
    folder = world.shipped("scenes-flow")
    found, pipe = FAMILIES["StableDiffusion3Pipeline"].load(str(folder)), plain(folder)
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    times = grids.uniform(found.process, 8)
    pictures = pipe(
        SCENES,
        sigmas=times[:-1].tolist(),
        guidance_scale=guidance,
        latents=latents.clone(),
        max_sequence_length=0,
        output_type="pt",
    ).images
    field = Policy(found, Renoise(Still()), guidance).field(found.encode(SCENES))
    with torch.no_grad():
        mine = solvers.euler(found.process, field, latents, times)
        torch.testing.assert_close(found.decode(mine), pictures, rtol=0, atol=1e-4)


def test_the_scheduler_shifts_once_or_twice(backbone):
    """Shift 1 is uniform from 1 down to 1/1000, then 0; shift 3 moves that twice."""
    once = FlowMatchEulerDiscreteScheduler(shift=1.0)
    once.set_timesteps(10)
    uniform = grids.uniform(backbone.process, 9, t_end=1e-3)
    assert once.sigmas.tolist() == pytest.approx([*uniform.tolist(), 0], abs=1e-6)
    twice = FlowMatchEulerDiscreteScheduler(shift=3.0)
    twice.set_timesteps(10)
    golden = [1, 0.9601, 0.9133, 0.8577, 0.7904, 0.7073, 0.6022, 0.4649, 0.2780, 0.0089, 0]
    assert twice.sigmas.tolist() == pytest.approx(golden, abs=1e-4)
    single = grids.shifted(backbone.process, 10, 3.0)
    assert float((single - twice.sigmas).abs().max()) > 0.1


def test_ddim_and_euler_are_one_on_a_straight_line(backbone):
    """x' = x + (t' − t)(ε̂ − x̂0) = (1 − t')x̂0 + t'ε̂ (arXiv 2209.03003)."""
    times = grids.uniform(backbone.process, 5)
    torch.testing.assert_close(
        ours(backbone, 1.0, times, "ddim"), ours(backbone, 1.0, times), rtol=0, atol=1e-5
    )


def test_a_prompt_is_read_as_the_pipeline_reads_it(folder, backbone):
    condition = backbone.encode(PROMPTS)
    states, empty, pooled, free = plain(folder).encode_prompt(
        PROMPTS, None, None, max_sequence_length=3
    )
    rows, free_rows = condition.tokens.rows, condition.null.rows
    assert condition.summary.shape == (3, 10 + 3, 24)
    torch.testing.assert_close(rows["encoder_hidden_states"], states)
    torch.testing.assert_close(rows["pooled_projections"], pooled)
    assert not states[:, :10, 20:].any()  # two CLIPs of 12 and 8 do not fill 24
    torch.testing.assert_close(free_rows["encoder_hidden_states"], empty[:1])
    torch.testing.assert_close(free_rows["pooled_projections"], free[:1])


def test_a_pooled_state_wider_than_a_token(tmp_path):
    saved(tmp_path, miniature.pipeline(pooled=16), 0)
    found, pipe = FAMILIES["StableDiffusion3Pipeline"].load(str(tmp_path)), plain(tmp_path)
    assert found.encode(PROMPTS).tokens.rows["pooled_projections"].shape == (3, 32)
    times = scheduled(pipe, 3)
    torch.testing.assert_close(ours(found, 2.0, times), theirs(pipe, 2.0, 3, 0), rtol=0, atol=1e-4)


def test_what_stands_in_t5s_place_survives_diffusers(folder, tmp_path, caplog):
    """Plain diffusers loads and saves the folder without losing the note, and says nothing."""
    plain(folder).save_pretrained(tmp_path)
    assert "attributes" not in caplog.text
    again = FAMILIES["StableDiffusion3Pipeline"].load(str(tmp_path))
    assert again.encode(PROMPTS).summary.shape == (3, 10 + 3, 24)


# --------------------------------------------------------------------------------- the network


def test_the_label_is_a_thousand_times_the_time(backbone):
    seen = []
    hook = backbone.network.register_forward_pre_hook(
        lambda module, given, named: seen.append(named["timestep"]), with_kwargs=True
    )
    with torch.no_grad():
        backbone.predict(noise(2), torch.tensor([0.25, 1.0]), backbone.encode(PROMPTS[:2]).tokens)
    hook.remove()
    assert seen[0].tolist() == [250, 1000]


@pytest.mark.parametrize("offset", [None, 0.06])
def test_pictures_and_back(tmp_path, offset):
    """decode(z) is the VAE at z/scaling + shift, and embed the inverse of that line."""
    found = FAMILIES["StableDiffusion3Pipeline"].load(
        str(saved(tmp_path, miniature.pipeline(offset=offset), 0))
    )
    vae, z = found.pipeline.vae, noise(2)
    with torch.no_grad():
        pixels = vae.decode(z / 1.5 + (offset or 0)).sample
        images = found.decode(z)
        codes = vae.encode(images * 2 - 1).latent_dist.mode()
    torch.testing.assert_close(images, (pixels / 2 + 0.5).clamp(0, 1))
    assert images.shape == (2, 3, 32, 32)
    torch.testing.assert_close(found.embed(images), (codes - (offset or 0)) * 1.5)
    z.requires_grad_(True)
    found.decode(z).sum().backward()
    assert float(z.grad.abs().sum()) > 0


# ------------------------------------------------------------------------ from the noise itself


@pytest.mark.parametrize("eta", [0.3, 1.0, 1.5])
def test_a_step_from_pure_noise_is_finite(adapted, eta):
    """At t = 1 there is no signal, ρ = ∞; the step is then α'x̂0 + σ'ξ."""
    policy = Policy(adapted, GDDIM(eta), 2.0)
    condition, x = adapted.encode(PROMPTS), noise()
    t, t_next = torch.ones(3), torch.full((3,), 0.8)
    law = policy.transition(x, t, t_next, condition)
    data = policy.estimate(x, t, condition).data
    torch.testing.assert_close(law.mean, 0.2 * data, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(law.std, torch.full_like(law.std, 0.8))
    law.log_prob(noise(seed=3)).sum().backward()
    slopes = [p.grad for p in policy.parameters() if p.grad is not None]
    assert slopes
    assert all(bool(torch.isfinite(slope).all()) for slope in slopes)
    assert any(bool(slope.any()) for slope in slopes)
    adapted.network.zero_grad()


def test_a_path_from_pure_noise_to_data(backbone):
    policy = Policy(backbone, GDDIM(1.0))
    condition = backbone.encode(PROMPTS)
    x = prior(policy, 3, torch.Generator().manual_seed(0))
    path = rollout(
        policy,
        condition,
        grids.uniform(backbone.process, 4),
        torch.Generator().manual_seed(1),
        x,
        acting=Acting(features=True),
    )
    assert path.noisy.tolist() == [True, True, True, False]
    for field in (path.states, path.log_probs, path.kl_weights, path.etas, path.features):
        assert torch.isfinite(field).all()


def test_a_lora_under_another_process_has_its_own_names(folder, tmp_path):
    found = FAMILIES["StableDiffusion3Pipeline"].load(str(folder))
    add_adapter(found.network, 2)
    text = export.lora(Policy(recycle(found, VP()), GDDIM(1.0)), tmp_path).read_bytes()
    assert b"transformer.transformer_blocks" in text
    assert b"unet." not in text


# ---------------------------------------------------------------------------------- families


def built(source: Path | str, **rest: Any) -> Policy:
    model = config.Model(source=str(source), rank=0, **rest)
    run = config.Run(recipe="none", objective=config.PolicyGradient(), model=model)
    return build.build_policy(run, CPU)


def test_the_family_is_chosen_by_the_class(folder):
    assert isinstance(built(folder).backbone, Observed)
    assert isinstance(built("scenes").backbone, Observed)


def test_a_wrong_family_says_which_there_are(folder, tmp_path):
    saved(tmp_path, miniature.pipeline(), 0)
    index = tmp_path / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "_class_name": "KolorsPipeline"}))
    with pytest.raises(UserError) as caught:
        built(tmp_path)
    said = str(caught.value)
    assert said.startswith(
        f"'{tmp_path}' holds a KolorsPipeline, which is no family of this version"
    )
    assert "the nearest is" in said and len(said) - len(str(tmp_path)) < 250
    with pytest.raises(UserError, match="holds a StableDiffusion3Pipeline, not a StableDiffusionP"):
        FAMILIES["StableDiffusionPipeline"].load(str(folder))


def test_a_folder_that_is_missing(tmp_path):
    with pytest.raises(UserError, match="does not exist: check the path"):
        built(tmp_path / "nowhere")


def test_a_hub_id_is_read_at_its_revision(folder, tmp_path, monkeypatch):
    """The hub's cache, laid out by hand: nothing is downloaded, and `main` is another commit."""
    home, commit = tmp_path / "models--me--tiny", "a" * 40
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("b" * 40)
    (home / "refs" / "tried").write_text(commit)
    (home / "snapshots").mkdir()
    (home / "snapshots" / commit).symlink_to(folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = built("me/tiny", revision="tried").backbone
    assert isinstance(found, Observed)
    for revision in (None, "nothing"):
        with pytest.raises(UserError, match="cannot load the model 'me/tiny'") as caught:
            built("me/tiny", revision=revision)
        assert "\n" not in str(caught.value)
