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

from scoretune.core import config
from scoretune.core.errors import UserError
from scoretune.diffusion import grids
from scoretune.diffusion.kernels import CPS, Renoise, Still
from scoretune.diffusion.processes import Tabulated
from scoretune.diffusion.solvers.base import KernelSampler
from scoretune.models import latent_consistency
from scoretune.models.families import FAMILIES
from scoretune.models.latent_consistency import LatentConsistency, boundary
from scoretune.models.tiny import latent_consistency as miniature
from scoretune.models.tiny import stable_diffusion as tiny_stable_diffusion
from scoretune.models.tiny.stable_diffusion_xl import TABLE
from scoretune.policy import Distilled, Policy
from scoretune.rollout import rollout
from scoretune.training import build
from slow_cases import slow

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
    return KernelSampler(kernel)(found.process, field, x, times, generator=noises)


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


@pytest.mark.parametrize(
    ("prediction", "steps"),
    [
        ("epsilon", 4),
        ("v_prediction", 1),
        *(slow(*each) for each in (("epsilon", 1), ("v_prediction", 4))),
        *(slow("sample", steps) for steps in (1, 4)),
    ],
)
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
    process = Tabulated(tuple(scheduler.alphas_cumprod.double().tolist()))
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


@pytest.mark.parametrize("prediction", [slow("epsilon"), "v_prediction"])
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
    assert torch.equal(policy.backbone.guidance_embedding(noise(2)), told)
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


@pytest.mark.parametrize(
    ("prediction", "steps"),
    [
        ("epsilon", 4),
        ("v_prediction", 1),
        *(slow("epsilon", steps) for steps in (1, 2)),
        *(slow("v_prediction", steps) for steps in (2, 4)),
    ],
)
def test_turbo_is_ddim_on_trailing_times(tmp_path, steps, prediction):
    """Euler in x/α is DDIM; it begins at σ(1)·ξ, and the times are our uniform grid's."""
    table = {**TABLE, "prediction_type": prediction, "timestep_spacing": "trailing"}
    saved(tmp_path, tiny_stable_diffusion.pipeline(EulerDiscreteScheduler(**table)))
    found, pipe = (
        FAMILIES["StableDiffusionPipeline"].load(str(tmp_path)),
        plain(tmp_path, StableDiffusionPipeline),
    )
    times = times_of(pipe, steps)
    torch.testing.assert_close(times, grids.uniform(found.process, steps, t_end=0.0))
    x = noise() * found.process.sigma(times[:1])
    mine, latents = ours(found, times, x, Renoise(Still())), theirs(pipe, steps, 1.0)
    assert float(latents.std()) > 0.1
    torch.testing.assert_close(mine, latents, rtol=0, atol=1e-4)


@pytest.mark.parametrize("steps", [slow(1), 4])
def test_a_plain_model_with_lcms_scheduler_renoises(tmp_path, steps):
    """A merged LCM-LoRA: the boundary's share is below 1e-7 at these times."""
    saved(tmp_path, tiny_stable_diffusion.pipeline(LCMScheduler(**TABLE)))
    found, pipe = (
        FAMILIES["StableDiffusionPipeline"].load(str(tmp_path)),
        plain(tmp_path, StableDiffusionPipeline),
    )
    latents = theirs(pipe, steps, 1.0)
    mine = ours(found, times_of(pipe, steps), noise())
    torch.testing.assert_close(mine, latents, rtol=0, atol=1e-4)


# -------------------------------------------------------------------------------- the network


def test_what_it_is(backbone):
    assert backbone.shape == (4, 4, 4)
    assert backbone.prediction.name == "sample"
    assert backbone.schedule.prediction.name == "epsilon"


# ---------------------------------------------------------------------------------- bad input


def built(source: Path, **rest: Any) -> Policy:
    model = config.Model(source=str(source), rank=0, **rest)
    run = config.Run(recipe="none", objective=config.PolicyGradient(), model=model)
    return build.build_policy(run, CPU)


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def implicit(folder: Path) -> None:
    DDIMScheduler(**TABLE).save_pretrained(folder / "scheduler")
    rewrite(folder / "model_index.json", scheduler=["diffusers", "DDIMScheduler"])


SPOILT = [
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
