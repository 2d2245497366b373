"""A small decoder that gradients of rewards go through: pictures stay exact, slopes are its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_autoencoder
from scoretune import recipes
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


def test_a_plan_counts_it_and_its_smaller_graph(small, little):
    plain = model_of(settings("score_as_action", small))[1]
    through = model_of(settings("score_as_action", small, f"model.slope_decoder={little}"))[1]
    assert through.parts["slope_decoder"] > 0 and "slope_decoder" not in through.waiting
    assert through.parts["vae"] == plain.parts["vae"]
    assert through.plain.sloping.many.peak < plain.plain.sloping.many.peak
    assert through.plain.sloping.many.flops < plain.plain.sloping.many.flops
