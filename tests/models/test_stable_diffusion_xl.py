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
    FlowMatchEulerDiscreteScheduler,
    StableDiffusionXLPipeline,
)

from scoretune import recipes
from scoretune.commands.doctor.laws.models import laws_of
from scoretune.core import config
from scoretune.core.errors import UserError
from scoretune.diffusion import grids, solvers
from scoretune.diffusion.kernels import GDDIM, Renoise, Still
from scoretune.diffusion.processes import VE, noise_ratio, time_of_ratio
from scoretune.models import catalog, export, latent_consistency, stable_diffusion_xl
from scoretune.models.lora import adapter_state, add_adapter
from scoretune.models.recycled import Recycled, recycle
from scoretune.models.stable_diffusion_xl import GuidedStableDiffusionXL, StableDiffusionXL
from scoretune.models.tiny import stable_diffusion_xl as miniature
from scoretune.models.tiny import words
from scoretune.models.tiny.latent_consistency import TABLE
from scoretune.policy import Distilled, Policy, WithFeatures
from scoretune.rollout import rollout
from scoretune.training import overrides, run_folder

PROMPTS = ["a red circle", "a blue square and a green sea", "a dark sky"]
CPU = torch.device("cpu")
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
def backbone(folder) -> StableDiffusionXL:
    return stable_diffusion_xl.load(str(folder))


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


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_ddim_is_the_pipeline(tmp_path, name, guidance):
    saved(tmp_path, scheduled(miniature.pipeline(), **SCHEDULERS[name]))
    found, pipe = stable_diffusion_xl.load(str(tmp_path)), plain(tmp_path)
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
    found, pipe = stable_diffusion_xl.load(str(folder), size=64), plain(folder)
    assert found.shape == (4, 8, 8)
    times, z = times_of(pipe, 3), noise(side=8)
    latents = theirs(pipe, 3.0, 3, latents=z, height=64, width=64)
    mine = ours(found, 3.0, times, started(found, pipe, times, z))
    torch.testing.assert_close(mine, latents, rtol=0, atol=1e-4)
    told_else = theirs(pipe, 3.0, 3, latents=z, height=64, width=64, original_size=(32, 32))
    assert float((told_else - latents).abs().max()) > 1e-3


def test_what_is_told_of_sizes(folder):
    found = stable_diffusion_xl.load(str(folder), size=48)
    seen: list[dict[str, Any]] = []
    found.network.register_forward_pre_hook(
        lambda module, given, named: seen.append(named), with_kwargs=True
    )
    tokens = found.encode(PROMPTS).tokens
    with torch.no_grad():
        found.predict(noise(side=6), torch.full((3,), 0.5), tokens)
    assert seen[0]["added_cond_kwargs"]["time_ids"].tolist() == [[48, 48, 0, 0, 48, 48]] * 3
    assert torch.equal(seen[0]["added_cond_kwargs"]["text_embeds"], tokens[:, 10, :10])
    assert seen[0]["timestep_cond"] is None


def test_a_unet_that_is_told_of_guidance(tmp_path):
    saved(tmp_path, miniature.pipeline(guidance=6))
    found, pipe = stable_diffusion_xl.load(str(tmp_path)), plain(tmp_path)
    assert isinstance(found, GuidedStableDiffusionXL)
    assert isinstance(found, Distilled)
    found.scale = 4.0
    times = times_of(pipe, 4)
    x = started(found, pipe, times, noise())
    mine = ours(found, 1.0, times, x)
    torch.testing.assert_close(mine, theirs(pipe, 4.0, 4), rtol=0, atol=1e-4)
    found.scale = 7.0
    assert float((ours(found, 1.0, times, x) - mine).abs().max()) > 1e-3


@pytest.mark.parametrize("steps", [1, 4])
def test_turbos_ancestral_euler_is_gddim_of_one(tmp_path, steps):
    """SDXL-Turbo's scheduler, without guidance and on the same noises; it begins at σ(1)·ξ."""
    pipe = miniature.pipeline()
    pipe.scheduler = EulerAncestralDiscreteScheduler(**TABLE, timestep_spacing="trailing")
    saved(tmp_path, pipe)
    found, pipe = stable_diffusion_xl.load(str(tmp_path)), plain(tmp_path)
    times, generator = times_of(pipe, steps), torch.Generator().manual_seed(5)
    field = Policy(found, GDDIM(1.0)).field(found.encode(PROMPTS))
    x = noise() * found.process.sigma(times[:1])
    with torch.no_grad():
        mine = solvers.gddim(found.process, field, x, times, eta=1.0, generator=generator)
    latents = theirs(pipe, 0.0, steps, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(mine, latents, rtol=0, atol=1e-4)


# ------------------------------------------------------------------------------------ prompts


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("zeros", [True, False])
def test_a_prompt_is_read_as_the_pipeline_reads_it(tmp_path, first, zeros):
    saved(tmp_path, miniature.pipeline(first=first, zeros=zeros))
    found, pipe = stable_diffusion_xl.load(str(tmp_path)), plain(tmp_path)
    with torch.no_grad():
        states, empty, pooled, free = pipe.encode_prompt(PROMPTS, do_classifier_free_guidance=True)
    condition, width = found.encode(PROMPTS), 20 if first else 8
    rows = 1 if first else 2  # a pooled state of 10 numbers, in rows of 20 or of 8
    assert condition.tokens.shape == (3, 10 + rows, width)
    torch.testing.assert_close(condition.tokens[:, :10], states)
    torch.testing.assert_close(condition.tokens[:, 10:].flatten(1)[:, :10], pooled)
    torch.testing.assert_close(condition.null[:10], empty[0])
    torch.testing.assert_close(condition.null[10:].flatten()[:10], free[0])
    assert bool(condition.null.any()) is not zeros
    alone = found.encode(PROMPTS[:1]).tokens
    torch.testing.assert_close(alone, condition.tokens[:1], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("first", "zeros"), [(False, True), (True, False)])
def test_without_the_first_encoder_or_the_zeros_it_is_the_pipeline(tmp_path, first, zeros):
    saved(tmp_path, miniature.pipeline(first=first, zeros=zeros))
    found, pipe = stable_diffusion_xl.load(str(tmp_path)), plain(tmp_path)
    times = times_of(pipe, 3)
    mine = ours(found, 3.0, times, started(found, pipe, times, noise()))
    torch.testing.assert_close(mine, theirs(pipe, 3.0, 3), rtol=0, atol=1e-4)


def test_the_second_encoder_reads_its_own_words(tmp_path):
    """A first tokenizer without its encoder is left out."""
    saved(tmp_path, miniature.pipeline(first=False))
    alone = stable_diffusion_xl.load(str(tmp_path)).encode(PROMPTS)
    pipe = plain(tmp_path)
    pipe.register_modules(tokenizer=words.tokenizer(6))
    found = stable_diffusion_xl.load(str(saved(tmp_path, pipe)))
    torch.testing.assert_close(found.encode(PROMPTS).tokens, alone.tokens)


def test_prompts_that_are_remembered_need_no_encoders(folder):
    found = stable_diffusion_xl.load(str(folder))
    before = found.encode(PROMPTS)
    found.remember(PROMPTS)
    assert found.pipeline.text_encoder is None and found.pipeline.text_encoder_2 is None
    after = found.encode(PROMPTS)
    torch.testing.assert_close(after.tokens, before.tokens, rtol=0, atol=1e-6)
    assert not after.null.any()
    with torch.no_grad():
        found.predict(noise(), torch.full((3,), 0.5), after.tokens)


# -------------------------------------------------------------------------------- the network


def test_what_it_is(folder, backbone):
    assert backbone.shape == (4, 4, 4)
    assert backbone.process.n == 1000
    assert backbone.process.alphas_cumprod[-1] == pytest.approx(0.00466, abs=1e-5)
    assert not isinstance(backbone, Distilled)
    assert not any(p.requires_grad for p in backbone.pipeline.unet.parameters())
    assert isinstance(run_folder.load(folder).backbone, StableDiffusionXL)


def test_features_for_a_critic(backbone):
    assert isinstance(backbone, WithFeatures)
    tokens, t = backbone.encode(PROMPTS).tokens, torch.full((3,), 0.5)
    x = noise().requires_grad_(True)
    output, features = backbone.predict_with_features(x, t, tokens)
    assert torch.equal(output, backbone.predict(x, t, tokens))
    assert features.shape == (3, backbone.feature_size)
    (slope,) = torch.autograd.grad(features.sum(), x)
    assert float(slope.abs().sum()) > 0


@pytest.mark.parametrize("upcast", [True, False])
def test_a_decoder_that_overflows_in_half_precision_is_kept_whole(tmp_path, upcast):
    pipe = miniature.pipeline()
    pipe.vae.register_to_config(force_upcast=upcast)
    pipe.vae.decoder.conv_in.weight.data *= 3e5
    saved(tmp_path, pipe)
    half = stable_diffusion_xl.load(str(tmp_path), dtype=torch.float16)
    assert half.pipeline.unet.dtype == torch.float16
    assert half.pipeline.vae.dtype == (torch.float32 if upcast else torch.float16)
    z = noise(2).requires_grad_(True)
    pictures = half.decode(z)
    assert pictures.dtype == torch.float32
    assert bool(torch.isfinite(pictures).all()) is upcast
    if upcast:
        whole = stable_diffusion_xl.load(str(tmp_path)).decode(z)
        torch.testing.assert_close(pictures, whole, rtol=0, atol=5e-3)
        pictures.sum().backward()
        assert bool(torch.isfinite(z.grad).all()) and bool(z.grad.any())
        assert half.embed(torch.rand(1, 3, 32, 32)).shape == (1, 4, 4, 4)


def test_half_precision_acts_and_judges_alike(folder):
    half = stable_diffusion_xl.load(str(folder), dtype=torch.bfloat16)
    assert half.pipeline.vae.dtype == torch.bfloat16  # which has float32's range
    add_adapter(half.network, 2)
    policy = Policy(half, GDDIM(1.0), 2.0)
    condition, times = half.encode(PROMPTS), grids.uniform(half.process, 3)
    path = rollout(policy, condition, times, torch.Generator().manual_seed(0), noise())
    assert path.states.dtype == torch.float32
    for k in range(3):
        t, t_next = times[k].expand(3), times[k + 1].expand(3)
        law = policy.transition(path.states[k], t, t_next, condition)
        assert torch.equal(law.log_prob(path.states[k + 1]), path.log_probs[k])
    whole = ours(stable_diffusion_xl.load(str(folder)), 2.0, times, noise())
    assert float((ours(half, 2.0, times, noise()) - whole).abs().max()) < 0.05 * float(whole.std())


def test_under_another_process_it_draws_the_same(backbone):
    """DDIM lives in x/α and σ/α: on the same noise ratios the process cannot be seen."""
    base, other = backbone.process, VE(0.01, 14.0)
    moved = recycle(backbone, other)
    times = grids.uniform(base, 8, t_end=0.02)[1:]
    own = time_of_ratio(other, noise_ratio(base, times)).float()
    mine = ours(backbone, 2.0, times, base.alpha(times[0]) * noise()) / base.alpha(times[-1])
    found = ours(moved, 2.0, own, other.alpha(own[0]) * noise()) / other.alpha(own[-1])
    torch.testing.assert_close(found, mine, rtol=0, atol=2e-3 * float(mine.std()))


@pytest.mark.parametrize("law", ["ratio, unchanged", "infinite log-probabilities", "same seed"])
def test_the_laws_of_any_model_hold(backbone, law):
    (asked,) = [each for each in laws_of(Policy(backbone, GDDIM(1.0))) if law in each.name]
    with torch.no_grad():
        assert asked.measured(CPU) == pytest.approx(asked.expected, abs=asked.tolerance)


# ------------------------------------------------------------------------------- fine-tuning


class Watching:
    """A watcher that stops the run after the update `until`, if told to."""

    def __init__(self, until: int | None = None) -> None:
        self.until, self.updates = until, []

    def stage(self, text: str) -> None: ...

    def line(self, numbers: dict[str, Any]) -> None:
        self.updates.append(numbers.get("update"))
        if numbers.get("update") == self.until:
            raise KeyboardInterrupt


def launch(run: config.Run, folder: Path, until: int | None = None) -> list[Any]:
    from scoretune.training.build import launch, ready

    watching = Watching(until)
    ready(run)
    run_folder.record(run, folder, threads=1)
    launch(run, folder, watching)
    return watching.updates


@pytest.fixture
def tuned(folder, tiny, tmp_path):
    """A configuration of two GRPO updates on the tiny model."""
    asked = tmp_path / "prompts.txt"
    asked.write_text("\n".join(PROMPTS))

    def make(*changes: str, recipe: str = "grpo") -> config.Run:
        given = [f"model.source={folder}", f"prompts={asked}", "reward=brightness", "model.rank=2"]
        return overrides.changed(recipes.named(recipe), [*tiny, *given, *changes])

    return make


def said(policy: Policy, backbone: StableDiffusionXL) -> torch.Tensor:
    """What a policy estimates of the data at one state, told by a backbone's encoders."""
    with torch.no_grad():
        t = torch.full((3,), 0.6)
        return policy.estimate(noise(), t, backbone.encode(PROMPTS)).data


def test_a_lora_trains_and_the_reference_stays(tuned, backbone, tmp_path):
    changes = ("model.guidance=2", "model.process=VE(sigma_max=14)")
    assert launch(tuned(*changes), tmp_path / "run") == [1, 2]
    policy = run_folder.load(tmp_path / "run")
    assert isinstance(policy.backbone, Recycled)
    assert isinstance(policy.backbone.base, StableDiffusionXL)
    learned = adapter_state(policy.backbone.network)
    assert any(bool(w.any()) for name, w in learned.items() if "lora_B" in name)
    bare = Policy(recycle(backbone, policy.backbone.process), GDDIM(1.0), 2.0)
    assert float((said(policy, backbone) - said(bare, backbone)).abs().max()) > 0
    with policy.reference():
        assert torch.equal(said(policy, backbone), said(bare, backbone))
    assert (tmp_path / "run" / "lora" / "pytorch_lora_weights.safetensors").exists()


def test_every_weight_trains(tuned, backbone, tmp_path):
    launch(tuned("model.rank=0", "objective.kl_weight=0", recipe="ddpo"), tmp_path / "run")
    learned = run_folder.load(tmp_path / "run").backbone.network.state_dict()
    before = backbone.network.state_dict()
    moved = [name for name, w in before.items() if not torch.equal(w, learned[name])]
    assert "add_embedding.linear_1.weight" in moved
    assert len(moved) > len(before) / 2


def test_a_stopped_run_goes_on_bit_for_bit(tuned, tmp_path):
    launch(tuned(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        launch(tuned(), tmp_path / "stopped", until=2)  # before it is saved
    assert launch(tuned(), tmp_path / "stopped") == [2]
    name = Path("lora") / "pytorch_lora_weights.safetensors"
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "stopped" / name).read_bytes()


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_same_pictures_in_plain_diffusers(folder, tmp_path, guidance):
    found = stable_diffusion_xl.load(str(folder))
    add_adapter(found.network, 2, StableDiffusionXL.targets)
    generator = torch.Generator().manual_seed(1)
    for name, tensor in adapter_state(found.network).items():
        if "lora_B" in name:
            tensor.copy_(0.5 * torch.randn(tensor.shape, generator=generator))
    policy, pipe = Policy(found, GDDIM(1.0)), plain(folder)
    export.lora(policy, tmp_path)
    pipe.load_lora_weights(tmp_path)
    times = times_of(pipe, 4)
    x = started(found, pipe, times, noise())
    pictures = theirs(pipe, guidance, 4, "pt")
    with torch.no_grad():
        mine = found.decode(ours(found, guidance, times, x))
        with policy.reference():
            bare = found.decode(ours(found, guidance, times, x))
    torch.testing.assert_close(mine, pictures, rtol=0, atol=1e-4)
    assert float((bare - pictures).abs().max()) > 0.01  # the adapter is what made them so


# ---------------------------------------------------------------------------------- bad input


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def flowing(folder: Path) -> None:
    FlowMatchEulerDiscreteScheduler().save_pretrained(folder / "scheduler")
    index = folder / "model_index.json"
    rewrite(index, scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"])


SPOILT = [
    (lambda f: rewrite(f / "model_index.json", _class_name="StableDiffusionXLImg2ImgPipeline"),
     "holds a StableDiffusionXLImg2ImgPipeline, not a StableDiffusionXLPipeline"),
    (lambda f: (f / "model_index.json").unlink(), "is no diffusers pipeline"),
    (lambda f: shutil.rmtree(f / "vae"), "cannot load the model"),
    (lambda f: shutil.rmtree(f / "unet"), "cannot load the model"),
    (lambda f: rewrite(f / "model_index.json", text_encoder_2=[None, None]),
     "has no text_encoder_2"),
    (lambda f: rewrite(f / "model_index.json", text_encoder=[None, None]),
     "give states of width 8, and the UNet takes 20"),
    (lambda f: rewrite(f / "scheduler" / "scheduler_config.json", prediction_type="flow"),
     "has prediction_type 'flow': unknown prediction 'flow'"),
    (lambda f: rewrite(f / "vae" / "config.json", latents_mean=[0.0] * 4, latents_std=[1.0] * 4),
     "standardises latents"),
    (flowing, "is a FlowMatchEulerDiscreteScheduler, which has no noise table"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "said"), SPOILT)
def test_a_folder_that_is_no_such_model_says_so_in_a_line(copy, spoil, said):
    spoil(copy)
    with pytest.raises(UserError) as caught:
        stable_diffusion_xl.load(str(copy))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_refiners_unet_is_refused(tmp_path):
    pipe = miniature.pipeline(first=False)
    pipe.unet = miniature.denoiser(miniature.SECOND, pooled=10 - 8)  # five sizes, not six
    saved(tmp_path, pipe)
    with pytest.raises(UserError, match="as the refiner's does: fine-tune the base model"):
        stable_diffusion_xl.load(str(tmp_path))


def test_a_size_that_the_autoencoder_does_not_divide(folder):
    with pytest.raises(UserError, match=r"model\.size=20 is no multiple of 8"):
        stable_diffusion_xl.load(str(folder), size=20)


def test_parts_left_out_or_of_another_family(folder):
    with pytest.raises(UserError, match="has no text_encoder_2"):
        stable_diffusion_xl.load(str(folder), without=("text_encoder_2",))
    with pytest.raises(UserError, match="holds a StableDiffusionXLPipeline, not a Latent"):
        latent_consistency.load(str(folder))
    assert catalog.FAMILIES["StableDiffusionXLPipeline"] is stable_diffusion_xl.load
