"""Training from nothing: small enough to run here, stopped and resumed bit for bit."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from scoretune.commands.pretrain import editing
from scoretune.commands.pretrain.editing import EditRecipe, pretrain_editor
from scoretune.commands.pretrain.flow import caption_states
from scoretune.commands.pretrain.lessons import Recipe, ramp
from scoretune.commands.pretrain.networks import tokens
from scoretune.commands.pretrain.pretrain import pretrain, pretrain_flow
from scoretune.commands.pretrain.spelling import WordBank, pretrain_words
from scoretune.data.scenes import edits, world
from scoretune.models.families import FAMILIES
from scoretune.rewards import reader
from scoretune.training.feedback import roles
from scoretune.training.feedback.records import Shown

TINY = Recipe(
    batch=4,
    autoencoder_steps=2,
    reading_steps=2,
    grounding_steps=2,
    denoiser_steps=4,
    pictures=256,
    save_every=1,
)


class Stopped(Exception):
    pass


def silent(stage: str, done: int, total: int, numbers: dict[str, float]) -> None:
    pass


def weights(model: Path) -> dict[str, str]:
    files = sorted(model.rglob("*.safetensors"))
    return {str(f.relative_to(model)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


@pytest.mark.slow
def test_a_stopped_pretraining_goes_on_bit_for_bit(tmp_path):
    undisturbed = weights(pretrain(tmp_path / "whole", TINY, silent))

    def stop(stage: str, done: int, total: int, numbers: dict[str, float]) -> None:
        if (stage, done) in stops:
            stops.remove((stage, done))
            raise Stopped

    stops = [("autoencoder", 1), ("judge", 2), ("denoiser", 3)]
    for _ in range(3):
        with pytest.raises(Stopped):
            pretrain(tmp_path / "stopped", TINY, stop)
    assert weights(pretrain(tmp_path / "stopped", TINY, stop)) == undisturbed
    assert len(undisturbed) == 5  # autoencoder, UNet, text encoder, reader, judge


@pytest.fixture(scope="module")
def flow(tmp_path_factory) -> Path:
    """An undisturbed training of the rectified-flow miniature; its model."""
    return pretrain_flow(tmp_path_factory.mktemp("flow"), TINY, silent)


@pytest.mark.slow
def test_a_stopped_flow_goes_on_bit_for_bit(tmp_path, flow):
    def stop(stage: str, done: int, total: int, numbers: dict[str, float]) -> None:
        if (stage, done) in stops:
            stops.remove((stage, done))
            raise Stopped

    stops = [("reader", 1), ("flow", 3)]
    for _ in range(2):
        with pytest.raises(Stopped):
            pretrain_flow(tmp_path, TINY, stop)
    assert weights(pretrain_flow(tmp_path, TINY, stop)) == weights(flow)
    assert len(weights(flow)) == 6  # autoencoder, transformer, one encoder twice, reader, judge


@pytest.mark.slow
def test_a_flow_in_the_other_ones_folder_has_only_its_own_stage_to_train(tmp_path):
    noise = pretrain(tmp_path, TINY, silent)
    before, trained = weights(noise), []
    second = pretrain_flow(tmp_path, TINY, lambda stage, *rest: trained.append(stage))
    assert set(trained) == {"pictures", "flow"}
    assert weights(noise) == before
    for name in ("judge", "reader", "vae/diffusion_pytorch_model"):
        assert weights(second)[f"{name}.safetensors"] == before[f"{name}.safetensors"]


def test_a_trained_flow_is_a_backbone(flow):
    found = FAMILIES["StableDiffusion3Pipeline"].load(str(flow))
    assert found.shape == (4, 8, 8)
    told = found.encode([*world.asks_by_text()][:3])
    assert told.summary.shape == (3, 10, 128)  # nothing stands in T5's place
    one, other = found.pipeline.text_encoder, found.pipeline.text_encoder_2
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_what_the_flow_learned_from_is_what_the_pipeline_says(flow):
    found = FAMILIES["StableDiffusion3Pipeline"].load(str(flow))
    texts = ["a red seven", ""]
    encoder = found.pipeline.text_encoder
    with torch.no_grad():
        states, pooled = caption_states(encoder, tokens(found.pipeline.tokenizer, texts))
        told = found.encode(texts).tokens.rows
    torch.testing.assert_close(told["encoder_hidden_states"], states)
    torch.testing.assert_close(told["pooled_projections"], pooled)


def test_captions_are_clean_first_and_noisy_at_the_end():
    assert [ramp(done, 0.5) for done in (0.0, 0.5)] == [0.0, 0.0]
    assert ramp(0.55, 0.5) == pytest.approx(0.5)
    assert [ramp(done, 0.5) for done in (0.65, 1.0)] == [1.0, 1.0]


# ------------------------------------------------------------------------------- the editor


def test_a_stopped_editor_goes_on_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(editing, "STEPS", 2)
    tiny = EditRecipe(batch=2, steps=2, pairs=5, save_every=1)
    model = pretrain_editor(tmp_path / "whole", tiny, silent, trials=1)

    def stop(stage: str, done: int, total: int, numbers: dict[str, float]) -> None:
        if (stage, done) == ("editor", 2):
            raise Stopped

    with pytest.raises(Stopped):
        pretrain_editor(tmp_path / "stopped", tiny, stop, trials=1)
    again = pretrain_editor(tmp_path / "stopped", tiny, silent, trials=1)
    assert weights(again) == weights(model)
    assert len(weights(model)) == 3  # autoencoder, UNet, text encoder
    card = (model / "README.md").read_text(encoding="utf-8")
    assert all(f"| {kind} |" in card for kind in edits.KINDS)
    described = [file.read_text(encoding="utf-8") for file in model.rglob("config.json")]
    assert not any(str(world.shipped()) in text for text in described)  # no place of this machine


@pytest.mark.parametrize("kind", edits.KINDS)
def test_a_lesson_is_one_edit_and_leaves_the_rest_in_its_hand(kind):
    rng = np.random.default_rng(3)
    for _ in range(20):
        one = editing.lesson(kind, rng)
        assert one.after in one.edit.outcomes(one.before)
        assert not world.is_held_out_layout(one.before) | world.is_held_out_layout(one.after)
        before, after = (tensor[0] for tensor in editing.drawn([one], "pictures"))
        for cell, (row, column) in enumerate([(0, 0), (0, 16), (16, 0), (16, 16)]):
            same = (one.before.digits[cell], one.before.colours[cell]) == (
                one.after.digits[cell],
                one.after.colours[cell],
            )
            part = (..., slice(row, row + 16), slice(column, column + 16))
            if same:
                assert torch.equal(before[part], after[part])
            elif kind != "recolour":
                assert not torch.equal(before[part], after[part])


def test_the_shipped_editor_does_what_it_is_told():
    rng = np.random.default_rng(5)
    lessons = [editing.lesson("add", rng) for _ in range(8)]
    pictures, _ = editing.drawn(lessons, "reader")
    edit = roles.named("editor", "scenes-edit", roles.EDITORS)
    shown = [Shown("", picture) for picture in pictures]
    edited = edit(shown, [[one.edit.instruction] for one in lessons], range(8))
    judge = reader.load(world.shipped(), "judge")
    seen = reader.layouts(judge(torch.stack([each.pixels for each in edited])))
    more = [
        after.digits.count(digit) == one.before.digits.count(digit) + 1
        for after, one in zip(seen, lessons, strict=True)
        for digit in [one.edit.item.digit]
    ]
    assert sum(more) >= 4  # about three of four are carried out, as the card says
    files = world.shipped_editor().rglob("*.safetensors")
    assert sum(file.stat().st_size for file in files) < 8e6


def test_a_widened_network_begins_as_it_was():
    from diffusers import UNet2DConditionModel

    old = UNet2DConditionModel.from_pretrained(world.shipped() / "unet", torch_dtype=torch.float32)
    x, label, states = torch.randn(2, 4, 8, 8), torch.tensor([5, 900]), torch.randn(2, 10, 64)
    with torch.no_grad():
        before = old(x, label, states).sample
        wide = editing.widened(old)
        after = wide(torch.cat([x, torch.randn_like(x)], 1), label, states).sample
    torch.testing.assert_close(after, before)
    assert wide.config.in_channels == 8


# ------------------------------------------------------------------------ what writes words

SHORT = replace(TINY, batch=2, reading_steps=0, grounding_steps=0, denoiser_steps=3, pictures=4)


@pytest.fixture(scope="module")
def writer(tmp_path_factory) -> Path:
    """An undisturbed training of the miniature that writes words; its model."""
    seldom = replace(SHORT, save_every=10)
    return pretrain_words(tmp_path_factory.mktemp("words"), seldom, silent)


def test_what_writes_words_is_a_pipeline_with_prompts_beside_it(writer):
    found = FAMILIES["StableDiffusionPipeline"].load(str(writer))
    assert found.shape == (4, 6, 12)
    assert (writer.parent / "heldout.txt").read_text().splitlines()[0] == '"add"'
    spelt = found.pipeline.tokenizer('"cab"').input_ids
    assert found.pipeline.tokenizer.convert_ids_to_tokens(spelt)[1:-1] == ['"', *"cab", '"']
    described = [file.read_text(encoding="utf-8") for file in writer.rglob("*.json")]
    assert not any(str(world.shipped()) in text for text in described)  # no place of this machine


@pytest.mark.slow
def test_a_stopped_training_of_words_goes_on_bit_for_bit(tmp_path, writer):
    def stop(stage: str, done: int, total: int, numbers: dict[str, float]) -> None:
        if (stage, done) in stops:
            stops.remove((stage, done))
            raise Stopped

    stops = [("autoencoder", 1), ("denoiser", 2)]
    for _ in range(2):
        with pytest.raises(Stopped):
            pretrain_words(tmp_path, SHORT, stop)
    assert weights(pretrain_words(tmp_path, SHORT, stop)) == weights(writer)
    assert len(weights(writer)) == 3  # autoencoder, UNet, text encoder


def test_a_share_of_the_captions_of_words_is_wrong():
    bank = WordBank(torch.zeros(1, 4, 6, 12), ["cab"])
    rng = np.random.default_rng(0)
    captions = [bank.batch(64, 0.4, 0.1, rng)[1] for _ in range(20)]
    told = [caption for some in captions for caption in some]
    assert told.count("") / len(told) == pytest.approx(0.1, abs=0.03)
    assert told.count('"cab"') / len(told) == pytest.approx(0.6 * 0.9, abs=0.05)
