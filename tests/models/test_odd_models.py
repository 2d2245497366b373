"""Pipelines as people have them: each kind works as in diffusers, or is refused in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from scoretune.core.config import Model
from scoretune.core.errors import UserError
from scoretune.diffusion import solvers
from scoretune.diffusion.kernels import Renoise, Still
from scoretune.diffusion.processes import EDM, RectifiedFlow
from scoretune.models import families, folders
from scoretune.models.catalog import FAMILIES, load_backbone
from scoretune.models.schedulers import schedule_of
from scoretune.models.tiny import flux, words
from scoretune.models.tiny import stable_diffusion as miniature
from scoretune.models.tiny import stable_diffusion_3 as tiny_3
from scoretune.models.tiny import stable_diffusion_xl as tiny_xl
from scoretune.policy import Distilled, Policy

PROMPTS = ["a red circle", "a dark sky"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniature.build(tmp_path_factory.mktemp("odd") / "model")


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "model"))


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def drop(path: Path, *names: str) -> None:
    kept = {k: v for k, v in json.loads(path.read_text()).items() if k not in names}
    path.write_text(json.dumps(kept))


def replace(folder: Path, name: str, part: Any) -> None:
    """Save another part in the place of one."""
    shutil.rmtree(folder / name)
    part.save_pretrained(folder / name)
    rewrite(folder / "model_index.json", **{name: ["diffusers", type(part).__name__]})


def built(pipe: Any) -> Any:
    """The backbone of a pipeline that was never saved."""
    pipe.set_progress_bar_config(disable=True)
    return FAMILIES[type(pipe).__name__].build(pipe, "model", 0)


def loaded(folder: Path, **settings: Any) -> Any:
    return load_backbone(Model(source=str(folder), **settings))


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        loaded(folder)
    said = str(caught.value)
    assert "\n" not in said and len(said) <= 300
    return said


def noise(backbone: Any) -> torch.Tensor:
    return torch.randn(2, *backbone.shape, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def drawn(backbone: Any, steps: int = 4, guidance: float = 1.0, solver: str = "ddim") -> Any:
    """Latents at the end of the pipeline's own times, from the same noise."""
    times = backbone.deployed_times(steps)
    x = noise(backbone) * backbone.process.prior_std
    field = Policy(backbone, Renoise(Still()), guidance).field(backbone.encode(PROMPTS))
    return solvers.SOLVERS[solver].function(backbone.process, field, x, times)


# -------------------------------------------------------------------------------- schedulers


def stepped(backbone: Any, scheduler: Any, steps: int = 4) -> torch.Tensor:
    """What diffusers' own scheduler of a flow makes of the network's outputs, without guidance.

    The network is told 1000 t, which solvers of noise tables cut to whole numbers.
    """
    scheduler.set_timesteps(steps)
    x, states = noise(backbone), backbone.encode(PROMPTS).summary
    with torch.no_grad():
        for step, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
            output = backbone.network(x, 1000 * sigma, encoder_hidden_states=states).sample
            x = scheduler.step(output, step, x).prev_sample
    return x


def test_a_flow_match_scheduler_on_a_stable_diffusion():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=2.5)
    found = built(miniature.pipeline(scheduler))
    assert found.process == RectifiedFlow() and found.prediction.name == "velocity"
    mine = drawn(found, solver="euler")
    assert float((mine - noise(found)).std()) > 0.1
    torch.testing.assert_close(mine, stepped(found, scheduler), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
@pytest.mark.parametrize("said", [True, False])
def test_solvers_of_noise_tables_that_are_set_to_a_flow(name, said):
    """DPM-Solver of the first order takes the exact step of DDIM."""
    settings = {"solver_order": 1, "prediction_type": "flow_prediction", "flow_shift": 2.0}
    scheduler = getattr(diffusers, name)(use_flow_sigmas=True, **settings)
    # A flow, said or not: nothing else has this prediction.
    found = built(miniature.pipeline(getattr(diffusers, name)(use_flow_sigmas=said, **settings)))
    assert found.process == RectifiedFlow() and found.prediction.name == "velocity"
    scheduler.set_timesteps(4)
    torch.testing.assert_close(found.deployed_times(4), scheduler.sigmas, rtol=0, atol=1e-6)
    if name.startswith("DPM"):  # UniPC corrects its steps
        theirs = stepped(found, scheduler)
        torch.testing.assert_close(drawn(found), theirs, rtol=0, atol=1e-4)


EDMS = {
    "playground": {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5},
    "cosxl": {
        "sigma_max": 120.0,
        "sigma_data": 1.0,
        "sigma_schedule": "exponential",
        "prediction_type": "v_prediction",
    },
}


@pytest.mark.parametrize("name", EDMS)
def test_edm_on_a_stable_diffusion_xl_is_the_pipeline(name):
    """Preconditioning, σ and ¼ ln σ, and latents that are standardised by channel."""
    pipe = tiny_xl.pipeline()
    pipe.scheduler = diffusers.EDMEulerScheduler(**EDMS[name])
    statistics = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.5, 2.0, 0.5, 1.0]}
    pipe.vae.register_to_config(**statistics)
    found = built(pipe)
    assert found.process == EDM(EDMS[name]["sigma_max"])
    starts = noise(found) * found.process.prior_std / pipe.scheduler.init_noise_sigma
    ask = {"num_inference_steps": 4, "guidance_scale": 3.0, "latents": starts}
    theirs = pipe(PROMPTS, output_type="latent", **ask).images
    mine = drawn(found, guidance=3.0)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    pictures = pipe(PROMPTS, output_type="pt", **ask).images
    with torch.no_grad():
        torch.testing.assert_close(found.decode(mine), pictures, rtol=0, atol=1e-4)
    z = torch.randn(1, 4, 4, 4)
    codes = found.embed(found.decode(z).detach())
    plain = found.pipeline.vae.encode(found.decode(z).detach() * 2 - 1).latent_dist.mode()
    back = plain - torch.tensor(statistics["latents_mean"]).view(1, 4, 1, 1)
    back = back / torch.tensor(statistics["latents_std"]).view(1, 4, 1, 1)
    torch.testing.assert_close(codes, back * found.pipeline.vae.config.scaling_factor)


REFUSED_SCHEDULERS: dict[str, tuple[Any, str]] = {
    "continuous": (
        lambda: diffusers.EulerDiscreteScheduler(
            timestep_type="continuous", prediction_type="v_prediction"
        ),
        "has timestep_type 'continuous', which this version does not read",
    ),
    "inverted": (
        lambda: diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        "runs from data to noise (invert_sigmas)",
    ),
    "noise of a flow": (
        lambda: diffusers.UniPCMultistepScheduler(use_flow_sigmas=True),
        "along a flow and has prediction_type epsilon, which tells nothing where a flow begins",
    ),
    "no process": (
        lambda: diffusers.CMStochasticIterativeScheduler(),
        "is a CMStochasticIterativeScheduler, which has no noise table",
    ),
}


@pytest.mark.parametrize("name", REFUSED_SCHEDULERS)
def test_schedulers_of_no_process_of_ours(name):
    make, said = REFUSED_SCHEDULERS[name]
    with pytest.raises(UserError) as caught:
        schedule_of("model", make())
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_flow_needs_a_flows_scheduler():
    flow = next(row for row in families.ROWS if row.kind == "StableDiffusion3Pipeline")
    with pytest.raises(UserError, match="a DDIMScheduler of a noise table, and its network learn"):
        flow.prepare("model", SimpleNamespace(scheduler=diffusers.DDIMScheduler()))


def test_guidance_that_was_distilled_into_a_stable_diffusion():
    """A latent consistency UNet in a plain pipeline: it is told the scale, and asked once."""
    pipe = miniature.pipeline(diffusers.DDIMScheduler(clip_sample=False), guidance=8)
    found = built(pipe)
    assert isinstance(found, Distilled) and found.scale == 7.5
    ask = {"num_inference_steps": 4, "guidance_scale": 7.5, "output_type": "latent"}
    theirs = pipe(PROMPTS, latents=noise(found), **ask).images
    # Its DDIM asks every 250th entry, and steps to the one that is 250 below.
    torch.testing.assert_close(drawn(found), theirs, rtol=0, atol=1e-4)


# ------------------------------------------------------------------------------ autoencoders


def asymmetric() -> Any:
    return diffusers.AsymmetricAutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        down_block_out_channels=(4, 4, 4, 4),
        up_block_types=("UpDecoderBlock2D",) * 4,
        up_block_out_channels=(4, 4, 4, 4),
        layers_per_down_block=1,
        layers_per_up_block=1,
        norm_num_groups=2,
        sample_size=32,
    )


def tiny_autoencoder() -> Any:
    return diffusers.AutoencoderTiny(
        encoder_block_out_channels=(4,) * 4,
        decoder_block_out_channels=(4,) * 4,
        num_encoder_blocks=(1,) * 4,
        num_decoder_blocks=(1,) * 4,
    )


@pytest.mark.parametrize("make", [asymmetric, tiny_autoencoder])
def test_other_autoencoders_draw_and_read(make):
    pipe, vae = miniature.pipeline(diffusers.DDIMScheduler()), make().eval()
    pipe.vae = vae
    found = built(pipe)
    assert found.shape == (4, 4, 4)
    z = noise(found)
    with torch.no_grad():
        pictures = found.decode(z)
        theirs = (vae.decode(z / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
        code = vae.encode(pictures * 2 - 1)
    torch.testing.assert_close(pictures, theirs, rtol=0, atol=1e-5)
    latents = code.latents if make is tiny_autoencoder else code.latent_dist.mode()
    torch.testing.assert_close(
        found.embed(pictures), latents * vae.config.scaling_factor, rtol=0, atol=1e-5
    )


# ------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("own", "coded", "shape"),
    [(None, 32, (4, 4, 4)), ([6, 4], 32, (4, 6, 4)), (None, [32, 48], (4, 4, 6))],
)
def test_sizes_that_are_missing_or_two(copy, own, coded, shape):
    rewrite(copy / "unet" / "config.json", sample_size=own)
    rewrite(copy / "vae" / "config.json", sample_size=coded)
    found = loaded(copy)
    assert found.shape == shape
    assert drawn(found).shape == (2, *shape)
    with torch.no_grad():
        assert found.decode(noise(found)).shape[2:] == tuple(8 * side for side in shape[1:])


def test_a_size_that_nobody_says_is_asked_for(copy):
    replace(copy, "vae", tiny_autoencoder())
    rewrite(copy / "unet" / "config.json", sample_size=None)
    assert "does not say how large its pictures are: set model.size" in refusal(copy)
    assert loaded(copy, size=32).shape == (4, 4, 4)


def test_a_rectangular_stable_diffusion_xl_is_the_pipeline():
    """The network is told height and width, in this order."""
    pipe = tiny_xl.pipeline()
    pipe.unet.register_to_config(sample_size=[6, 4])
    pipe.scheduler = diffusers.DDIMScheduler(clip_sample=False)
    found = built(pipe)
    ask = {"num_inference_steps": 4, "guidance_scale": 3.0, "height": 48, "width": 32}
    theirs = pipe(PROMPTS, latents=noise(found), output_type="latent", **ask).images
    torch.testing.assert_close(drawn(found, guidance=3.0), theirs, rtol=0, atol=1e-4)


# ------------------------------------------------------------------------------------- masks


def inpainting(folder: Path) -> None:
    network = diffusers.UNet2DConditionModel.from_config(
        {**json.loads((folder / "unet" / "config.json").read_text()), "in_channels": 9}
    )
    replace(folder, "unet", network)


def test_an_inpainting_network_is_refused(copy, tmp_path):
    inpainting(copy)
    said = refusal(copy)
    assert "takes 9 channels where its autoencoder has 4, as for inpainting" in said
    fill = flux.build(tmp_path / "fill")
    rewrite(fill / "transformer" / "config.json", in_channels=24, out_channels=16)
    path = fill / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["x_embedder.weight"] = torch.zeros(len(weights["x_embedder.weight"]), 24)
    save_file(weights, path)
    assert "takes 6 channels where its autoencoder has 4" in refusal(fill)


# ------------------------------------------------------------------------- indices and files


INDICES: dict[str, tuple[Any, str]] = {
    "a list": ([["StableDiffusionPipeline"]], "holds a list, no parts by their names"),
    "a number": (17, "holds a int, no parts by their names"),
    "class as a list": (
        {"_class_name": ["pipeline", "Mine"]},
        'gives _class_name as ["pipeline", "Mine"], which is no name',
    ),
    "no class": ({"unet": ["diffusers", "UNet2DConditionModel"]}, "gives _class_name as null"),
    "part as a list": (
        {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", ["UNet2D"]]},
        'gives unet as ["diffusers", ["UNet2D"]]: write a library and a class',
    ),
}


@pytest.mark.parametrize("name", INDICES)
def test_an_index_that_is_none(tmp_path, name):
    index, said = INDICES[name]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert said in refusal(tmp_path)


def test_an_index_that_is_nested_beyond_reason(tmp_path):
    (tmp_path / "model_index.json").write_text("[" * 10**5)
    assert "is no diffusers pipeline (no readable model_index.json)" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model.diffusion_model.out.2.weight", "is a model in a single file, and model.source"),
        ("unet.down.0.to_q.lora_A.weight", "is a LoRA, no model: set model.source to the model"),
    ],
)
def test_a_single_file_is_told_what_it_is(tmp_path, name, said):
    path = tmp_path / "x.safetensors"
    save_file({name: torch.zeros(2, 2)}, path)
    assert said in refusal(path)
    path.write_text("no weights")
    assert "is a file, and no safetensors" in refusal(path)


def test_what_is_not_loaded_is_not_refused(copy):
    """Pickles beside sound weights; the safety checker is left out, which is said."""
    checker = copy / "safety_checker"
    checker.mkdir()
    (checker / "pytorch_model.bin").write_bytes(b"a pickle")
    (copy / "checkpoint-500").mkdir()
    (copy / "checkpoint-500" / "optimizer.bin").write_bytes(b"a pickle")
    (copy / "v1-5.ckpt").write_bytes(b"a pickle")
    place = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    rewrite(copy / "model_index.json", safety_checker=place, requires_safety_checker=True)
    found = loaded(copy)
    assert found.notes == ("the safety checker of the pipeline is left out",)
    assert found.pipeline.safety_checker is None


def test_a_variant_is_found(copy, folder):
    for path in copy.glob("*/*.safetensors"):
        path.rename(path.with_suffix(".fp16.safetensors"))
    with torch.no_grad():
        torch.testing.assert_close(drawn(loaded(copy)), drawn(loaded(folder)), rtol=0, atol=0)
    unet = copy / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    shutil.copy(unet, unet.with_name("diffusion_pytorch_model.bf16.safetensors"))
    assert "weights in several variants (bf16, fp16) and none that is plain" in refusal(copy)


def test_a_variant_of_the_hub_is_found(folder, tmp_path, monkeypatch):
    home, commit = tmp_path / "models--org--model", "0" * 40
    copy = Path(shutil.copytree(folder, home / "snapshots" / commit))
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    whole = load_backbone(Model(source="org/model"))
    for path in copy.glob("*/*.safetensors"):
        path.rename(path.with_suffix(".fp16.safetensors"))
    found = load_backbone(Model(source="org/model"))
    with torch.no_grad():
        torch.testing.assert_close(drawn(found), drawn(whole), rtol=0, atol=0)


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
def test_a_part_that_lacks_a_weight_is_refused_by_its_name(copy, part):
    (path,) = (copy / part).glob("*.safetensors")
    weights = load_file(path)
    name = sorted(weights)[len(weights) // 2]
    del weights[name]
    save_file(weights, path, metadata={"format": "pt"})
    said = refusal(copy)
    assert part in said and name.rpartition("layers.")[2] in said and "lack" in said


# --------------------------------------------------------------------------------- tokenizers


def test_a_tokenizer_without_length_and_padding(copy):
    path = copy / "tokenizer" / "tokenizer_config.json"
    drop(path, "model_max_length", "pad_token")
    found = loaded(copy)
    assert found.notes == (
        "the tokenizer does not say how long a prompt may be: 10 tokens",
        "the tokenizer has no padding: <end> takes its place",
    )
    assert found.encode(PROMPTS).summary.shape[1] == 10


def test_a_tokenizer_may_go_on_to_77():
    endless = words.tokenizer(10**30)
    pipe = SimpleNamespace(components={"tokenizer": endless, "text_encoder": None})
    (line,) = folders.mend_tokenizers("model", pipe)
    assert line.endswith("77 tokens") and endless.model_max_length == 77


@pytest.mark.parametrize("build", [tiny_3.build, flux.build])
def test_the_others_tokenizers_too(tmp_path, build):
    folder = build(tmp_path)
    for name in ("tokenizer", "tokenizer_2"):
        drop(folder / name / "tokenizer_config.json", "model_max_length", "pad_token")
    found = loaded(folder)
    assert sum("tokens" in note for note in found.notes) == 2
    assert torch.isfinite(found.encode(PROMPTS).summary).all()
