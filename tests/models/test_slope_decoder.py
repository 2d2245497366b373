"""A small decoder that gradients of rewards go through: pictures stay exact, slopes are its own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import tiny_autoencoder
from scoretune import recipes
from scoretune.commands.plan import plan as planning
from scoretune.commands.plan import verb
from scoretune.commands.plan.model import model_of
from scoretune.core.config import Run
from scoretune.core.errors import UserError
from scoretune.data.scenes.world import shipped
from scoretune.models import slope_decoder
from scoretune.models.autoencoder import decoded
from scoretune.models.base import Pipelined
from scoretune.training import build, overrides, run_folder
from scoretune.training.hooks import Silent
from scoretune.training.run import launch

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def little(tmp_path_factory) -> Path:
    """An AutoencoderTiny of random weights, of the shipped model's latents: 4 channels, f = 4."""
    return tiny_autoencoder.build(tmp_path_factory.mktemp("little"), latent_channels=4, blocks=3)


def settings(recipe: str, small: list[str], *changes: str) -> Run:
    return overrides.changed(recipes.named(recipe), [*small, *changes])


def test_a_value_is_kept_bit_for_bit_and_its_gradient_is_the_others():
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    exact, similar = x.sin(), 3 * x**2
    both = slope_decoder.substituted(exact, similar)
    assert torch.equal(both, exact)
    (slope,) = torch.autograd.grad(both.sum(), x)
    torch.testing.assert_close(slope, 6 * x, rtol=1e-14, atol=0)


def test_pictures_are_the_models_own_and_slopes_the_small_decoders(small, little):
    policy = build.build_policy(
        settings("score_as_action", small, f"model.slope_decoder={little}"), CPU
    )
    backbone: Any = policy.backbone
    assert isinstance(backbone, Pipelined)
    x0 = torch.randn(2, *backbone.shape, generator=torch.Generator().manual_seed(0))
    plain = backbone.decode(x0)
    place = x0.clone().requires_grad_()
    pictures = policy.decode(place)
    assert torch.equal(pictures, plain)
    toward = torch.randn_like(pictures)
    (slope,) = torch.autograd.grad((pictures * toward).sum(), place)
    other = x0.clone().requires_grad_()
    little_pictures = decoded(backbone.slope_decoder, other)
    (expected,) = torch.autograd.grad((little_pictures * toward).sum(), other)
    torch.testing.assert_close(slope, expected)
    assert not torch.allclose(little_pictures, plain, atol=0.05)


def test_checkpointing_is_of_the_decoder_that_gradients_go_through(small, little):
    run = settings("score_as_action", small, f"model.slope_decoder={little}")
    slopes = []
    for one in (run, overrides.changed(run, ["hardware.checkpointing=true"])):
        backbone: Any = build.build_policy(one, CPU).backbone
        assert backbone.slope_decoder.is_gradient_checkpointing is one.hardware.checkpointing
        assert not backbone.pipeline.vae.is_gradient_checkpointing
        place = torch.randn(3, *backbone.shape, generator=torch.Generator().manual_seed(0))
        slopes += torch.autograd.grad(backbone.decode(place.requires_grad_()).sum(), place)
    assert torch.equal(*slopes)


@pytest.mark.parametrize(
    "recipe",
    [
        "draft",
        pytest.param("score_as_action", marks=pytest.mark.slow),
        pytest.param("adjoint_matching", marks=pytest.mark.slow),
    ],
)
def test_through_the_models_own_decoder_a_run_learns_as_it_does_without(recipe, small, tmp_path):
    own = Path(next(c for c in small if c.startswith("model.source")).partition("=")[2]) / "vae"
    learned = []
    for name, changes in (("plain", []), ("own", [f"model.slope_decoder={own}"])):
        run = settings(recipe, small, "updates=1", "guard.action=off", *changes)
        run_folder.record(run, tmp_path / name, 1)
        launch(run, tmp_path / name, Silent())
        learned.append(weights(tmp_path / name))
    drawing: Any = run_folder.load(tmp_path / "own").backbone
    assert drawing.slope_decoder is None  # it is of training, and samples do without
    plain, through = learned
    assert plain.keys() == through.keys() and any(bool((w != 0).any()) for w in plain.values())
    for key, weight in plain.items():
        assert torch.equal(through[key], weight), key


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {
        k: w for file in (folder / "lora").glob("*.safetensors") for k, w in load_file(file).items()
    }


def test_it_is_refused_where_no_gradient_of_a_reward_is_followed(small, little):
    through = f"model.slope_decoder={little}"
    refused = [
        settings("ddpo", small, through),
        settings("score_as_action", small, through, "objective.form=ratio"),
        settings("score_as_action", small, through, "objective.critic.skip=none"),
    ]
    for run in refused:
        with pytest.raises(UserError, match=r"model\.slope_decoder is what a reward's gradient"):
            build.check_settings(run, True)
    build.check_settings(settings("score_as_action", small, through), True)


def test_a_decoder_of_other_latents_is_refused(tmp_path, little):
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(shipped() / "vae")
    for latents, blocks, message in ((16, 3, "16 latent channels"), (4, 4, "8 pixels a latent")):
        other = tiny_autoencoder.build(tmp_path / f"{latents}-{blocks}", latents, blocks)
        with pytest.raises(UserError, match=message):
            slope_decoder.load(str(other), vae, torch.float32)
    assert slope_decoder.load(str(little), vae, torch.bfloat16).dtype is torch.bfloat16
    with pytest.raises(UserError, match=r"there is no config\.json"):
        slope_decoder.load(str(tmp_path), vae, torch.float32)
    with pytest.raises(UserError, match="a UNet2DConditionModel, not an autoencoder"):
        slope_decoder.load(str(shipped() / "unet"), vae, torch.float32)


def test_a_decoder_of_pictures_is_refused_for_videos_alone():
    from diffusers import AutoencoderKLQwenImage, AutoencoderKLWan, AutoencoderTiny

    with torch.device("meta"):
        pictures = AutoencoderTiny(latent_channels=16)
        wan, qwen = AutoencoderKLWan(base_dim=8), AutoencoderKLQwenImage(base_dim=8)
    with pytest.raises(UserError, match=r"1 frames a latent, and the model's autoencoder 4"):
        slope_decoder.check("tiny", pictures, wan)
    for small in (pictures, wan):  # a picture is a single frame
        slope_decoder.check("small", small, qwen)
    slope_decoder.check("wan", wan, wan)


def test_a_plan_of_what_is_not_there_says_so(little):
    from diffusers import AutoencoderTiny

    vae: Any = AutoencoderTiny.from_pretrained(little)
    with pytest.raises(UserError, match=r"set model\.slope_decoder=FOLDER of an autoencoder"):
        slope_decoder.without_weights("nobody/nothing", vae, torch.float32)


@pytest.mark.parametrize(
    ("recipe", "changes", "offered"),
    [
        ("draft", [], True),
        ("ddpo", [], False),
        ("score_as_action", [], True),
        ("score_as_action", ["objective.form=ratio"], False),
        ("draft", ["model.slope_decoder=small"], False),
    ],
)
def test_a_plan_offers_it_where_a_gradient_is_followed(recipe, changes, offered, small):
    run, model = settings(recipe, small, *changes), SimpleNamespace(parts={"vae": 1})
    facts: Any = SimpleNamespace(differentiable=True)
    assert planning._takes_slope_decoder(run, model, facts) is offered  # type: ignore[arg-type]


def test_a_plan_says_so_where_the_decoders_graph_takes_most():
    frames, most = {"model": 0, "shorter": 0}, {"peak": 30 * 2**30, "decoder_graph": 24 * 2**30}
    ((_, line),) = verb._decoder(most, frames, True)
    assert line.startswith("24 GiB of it is the autoencoder's, for the reward's gradient: ")
    assert "model.slope_decoder=FOLDER_OR_HUB_ID of a small autoencoder" in line
    assert not verb._decoder(most, frames, False)
    assert not verb._decoder(most | {"peak": 48 * 2**30}, frames, True)
    ((_, line),) = verb._decoder(most, {"model": 9, "shorter": 3}, True)
    assert "through 9 frames: model.frames=3 takes about half, model.slope_decoder=" in line


def test_a_plan_counts_it_and_its_smaller_graph(small, little):
    plain = model_of(settings("score_as_action", small))[1]
    through = model_of(settings("score_as_action", small, f"model.slope_decoder={little}"))[1]
    assert through.parts["slope_decoder"] > 0 and "slope_decoder" not in through.waiting
    assert through.parts["vae"] == plain.parts["vae"]
    assert through.plain.sloping.many.peak < plain.plain.sloping.many.peak
    assert through.plain.sloping.many.flops < plain.plain.sloping.many.flops
