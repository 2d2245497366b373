"""Few-step models, latent consistency and its kin, against diffusers on the same noises."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionPipeline,
)

from scoretune import recipes
from scoretune.commands.doctor.laws.models import laws_of
from scoretune.core import config
from scoretune.core.errors import UserError
from scoretune.diffusion import grids
from scoretune.diffusion.kernels import CPS, GDDIM, Renoise, Still
from scoretune.diffusion.processes import VE, noise_ratio, time_of_ratio
from scoretune.diffusion.solvers import stochastic
from scoretune.models import export, latent_consistency, stable_diffusion
from scoretune.models.latent_consistency import LatentConsistency, boundary
from scoretune.models.lora import adapter_state, add_adapter
from scoretune.models.recycled import Recycled, recycle
from scoretune.models.tiny import latent_consistency as miniature
from scoretune.policy import Distilled, Policy, WithFeatures
from scoretune.rollout import rollout
from scoretune.training import build, overrides, run_folder

PROMPTS = ["a red circle", "a blue square and a green sea", "a dark sky"]
CPU = torch.device("cpu")
FRESH = Renoise(CPS(1.0))
"""To the data, and back with noise all fresh: what LCMScheduler does."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return miniature.build(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def backbone(folder) -> LatentConsistency:
    return latent_consistency.load(str(folder))


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    """The folder, to be spoilt."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def saved(folder: Path, pipe: Any) -> Path:
    pipe.save_pretrained(folder)
    return folder


def plain(folder: Path, kind: Any = LatentConsistencyModelPipeline) -> Any:
    """The folder as diffusers loads it."""
    pipe = kind.from_pretrained(folder, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def noise(batch: int = len(PROMPTS), side: int = 4) -> torch.Tensor:
    return torch.randn(batch, 4, side, side, generator=torch.Generator().manual_seed(2))


def times_of(pipe: Any, steps: int) -> torch.Tensor:
    """The scheduler's own times, and data."""
    pipe.scheduler.set_timesteps(steps)
    nodes = (pipe.scheduler.timesteps.double() + 1) / 1000
    return torch.cat([nodes, torch.zeros(1)]).float()


@torch.no_grad()
def ours(found: Any, times: torch.Tensor, x: torch.Tensor, kernel: Any = FRESH) -> torch.Tensor:
    field = Policy(found, kernel).field(found.encode(PROMPTS))
    noises = torch.Generator().manual_seed(5)
    return stochastic.through(kernel)(found.process, field, x, times, generator=noises)


@torch.no_grad()
def theirs(pipe: Any, steps: int, guidance: float, kind: str = "latent", **rest: Any) -> Any:
    asked = {"latents": noise(), **rest}
    return pipe(
        PROMPTS,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(5),
        output_type=kind,
        **asked,
    ).images


# ------------------------------------------------------------------------------------ parity


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_renoising_is_the_pipeline(tmp_path, prediction, steps):
    """LCMScheduler's x' = α'f + σ'ξ is Renoise with CPS(1), on its own times and noises."""
    saved(tmp_path, miniature.pipeline(prediction=prediction))
    found, pipe = latent_consistency.load(str(tmp_path)), plain(tmp_path)
    found.scale = 5.0
    times = times_of(pipe, steps)
    mine, latents = ours(found, times, noise()), theirs(pipe, steps, 5.0)
    assert float(latents.std()) > 0.1
    torch.testing.assert_close(mine, latents, rtol=0, atol=1e-4)
    with torch.no_grad():
        pictures = found.decode(mine)
    torch.testing.assert_close(pictures, theirs(pipe, steps, 5.0, "pt"), rtol=0, atol=1e-4)


def test_a_rollout_is_the_pipeline_too(folder, backbone):
    """Acting, with likelihoods of every step but the last, which has no noise."""
    pipe = plain(folder)
    policy, condition = Policy(backbone, FRESH), backbone.encode(PROMPTS)
    noises = torch.Generator().manual_seed(5)
    path = rollout(policy, condition, times_of(pipe, 4), noises, noise())
    latents = theirs(pipe, 4, backbone.scale)
    torch.testing.assert_close(path.final, latents, rtol=0, atol=1e-4)
    assert path.noisy.tolist() == [True, True, True, False]
    assert torch.isfinite(path.log_probs).all()


def test_the_schedulers_times_and_its_scale():
    """Four of fifty, 20 apart; the step's std is the whole of σ', so nothing of ε̂ is kept."""
    scheduler = LCMScheduler()
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [999, 759, 499, 259]
    process = latent_consistency.Tabulated(tuple(scheduler.alphas_cumprod.double().tolist()))
    t, t_next = torch.tensor([1.0, 0.76]), torch.tensor([0.76, 0.5])
    weights = FRESH.weights(process, t, t_next)
    torch.testing.assert_close(weights.data, process.alpha(t_next))
    torch.testing.assert_close(weights.std, process.sigma(t_next))
    assert not weights.noise.any()


def test_a_picture_of_another_size_is_the_pipelines(folder):
    found, pipe = latent_consistency.load(str(folder), size=64), plain(folder)
    z = noise(side=8)
    latents = theirs(pipe, 2, found.scale, latents=z, height=64, width=64)
    torch.testing.assert_close(ours(found, times_of(pipe, 2), z), latents, rtol=0, atol=1e-4)


# ----------------------------------------------------------------------------- its own estimate


def test_the_boundary_is_kept():
    """c_skip = 1/4/(u² + 1/4), c_out = u/√(u² + 1/4) with u = 10·label: 1 and 0 at label 0."""
    skip, out = boundary(torch.tensor([-0.5, 0.0, 0.05, 1.0, 999.0]), 10.0)
    assert skip.tolist() == pytest.approx([1, 1, 0.5, 0.25 / 100.25, 0.25 / 9990**2], rel=1e-5)
    assert out.tolist() == pytest.approx([0, 0, 0.5**0.5, 10 / math.sqrt(100.25), 1], rel=1e-6)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_estimate_is_the_schedulers_near_the_data(tmp_path, prediction):
    """Where the boundary matters: the first labels of the table."""
    saved(tmp_path, miniature.pipeline(prediction=prediction))
    found, pipe = latent_consistency.load(str(tmp_path)), plain(tmp_path)
    condition, x = found.encode(PROMPTS), noise()
    scheduler = pipe.scheduler
    told = pipe.get_guidance_scale_embedding(torch.tensor([found.scale - 1.0] * 3), 8)
    for label in (0, 1, 2, 40):
        scheduler.set_timesteps(timesteps=[label])
        t = torch.full((3,), (label + 1) / 1000)
        with torch.no_grad():
            output = pipe.unet(x, label, condition.tokens, timestep_cond=told).sample
            expected = scheduler.step(output, torch.tensor(label), x).denoised
            mine = Policy(found, FRESH).estimate(x, t, condition)
        torch.testing.assert_close(mine.data, expected, rtol=0, atol=1e-4)
        seen = found.process.alpha(t[:1]) * mine.data + found.process.sigma(t[:1]) * mine.noise
        torch.testing.assert_close(seen, x, rtol=0, atol=1e-5)
        if label == 0:
            torch.testing.assert_close(mine.data, x, rtol=0, atol=1e-3)


def test_guidance_is_told_and_asked_once(folder, backbone):
    policy = built(folder, guidance=3.0)
    assert isinstance(policy.backbone, Distilled)
    assert (policy.backbone.scale, policy.guidance) == (3.0, 1.0)
    told = plain(folder).get_guidance_scale_embedding(torch.tensor([2.0, 2.0]), 8)
    assert torch.equal(policy.backbone.guided(noise(2)), told)
    condition, t = backbone.encode(PROMPTS), torch.full((3,), 0.7)
    with torch.no_grad():
        weak = policy.estimate(noise(), t, condition).data
        strong = Policy(backbone, FRESH).estimate(noise(), t, condition).data
    assert policy.calls == 3
    assert float((weak - strong).abs().max()) > 1e-3


def test_a_prompt_is_read_as_the_pipeline_reads_it(folder, backbone):
    condition = backbone.encode(PROMPTS)
    states, free = plain(folder).encode_prompt(PROMPTS, CPU, 1, True)
    assert condition.tokens.shape == (3, 10, 12)
    torch.testing.assert_close(condition.tokens, states)
    torch.testing.assert_close(condition.null, free[0])


# ------------------------------------------------------- few steps of a plain Stable Diffusion


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_turbo_is_ddim_on_trailing_times(tmp_path, steps, prediction):
    """Euler in x/α is DDIM; it begins at σ(1)·ξ, and the times are our uniform grid's."""
    table = {**miniature.TABLE, "prediction_type": prediction, "timestep_spacing": "trailing"}
    saved(tmp_path, miniature.plain(EulerDiscreteScheduler(**table)))
    found, pipe = stable_diffusion.load(str(tmp_path)), plain(tmp_path, StableDiffusionPipeline)
    times = times_of(pipe, steps)
    torch.testing.assert_close(times, grids.uniform(found.process, steps, t_end=0.0))
    x = noise() * found.process.sigma(times[:1])
    mine, latents = ours(found, times, x, Renoise(Still())), theirs(pipe, steps, 1.0)
    assert float(latents.std()) > 0.1
    torch.testing.assert_close(mine, latents, rtol=0, atol=1e-4)


@pytest.mark.parametrize("steps", [1, 4])
def test_a_plain_model_with_lcms_scheduler_renoises(tmp_path, steps):
    """A merged LCM-LoRA: the boundary's share is below 1e-7 at these times."""
    saved(tmp_path, miniature.plain(LCMScheduler(**miniature.TABLE)))
    found, pipe = stable_diffusion.load(str(tmp_path)), plain(tmp_path, StableDiffusionPipeline)
    latents = theirs(pipe, steps, 1.0)
    mine = ours(found, times_of(pipe, steps), noise())
    torch.testing.assert_close(mine, latents, rtol=0, atol=1e-4)


# -------------------------------------------------------------------------------- the network


def test_what_it_is(folder, backbone):
    assert backbone.shape == (4, 4, 4)
    assert backbone.prediction.name == "sample"
    assert backbone.output.name == "epsilon"
    assert not any(p.requires_grad for p in backbone.pipeline.unet.parameters())
    assert isinstance(run_folder.load(folder).backbone, LatentConsistency)


def test_features_for_a_critic(backbone):
    assert isinstance(backbone, WithFeatures)
    tokens, t = backbone.encode(PROMPTS).tokens, torch.full((3,), 0.5)
    x = noise().requires_grad_(True)
    output, features = backbone.predict_with_features(x, t, tokens)
    assert torch.equal(output, backbone.predict(x, t, tokens))
    assert features.shape == (3, backbone.feature_size)
    (slope,) = torch.autograd.grad(features.sum(), x)
    assert float(slope.abs().sum()) > 0


def test_half_precision_acts_and_judges_alike(folder, backbone):
    half = latent_consistency.load(str(folder), dtype=torch.bfloat16)
    add_adapter(half.network, 2)
    policy, condition = Policy(half, FRESH), half.encode(PROMPTS)
    times = grids.uniform(half.process, 3)
    path = rollout(policy, condition, times, torch.Generator().manual_seed(0), noise())
    assert path.states.dtype == torch.float32
    for k in range(3):
        t, t_next = times[k].expand(3), times[k + 1].expand(3)
        law = policy.transition(path.states[k], t, t_next, condition)
        assert torch.equal(law.log_prob(path.states[k + 1]), path.log_probs[k])
    whole = ours(backbone, times, noise())
    assert float((ours(half, times, noise()) - whole).abs().max()) < 0.05 * float(whole.std())


def test_under_another_process_it_draws_the_same(backbone):
    """DDIM lives in x/α and σ/α: on the same noise ratios the process cannot be seen."""
    base, other = backbone.process, VE(0.01, 14.0)
    times = grids.uniform(base, 8, t_end=0.02)[1:]
    own = time_of_ratio(other, noise_ratio(base, times)).float()
    still = Renoise(Still())
    mine = ours(backbone, times, base.alpha(times[0]) * noise(), still) / base.alpha(times[-1])
    moved = recycle(backbone, other)
    found = ours(moved, own, other.alpha(own[0]) * noise(), still) / other.alpha(own[-1])
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
        self.until, self.lines = until, []

    def stage(self, text: str) -> None: ...

    def line(self, numbers: dict[str, Any]) -> None:
        self.lines.append(numbers)
        if numbers.get("update") == self.until:
            raise KeyboardInterrupt


def launch(run: config.Run, folder: Path, until: int | None = None) -> list[dict[str, Any]]:
    from scoretune.training.build import launch, ready

    watching = Watching(until)
    ready(run)
    run_folder.record(run, folder, threads=1)
    launch(run, folder, watching)
    return watching.lines


@pytest.fixture
def tuned(folder, tiny, tmp_path):
    """A configuration of two updates of DDPO on the tiny model, by its own few-step sampler."""
    asked = tmp_path / "prompts.txt"
    asked.write_text("\n".join(PROMPTS))

    def make(*changes: str) -> config.Run:
        given = [f"model.source={folder}", f"prompts={asked}", "reward=brightness", "model.rank=2"]
        own = ["sampling.kernel=renoise", "sampling.noise=cps", "sampling.eta=0.99"]
        few = ["model.guidance=8.5", "sampling.grid=uniform"]
        return overrides.changed(recipes.named("ddpo"), [*tiny, *given, *own, *few, *changes])

    return make


def said(policy: Policy, backbone: LatentConsistency) -> torch.Tensor:
    """What a policy estimates of the data at one state, told by a backbone's encoder."""
    with torch.no_grad():
        t = torch.full((3,), 0.6)
        return policy.estimate(noise(), t, backbone.encode(PROMPTS)).data


def test_a_lora_trains_and_the_reference_stays(tuned, backbone, tmp_path):
    lines = launch(tuned(), tmp_path / "run")
    assert [line["update"] for line in lines] == [1, 2]
    numbers = [value for line in lines for value in line.values() if isinstance(value, float)]
    assert all(map(math.isfinite, numbers))
    policy = run_folder.load(tmp_path / "run")
    learned = adapter_state(policy.backbone.network)
    assert any(bool(w.any()) for name, w in learned.items() if "lora_B" in name)
    bare = Policy(backbone, FRESH)
    assert float((said(policy, backbone) - said(bare, backbone)).abs().max()) > 0
    with policy.reference():
        assert torch.equal(said(policy, backbone), said(bare, backbone))
    assert (tmp_path / "run" / "lora" / "pytorch_lora_weights.safetensors").exists()


def test_every_weight_trains_under_another_process(tuned, backbone, tmp_path):
    changes = ("model.rank=0", "objective.kl_weight=0", "model.process=VE(sigma_max=14)")
    launch(tuned(*changes), tmp_path / "run")
    policy = run_folder.load(tmp_path / "run")
    assert isinstance(policy.backbone, Recycled)
    assert policy.backbone.base.scale == 8.5
    learned, before = policy.backbone.network.state_dict(), backbone.network.state_dict()
    moved = [name for name, w in before.items() if not torch.equal(w, learned[name])]
    assert "time_embedding.cond_proj.weight" in moved
    assert len(moved) > len(before) / 2


def test_a_stopped_run_goes_on_bit_for_bit(tuned, tmp_path):
    launch(tuned(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        launch(tuned(), tmp_path / "stopped", until=2)  # before it is saved
    assert [line["update"] for line in launch(tuned(), tmp_path / "stopped")] == [2]
    name = Path("lora") / "pytorch_lora_weights.safetensors"
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "stopped" / name).read_bytes()


def test_the_same_pictures_in_plain_diffusers(folder, tmp_path):
    found, pipe = latent_consistency.load(str(folder)), plain(folder)
    add_adapter(found.network, 2)
    generator = torch.Generator().manual_seed(1)
    for name, tensor in adapter_state(found.network).items():
        if "lora_B" in name:
            tensor.copy_(0.5 * torch.randn(tensor.shape, generator=generator))
    policy = Policy(found, FRESH)
    export.lora(policy, tmp_path)
    pipe.load_lora_weights(tmp_path)
    times, pictures = times_of(pipe, 4), theirs(pipe, 4, found.scale, "pt")
    with torch.no_grad():
        mine = found.decode(ours(found, times, noise()))
        with policy.reference():
            bare = found.decode(ours(found, times, noise()))
    torch.testing.assert_close(mine, pictures, rtol=0, atol=1e-4)
    assert float((bare - pictures).abs().max()) > 0.01  # the adapter is what made them so


# ---------------------------------------------------------------------------------- bad input


def built(source: Path, **rest: Any) -> Policy:
    model = config.Model(source=str(source), rank=0, **rest)
    run = config.Run(recipe="none", objective=config.PolicyGradient(), model=model)
    return build.build_policy(run, CPU)


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def implicit(folder: Path) -> None:
    DDIMScheduler(**miniature.TABLE).save_pretrained(folder / "scheduler")
    rewrite(folder / "model_index.json", scheduler=["diffusers", "DDIMScheduler"])


SPOILT = [
    (
        lambda f: rewrite(f / "model_index.json", _class_name="StableDiffusionPipeline"),
        "holds a StableDiffusionPipeline, not a LatentConsistencyModelPipeline",
    ),
    (lambda f: (f / "model_index.json").unlink(), "is no diffusers pipeline"),
    (lambda f: shutil.rmtree(f / "text_encoder"), "cannot load the model"),
    (lambda f: shutil.rmtree(f / "scheduler"), "cannot load the model"),
    (implicit, "is a DDIMScheduler: a latent consistency model needs an LCMScheduler"),
    (
        lambda f: rewrite(f / "scheduler" / "scheduler_config.json", clip_sample=True),
        "clips its estimates",
    ),
]


@pytest.mark.parametrize(("spoil", "said"), SPOILT)
def test_a_folder_that_is_no_such_model_says_so_in_a_line(copy, spoil, said):
    spoil(copy)
    with pytest.raises(UserError) as caught:
        latent_consistency.load(str(copy))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_unet_that_is_not_told_of_guidance(tmp_path):
    saved(tmp_path, miniature.pipeline(guidance=None))
    with pytest.raises(UserError, match="save the pipeline as a StableDiffusionPipeline"):
        latent_consistency.load(str(tmp_path))


def test_a_size_that_the_autoencoder_does_not_divide(folder):
    with pytest.raises(UserError, match=r"model\.size=20 is no multiple of 8"):
        latent_consistency.load(str(folder), size=20)
    with pytest.raises(UserError, match="holds a LatentConsistencyModelPipeline, not a StableD"):
        stable_diffusion.load(str(folder))
