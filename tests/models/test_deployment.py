"""A model is evaluated as it is deployed: along its pipeline's own times, in its steps, and with
its guidance where that is an input of the network."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from scoretune import recipes
from scoretune.core.config import Evaluation, Model, Sampling
from scoretune.data.prompts import Prompts
from scoretune.diffusion import grids
from scoretune.diffusion.kernels import GDDIM
from scoretune.diffusion.processes import Tabulated, noise_ratio
from scoretune.evaluate.gap import Comparison
from scoretune.evaluate.samples import deployed_times
from scoretune.evaluate.scores import measure
from scoretune.models.catalog import FAMILIES, load_backbone, lora_targets, remarks
from scoretune.models.recycled import recycle
from scoretune.models.tiny import (
    diffusion_transformer,
    flux,
    latent_consistency,
    stable_diffusion,
    stable_diffusion_3,
    stable_diffusion_xl,
    unconditional,
)
from scoretune.models.tiny.stable_diffusion_xl import TABLE
from scoretune.policy import Deployed, Policy, deployment_of
from scoretune.training import build
from scoretune.training.hooks import Silent
from scoretune.training.overrides import changed
from scoretune.training.run import launch, ready

STEPS = 6


def flowing(**settings: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(**settings)


def pixels() -> Any:
    return diffusers.DDIMPipeline(unconditional.unet(), diffusers.DDIMScheduler(clip_sample=False))


def slowly() -> Any:
    return diffusers.DDPMPipeline(unconditional.unet(), diffusers.DDPMScheduler())


def leading() -> Any:
    kept = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
    return stable_diffusion.pipeline(diffusers.DDIMScheduler(**TABLE, **kept))


PIPELINES: dict[str, tuple[Callable[[], Any], Any]] = {
    "stable diffusion": (leading, None),
    "… pndm": (
        leading,
        diffusers.PNDMScheduler(**TABLE, skip_prk_steps=True, steps_offset=1),
    ),
    "… linspace": (
        leading,
        diffusers.EulerAncestralDiscreteScheduler(**TABLE, timestep_spacing="linspace"),
    ),
    "… no signal": (
        leading,
        diffusers.EulerDiscreteScheduler(
            **TABLE,
            timestep_spacing="trailing",
            rescale_betas_zero_snr=True,
            prediction_type="v_prediction",
        ),
    ),
    "… karras": (leading, diffusers.DPMSolverMultistepScheduler(**TABLE, use_karras_sigmas=True)),
    "… heun": (leading, diffusers.HeunDiscreteScheduler(**TABLE, timestep_spacing="trailing")),
    "xl": (stable_diffusion_xl.pipeline, None),
    "xl, edm": (stable_diffusion_xl.pipeline, diffusers.EDMEulerScheduler()),
    "3": (stable_diffusion_3.pipeline, None),
    "3, dynamic": (
        stable_diffusion_3.pipeline,
        flowing(use_dynamic_shifting=True, base_image_seq_len=2, max_image_seq_len=9),
    ),
    "flux dev": (
        flux.pipeline,
        flowing(use_dynamic_shifting=True, base_image_seq_len=1, max_image_seq_len=9),
    ),
    "flux schnell": (lambda: flux.pipeline(distilled=False), None),
    "latent consistency": (latent_consistency.pipeline, None),
    "dit": (diffusion_transformer.pipeline, None),
    "pixels": (pixels, None),
    "ddpm": (slowly, None),
}


def built(pipe: Any) -> Any:
    """The backbone of a pipeline that was never saved."""
    return FAMILIES[type(pipe).__name__].build(pipe, "model", 0)


def drawn(pipe: Any) -> Any:
    """The scheduler of a pipeline that has drawn once, as its own call set it up."""
    pipe.set_progress_bar_config(disable=True)
    known = inspect.signature(type(pipe).__call__).parameters
    asks = {
        "prompt": "a red circle",
        "class_labels": [1],
        "max_sequence_length": 2,
        "height": 32,
        "width": 32,
        "num_inference_steps": STEPS,
        "output_type": "latent" if "prompt" in known else "np",
    }
    with torch.no_grad():
        pipe(**{name: value for name, value in asks.items() if name in known})
    return pipe.scheduler


@pytest.mark.parametrize("name", PIPELINES)
def test_the_times_are_those_of_the_pipelines_own_call(name):
    make, scheduler = PIPELINES[name]
    pipe = make()
    pipe.scheduler = scheduler or pipe.scheduler
    found = built(pipe)
    own, times = drawn(pipe), deployment_of(found).times(STEPS).double()
    assert times.dtype == torch.float64 and bool((times.diff() < 0).all())
    sigmas = vars(own).get("sigmas")
    if sigmas is None:  # nodes of a table, and its end
        labels = torch.unique_consecutive(own.timesteps).double()
        told = found.schedule.label(times[:-1])
        torch.testing.assert_close(told, labels, rtol=0, atol=1e-3)  # of 1000: 1e-6 in time
        whole = own.config.get("set_alpha_to_one", True)
        assert float(times[-1]) == pytest.approx(0.0 if whole else 1e-3, abs=1e-9)
    else:
        sigmas = torch.unique_consecutive(sigmas).double()
        if isinstance(found.process, Tabulated):
            ours = noise_ratio(found.process, times.clamp(min=1e-30))
            torch.testing.assert_close(ours, sigmas, rtol=2e-5, atol=1e-6)  # times in float32
        else:
            torch.testing.assert_close(times, sigmas, rtol=0, atol=1e-6)
    defaults = inspect.signature(type(pipe).__call__).parameters
    deployment = found.deployment
    assert deployment.steps == defaults["num_inference_steps"].default
    scale = defaults["guidance_scale"].default if "guidance_scale" in defaults else None
    assert deployment.guidance == (None if name == "flux schnell" else scale)


def test_pndm_asks_between_its_first_steps():
    pipe = leading()
    pipe.scheduler = diffusers.PNDMScheduler(**TABLE, steps_offset=1)
    times = built(pipe).deployed_times(5)
    assert (1000 * times).round().tolist() == [802, 702, 602, 502, 402, 302, 202, 2, 1]


def test_the_shipped_models_and_others_keep_uniform_steps():
    for source in ("scenes", "scenes-flow"):
        backbone = load_backbone(Model(source=source))
        assert isinstance(backbone, Deployed) and deployment_of(backbone) is None
        assert torch.equal(deployed_times(backbone, 7), grids.uniform(backbone.process, 7))


@pytest.fixture(scope="module")
def dev(tmp_path_factory) -> Path:
    return flux.build(tmp_path_factory.mktemp("deployed") / "flux")


def run_of(folder: Path, *words: str) -> Any:
    return changed(recipes.named("ddpo"), [f"model.source={folder}", "reward=brightness", *words])


def test_a_scale_that_is_an_input_is_the_pipelines_own_unless_it_is_set(dev, tmp_path):
    cpu = torch.device("cpu")
    policy = build.build_policy(run_of(dev), cpu)
    assert policy.backbone.scale == 3.5 and policy.guidance == 1.0
    assert remarks(policy, None) == ()
    policy = build.build_policy(run_of(dev, "model.guidance=1"), cpu)
    assert policy.backbone.scale == 1.0
    # Under another process it is told all the same, and asked once; all its attention is adapted.
    moved = build.build_policy(run_of(dev, "model.process=VE(sigma_max=20)"), cpu)
    assert moved.backbone.base.scale == 3.5 and moved.guidance == 1.0
    layers = {name.rpartition(".")[2] for name in lora_targets(Model(), moved.backbone)}
    assert {"to_q", "add_q_proj", "to_add_out"} <= layers
    lcm = latent_consistency.build(tmp_path)
    assert build.build_policy(run_of(lcm), cpu).backbone.scale == 8.5


def test_guidance_of_1_is_said_where_the_pipeline_has_more():
    backbone = built(stable_diffusion_3.pipeline())
    (line,) = remarks(Policy(backbone, GDDIM(1.0)), None)
    assert line.startswith("guidance is 1, and a StableDiffusion3Pipeline draws with 7 unless")
    assert "set model.guidance=7" in line
    assert remarks(Policy(backbone, GDDIM(1.0)), 1.0) == ()
    assert remarks(Policy(backbone, GDDIM(1.0), 4.0), 4.0) == ()


class Said(Exception):
    """What a run had to say, which ends it here."""


class Hearing(Silent):
    def note(self, text: str) -> None:
        raise Said(text)


def test_a_run_and_a_verb_say_so(tmp_path, command):
    leading().save_pretrained(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("a red circle\na dark sky\n")
    run = run_of(tmp_path / "model", f"prompts={tmp_path / 'prompts.txt'}")
    said = "guidance is 1, and a StableDiffusionPipeline draws with 7.5 unless told otherwise"
    with pytest.raises(Said, match=said):
        launch(run, tmp_path / "run", Hearing(), ready(run))
    picture = ["--out", tmp_path / "x.png", "--steps", 2]
    sampled = command("sample", tmp_path / "model", "a red circle", *picture)
    assert sampled.code == 0 and sampled.err.count(f"note: {said}") == 1


class Listening(Policy):
    """Keeps the times at which its network is asked."""

    def estimate(self, x: Any, t: Any, condition: Any) -> Any:
        self.heard.append(round(float(t[0]), 6))  # type: ignore[attr-defined]
        return super().estimate(x, t, condition)


def test_evaluations_and_gaps_go_along_the_models_own_times(dev):
    backbone = load_backbone(Model(source=str(dev)))
    policy = Listening(backbone, GDDIM(1.0))
    policy.heard = []  # type: ignore[attr-defined]
    measured = measure(
        policy,
        Prompts(("a red circle",), ("all",)),
        reward=lambda images, prompts: images.flatten(1).mean(1),
        reward_name="brightness",
        metrics={},
        evaluation=Evaluation(steps=3),
        sampling=Sampling(steps=2),
    )
    assert measured.guidance == 3.5
    own = deployment_of(backbone)
    times = own.times(3)
    assert policy.heard[:3] == [round(float(t), 6) for t in times[:-1]]  # type: ignore[attr-defined]
    assert policy.heard[3:5] == [1.0, 0.5]  # type: ignore[attr-defined]  # the training's own
    nothing = Prompts((), ())
    gap = Comparison(nothing, len, "none", Sampling(), 0, own)  # type: ignore[arg-type]
    assert torch.equal(gap.times(backbone.process, 3), times) and gap.grid == "deployed"
    named = Comparison(nothing, len, "none", Sampling(grid="uniform"), 0, own)  # type: ignore[arg-type]
    assert torch.equal(named.times(backbone.process, 3), grids.uniform(backbone.process, 3))


def test_another_process_has_no_times_of_a_pipeline(dev):
    moved = recycle(load_backbone(Model(source=str(dev))), grids.RectifiedFlow())
    assert deployment_of(moved) is None
