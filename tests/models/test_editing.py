"""Models that edit pictures: what is refused, what becomes of the pictures, what is shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from scoretune import recipes
from scoretune.commands.families import families, parity
from scoretune.commands.sample import draw
from scoretune.core.config import Model
from scoretune.core.errors import UserError
from scoretune.data.prompts import Prompt, Prompts, read_prompts
from scoretune.diffusion.kernels import GDDIM
from scoretune.evaluate.samples import save_preview
from scoretune.models import catalog
from scoretune.models.editing import check_pictures, shown
from scoretune.models.observed import PICTURE
from scoretune.models.tiny import flux, stable_diffusion
from scoretune.policy import Policy
from scoretune.training.build import build_policy
from scoretune.training.overrides import changed

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def editor(tmp_path_factory) -> Path:
    return stable_diffusion.build_editor(tmp_path_factory.mktemp("editor"))


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> tuple[Prompt, ...]:
    family = next(each for each in parity.FAMILIES if each.name == "instruct-pix2pix")
    return read_prompts(str(families.written(family, tmp_path_factory.mktemp("edits")))).texts


def edits(folder: Path, size: tuple[int, int] = (32, 32), text: str = "a red circle") -> str:
    """A file of one prompt with a grey picture of that width and height."""
    Image.new("RGB", size, (90, 120, 150)).save(folder / "grey.png")
    (folder / "edits.jsonl").write_text(json.dumps({"prompt": text, "image": "grey.png"}))
    return str(folder / "edits.jsonl")


def test_one_text_with_two_pictures_is_encoded_twice_and_with_one_once(editor, prompts):
    backbone = catalog.load_backbone(Model(source=str(editor)))
    one, other = (Prompt("a dark sky", picture=prompts[i].picture) for i in range(2))
    seen: list[int] = []
    hook = backbone.pipeline.text_encoder.register_forward_hook(
        lambda module, args, output: seen.append(len(args[0]))
    )
    condition = Policy(backbone, GDDIM(1.0)).encode([one, other, one, one])
    hook.remove()
    assert 2 in seen and max(seen) <= 2
    pictures = condition.tokens.rows[PICTURE]
    assert torch.equal(pictures[0], pictures[2]) and not torch.equal(pictures[0], pictures[1])
    latents = backbone.pipeline.vae.encode(one.image[None] * 2 - 1).latent_dist.mode()
    torch.testing.assert_close(pictures[:1], latents, rtol=0, atol=1e-5)
    blind, alone = condition.twins  # neither, and the picture without its text
    assert not blind.rows[PICTURE].any() and torch.equal(alone.rows[PICTURE], pictures)


def test_guidance_by_the_picture_is_one_more_call_and_can_be_left_out(editor, prompts):
    source = f"model.source={editor}"
    run = changed(recipes.named("ddpo"), [source, "model.guidance=3", "reward=brightness"])
    calls = {}
    for scale in ("1", "1.5"):
        policy = build_policy(changed(run, [f"model.image_guidance={scale}"]), CPU)
        x, t = torch.randn(2, *policy.backbone.shape), torch.full((2,), 0.5)
        with torch.no_grad():
            policy.estimate(x, t, policy.encode(prompts[:2]))
        calls[scale] = policy.calls
    assert calls == {"1": 4, "1.5": 6}
    with pytest.raises(UserError, match=r"model\.image_guidance is for InstructPix2Pix, and"):
        build_policy(changed(run, ["model.source=scenes", "model.image_guidance=2"]), CPU)


def test_a_kontext_draws_what_its_pipeline_draws(tmp_path):
    family = next(each for each in parity.FAMILIES if each.name == "flux-kontext")
    folder, file = flux.build_editor(tmp_path / "model"), families.written(family, tmp_path)
    texts = read_prompts(str(file)).texts
    policy = Policy(catalog.load_backbone(Model(source=str(folder), rank=0)), GDDIM(1.0))
    assert family.parity(parity.Request(policy, folder, texts)) < 1e-4


def test_what_is_refused(editor, tmp_path):
    editing = catalog.load_backbone(Model(source=str(editor)))
    drawing = catalog.load_backbone(Model(source="scenes"))
    pictured = read_prompts(edits(tmp_path)).texts
    check_pictures(editing, pictured)
    for model, texts, said in (
        (editing, ("a red circle",), "the prompt 'a red circle' has no picture, and this model ed"),
        (drawing, pictured, r"line 1: there is a picture to edit, and this model draws from texts"),
        (
            editing,
            read_prompts(edits(tmp_path, (64, 32))).texts,
            r"line 1: the picture is 64x32, and the model edits 32x32: .* model\.size=64x32",
        ),
    ):
        with pytest.raises(UserError, match=said) as caught:
            check_pictures(model, texts)
        assert len(str(caught.value)) <= 300 and "\n" not in str(caught.value)
    with pytest.raises(UserError, match="has no picture, and this model edits"):
        editing.encode(["a red circle"])
    black = shown(" ", editing.sides)  # a negative prompt's
    assert black.size == (32, 32) and black.getbbox() is None
    larger = read_prompts(edits(tmp_path, (96, 96))).texts
    check_pictures(editing, larger)  # in proportion: scaled
    assert editing.encode(larger).tokens.rows[PICTURE].shape == (1, 4, 4, 4)


def test_a_run_of_an_editor_is_measured_shown_and_sampled(editor, tmp_path):
    from scoretune.commands.evaluate import measure_run
    from scoretune.training.run_folder import recorded

    family = next(each for each in parity.FAMILIES if each.name == "instruct-pix2pix")
    file = families.written(family, tmp_path)
    settings = [*families.TINY, f"model.source={editor}", f"prompts={file}", "updates=1"]
    settings += ["reward=source_closeness", "hardware.cache_prompts=true"]
    families._train(changed(recipes.named("ddpo"), settings), tmp_path / "run")
    record = recorded(tmp_path / "run")
    (tmp_path / "grey").mkdir()
    line = measure_run(record, tmp_path / "run", prompts=edits(tmp_path / "grey"))
    assert 0 < line["reward"]["deterministic"] < 1
    said = draw(tmp_path / "run", read_prompts(str(file)).texts, tmp_path / "out.png", steps=2)
    assert "a dark sky" in said
    with Image.open(tmp_path / "out.png") as strip:  # those to be edited above
        assert strip.size == (4 * 128, 2 * 128)
    assert (tmp_path / "run" / "previews" / "source.png").exists()
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count('alt="picture to edit"') == 4
    with pytest.raises(UserError, match="has no picture"):
        draw(tmp_path / "run", ["a red circle"], tmp_path / "out.png", steps=2)


def test_previews_show_the_pictures_that_are_edited(prompts, tmp_path):
    shown = Prompts(prompts, ("all",) * len(prompts))
    save_preview(torch.zeros(4, 3, 32, 32), shown, accepted=None, folder=tmp_path, name="before")
    with Image.open(tmp_path / "source.png") as sheet:
        assert sheet.size == (6 * 32, 32)
        assert sheet.getpixel((3, 5)) == tuple(
            (prompts[0].image[:, 5, 3] * 255).round().int().tolist()
        )
