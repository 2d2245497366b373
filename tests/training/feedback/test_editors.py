"""Editors of diffusers on tiny pipelines of random weights, saved as the real ones are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from scoretune.core.config import Model
from scoretune.core.errors import UserError
from scoretune.models import catalog
from scoretune.models import folders as folders_of_models
from scoretune.models.tiny import flux, stable_diffusion, transformers
from scoretune.training.feedback import roles
from scoretune.training.feedback.editors import _checked, _fitted
from scoretune.training.feedback.records import Shown

PICTURES = [
    Shown("a red circle", image)
    for image in torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
]
PLANS = [["a blue square", "a dark sky"], ["a bright red sea"]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A folder of each kind."""
    import diffusers

    home = tmp_path_factory.mktemp("editors")
    plain = stable_diffusion.pipeline(diffusers.DDIMScheduler(clip_sample=False))
    plain.save_pretrained(home / "plain")
    torch.manual_seed(1)
    diffusers.ControlNetModel.from_unet(plain.unet).save_pretrained(home / "control")
    wide = diffusers.UNet2DConditionModel.from_config({**plain.unet.config, "in_channels": 8})
    parts = {name: part for name, part in plain.components.items() if name != "image_encoder"}
    diffusers.StableDiffusionInstructPix2PixPipeline(
        **parts | {"unet": wide}, requires_safety_checker=False
    ).save_pretrained(home / "pix2pix")
    parts = flux.pipeline().components
    diffusers.FluxKontextPipeline(**parts).save_pretrained(home / "kontext")
    transformers.build("qwen-image-edit", home / "qwen")
    return {path.name: path for path in home.iterdir()}


@pytest.fixture(autouse=True)
def small():
    """Pictures are read at 32 pixels, not at a megapixel."""
    with transformers.small_sources():
        yield


def editor(text: str, folders: dict[str, Path]):
    return roles.named("editor", text.format(**folders), roles.EDITORS)


EDITORS = [
    "instruct_pix2pix(model={pix2pix}, steps=2, batch=2)",
    "controlnet(model={plain}, control={control}, steps=2, scale=0.5)",
    "kontext(model={kontext}, steps=2)",
    "qwen_image_edit(model={qwen}, steps=2)",
]


@pytest.mark.parametrize("text", EDITORS)
def test_an_edit_is_as_large_as_the_picture_and_follows_from_its_seed(text, folders):
    edit = editor(text, folders)
    first, again, other = (edit(PICTURES, PLANS, [seed, 9]) for seed in (1, 1, 2))
    for shown, edited in zip(PICTURES, first, strict=True):
        assert edited.pixels.shape == shown.pixels.shape
        assert 0 <= float(edited.pixels.min()) <= float(edited.pixels.max()) <= 1
        assert not torch.equal(edited.pixels, shown.pixels)
    for one, two in zip(first, again, strict=True):
        assert torch.equal(one.pixels, two.pixels)
    assert not torch.equal(first[0].pixels, other[0].pixels)
    assert torch.allclose(first[1].pixels, other[1].pixels, atol=1e-5)  # its seed is its own


def test_a_picture_without_a_plan_stays(folders):
    (edited,) = editor(EDITORS[0], folders)(PICTURES[:1], [[]], [0])
    assert torch.equal(edited.pixels, PICTURES[0].pixels)


def test_a_folder_that_is_no_editor():
    with pytest.raises(UserError, match="cannot load the model"):
        editor("instruct_pix2pix(model=./nowhere)", {})(PICTURES, PLANS, [0, 1])


def test_what_is_of_no_use_is_said():
    assert _checked(torch.zeros(3, 8, 8)).problem == "the editor gave a black picture"
    spoilt = torch.full((3, 8, 8), torch.nan)
    assert _checked(spoilt).problem == "the editor gave NaN or infinity"
    assert _checked(spoilt).pixels.isfinite().all()
    assert _checked(torch.full((3, 8, 8), 0.5)).problem == ""


def test_an_edit_of_another_size_is_scaled():
    assert _fitted(torch.rand(1, 3, 64, 48), torch.Size((32, 24))).shape == (1, 3, 32, 24)


def test_a_processor_that_cannot_be_made_here_says_what_is_missing(tmp_path, monkeypatch):
    index = {"_class_name": "QwenImageEditPipeline", "_diffusers_version": "0.42.1"}
    index |= {"processor": ["transformers", "Qwen2VLProcessor"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    monkeypatch.setattr(folders_of_models, "find_spec", lambda name: None)
    said = "needs torchvision: pip install torchvision"
    with pytest.raises(UserError, match=said):
        _ = roles.named("editor", f"qwen_image_edit(model={tmp_path})", roles.EDITORS).pipeline
    with pytest.raises(UserError, match=said):
        catalog.load_backbone(Model(source=str(tmp_path)))
