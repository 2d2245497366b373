"""Rewards that read: text in a picture, and what a vision-language model answers about it."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import load_file, save_file

import tiny_readers
from scoretune.core.errors import UserError
from scoretune.data.prompts import Prompt
from scoretune.rewards.base import checked
from scoretune.rewards.cache import eight_bit
from scoretune.rewards.catalog import named_reward
from scoretune.rewards.networks import rapid_ocr
from scoretune.rewards.ocr import QUESTION, Ocr, agreement, distance, wanted_text
from scoretune.rewards.vlm import Vlm
from scoretune.training.feedback import roles
from scoretune.training.feedback.records import Critique, Shown
from tiny_readers import CHAT, SPECIAL, WORDS, jittered, tokenizer

FONTS = Path(matplotlib.get_data_path()) / "fonts/ttf"
IMAGES = torch.rand(3, 3, 20, 24, generator=torch.Generator().manual_seed(0))
PICTURES = [Image.fromarray(picture) for picture in eight_bit(IMAGES)]
PROMPTS = ["a cat", "a dog and a cat and a dog", "dog"]
QUESTIONS = [f"user : <image> is this {prompt} ? assistant :" for prompt in PROMPTS]


@pytest.fixture(scope="module")
def llava(tmp_path_factory) -> Path:
    return tiny_readers.llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory) -> Path:
    return tiny_readers.qwen(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def trocr(tmp_path_factory) -> Path:
    """A TrOCR of random weights that spells in letters; its file lacks the unused pooler."""
    from transformers import (
        TrOCRConfig,
        TrOCRProcessor,
        VisionEncoderDecoderConfig,
        VisionEncoderDecoderModel,
        ViTConfig,
        ViTImageProcessorPil,
    )

    torch.manual_seed(1)
    letters = tuple("abcdefghijklmnopqrstuvwxyz 0123456789")
    encoder = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=16,
        patch_size=8,
    )
    decoder = TrOCRConfig(
        vocab_size=len(SPECIAL) + len(letters),
        d_model=16,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=16,
        max_position_embeddings=64,
        is_decoder=True,
        add_cross_attention=True,
        cross_attention_hidden_size=16,
    )
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    network = jittered(VisionEncoderDecoderModel(config))
    network.generation_config.update(decoder_start_token_id=1, pad_token_id=0, eos_token_id=2)
    folder = tmp_path_factory.mktemp("trocr")
    network.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    assert [weights.pop(key) for key in list(weights) if "pooler" in key]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    size = {"height": 16, "width": 16}
    processor = TrOCRProcessor(ViTImageProcessorPil(size=size), tokenizer(letters, letters=True))
    processor.save_pretrained(folder)
    return folder


# ---------------------------------------------------------------------------- spelling

TEXTS = st.text("abc ", max_size=7)


@pytest.mark.parametrize(
    ("one", "other", "steps"),
    [
        ("kitten", "sitting", 3),
        ("saturday", "sunday", 3),
        ("intention", "execution", 5),
        ("", "abc", 3),
        ("flaw", "lawn", 2),
        ("grüße", "grusse", 3),
        ("same", "same", 0),
    ],
)
def test_golden_distances(one, other, steps):
    assert distance(one, other) == distance(other, one) == steps


@given(TEXTS, TEXTS, TEXTS)
def test_the_distance_is_a_metric(one, other, third):
    between = distance(one, other)
    assert between == distance(other, one)
    assert (between == 0) == (one == other)
    assert between <= distance(one, third) + distance(third, other)
    assert abs(len(one) - len(other)) <= between <= max(len(one), len(other))


@given(TEXTS, TEXTS)
def test_the_distance_follows_its_definition(one, other):
    def slow(a: str, b: str) -> int:
        if not a or not b:
            return len(a) + len(b)
        replaced = slow(a[1:], b[1:]) + (a[0] != b[0])
        return min(replaced, slow(a[1:], b) + 1, slow(a, b[1:]) + 1)

    one, other = one[:4], other[:4]
    assert distance(one, other) == slow(one, other)


@pytest.mark.parametrize(
    ("found", "wanted", "score"),
    [
        ("HELLO world", "Hello World", 1.0),
        ("he llo", "hello", 1.0),
        ("", "hello", 0.0),
        ("hallo", "hello", 0.8),
        ("hello hello", "hello", 0.0),
        ("hello!", "hello", 0.8),
        ("completely different", "hi", 0.0),
    ],
)
def test_agreement(found, wanted, score):
    assert agreement(found, wanted) == pytest.approx(score)


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ('a sign that says "Open Late"', "Open Late"),
        ("a sign that says 'Open'", "Open"),
        ("a sign that says “Open”", "Open"),
        ("a sign that says ‘Open’", "Open"),
        ("a dog's bowl with 'Don't touch' on it", "Don't touch"),
        ("the dogs' sign \"it's mine\"", "it's mine"),
        ('"New" and “York”', "New York"),
        (Prompt('a sign that says "Open"', {"text": "Closed"}), "Closed"),
        (Prompt('a sign that says "Open"', {"text": " "}), "Open"),
        (Prompt("a sign", {"text": "Closed"}), "Closed"),
    ],
)
def test_what_a_prompt_wants_to_be_read(prompt, text):
    assert wanted_text(prompt) == text


@pytest.mark.parametrize("prompt", ["a sign", "a dog's bowl, it's full", '"', '" "', "'tis", ""])
def test_a_prompt_without_quotes_is_one_line(prompt):
    with pytest.raises(UserError) as caught:
        wanted_text(prompt)
    assert f"the prompt {prompt!r} asks for no text: put what is to be read between quotes" in str(
        caught.value
    )


# ---------------------------------------------------------------------------- recognising


def test_the_reward_is_the_score_of_what_the_model_itself_reads(trocr):
    from transformers import TrOCRProcessor, VisionEncoderDecoderModel

    network = VisionEncoderDecoderModel.from_pretrained(trocr).eval()
    processor = TrOCRProcessor.from_pretrained(trocr)
    pixels = processor(images=PICTURES, return_tensors="pt").pixel_values
    tokens = network.generate(pixels, max_new_tokens=12, do_sample=False)
    texts = processor.batch_decode(tokens, skip_special_tokens=True)
    assert len(set(texts)) > 1 and all(texts)

    reward = named_reward(f"ocr(model={trocr}, tokens=12, batch=2)")
    assert reward.read(eight_bit(IMAGES)) == texts
    wanted = [texts[0].upper(), "zzzz" + texts[1], texts[0][:5]]
    found = checked(reward, "ocr", IMAGES, [f'a sign "{text}"' for text in wanted])
    expected = [agreement(text, ask) for text, ask in zip(texts, wanted, strict=True)]
    assert found.tolist() == pytest.approx(expected)
    assert found[0] == 1.0 and len(set(found.tolist())) > 1
    assert reward.score_cache.misses == 3


def test_a_model_that_chats_is_asked_to_read(llava):
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    network = LlavaForConditionalGeneration.from_pretrained(llava).eval()
    processor = AutoProcessor.from_pretrained(llava)
    texts = []
    for picture in PICTURES:
        text = f"user : <image> {QUESTION} assistant :"
        inputs = processor(images=[picture], text=[text], return_tensors="pt")
        tokens = network.generate(**inputs, max_new_tokens=5, do_sample=False)
        new = tokens[:, inputs["input_ids"].shape[1] :]
        texts += processor.batch_decode(new, skip_special_tokens=True)
    assert all(texts)
    reward = Ocr(str(llava), tokens=5)
    assert reward.read(eight_bit(IMAGES)) == texts
    assert reward(IMAGES, [f"'{text}'" for text in texts]).tolist() == [1.0] * 3


def test_nothing_is_read_for_a_prompt_that_wants_nothing():
    with pytest.raises(UserError, match="asks for no text"):
        Ocr("/no/such/model")(IMAGES, ['"a"', "b", '"c"'])


def test_the_fingerprint_of_a_reader(trocr):
    told = Ocr(str(trocr)).fingerprint()
    assert len(told["sha256 model.safetensors"]) == 64
    assert told["question"] == ""
    json.dumps(dict(told))


def written(word: str, font: str, height: int, size: tuple[int, int]) -> torch.Tensor:
    """A picture [3, H, W] of a word, dark on light, in a font that matplotlib carries."""
    picture = Image.new("RGB", size, (244, 240, 230))
    letters = ImageFont.truetype(str(FONTS / f"{font}.ttf"), height)
    ImageDraw.Draw(picture).text((size[0] // 12, size[1] // 3), word, (20, 30, 90), letters)
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1) / 255


def test_rapidocr_reads_several_fonts_and_sizes():
    reward = named_reward("ocr(engine=rapidocr, detect=false)")
    fonts = ("DejaVuSans", "DejaVuSerif-Bold", "DejaVuSansMono", "STIXGeneral", "cmss10")
    for height, size in ((12, (72, 32)), (40, (256, 96))):
        pictures = torch.stack([written("Bakery", font, height, size) for font in fonts])
        assert reward.read(eight_bit(pictures)) == ["Bakery"] * len(fonts)
        right = reward(pictures, ['a sign "BAKERY"'] * len(fonts))
        wrong = reward(pictures, ['a sign "mill"'] * len(fonts))
        assert right.tolist() == [1.0] * len(fonts) and float(wrong.max()) <= 0.5


def test_rapidocr_finds_lines_in_a_picture():
    picture = written("fresh\n\nbread", "DejaVuSans", 24, (160, 160))
    reward = named_reward("ocr(engine=rapidocr)")
    assert reward.read(eight_bit(picture[None])) == ["fresh bread"]
    assert reward(torch.rand(1, 3, 64, 64), ['"bread"']).tolist() == [0.0]


def test_the_fingerprint_of_rapidocr_has_its_networks():
    fingerprint = Ocr(engine="rapidocr").fingerprint()
    hashes = [len(value) for name, value in fingerprint.items() if name.endswith(".onnx")]
    assert len(hashes) >= 2 and set(hashes) == {64} and fingerprint["detect"] == "True"


def test_rapidocr_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(rapid_ocr, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'needs the package rapidocr: pip install "scoretune\[ocr'):
        named_reward("ocr(engine=rapidocr)")(IMAGES, ['"a"'] * 3)


@pytest.mark.parametrize(
    ("call", "line"),
    [
        ("ocr()", r"needs engine=rapidocr, or model="),
        ("ocr(engine=rapidocr, model=a)", r"engine=rapidocr\) does not read model"),
        ("ocr(engine=rapidocr, tokens=3)", r"engine=rapidocr\) does not read tokens"),
        ("ocr(model=a, detect=false)", r"engine=transformers\) does not read detect"),
    ],
)
def test_settings_that_an_engine_does_not_read(call, line):
    with pytest.raises(UserError, match=line):
        named_reward(call)


# ---------------------------------------------------------------------------- judging


def odds(folder: Path, words: list[list[str]]) -> torch.Tensor:
    """p(word) of the next token, [B, words], by the model itself, one question at a time."""
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    network = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    rows = []
    for picture, text in zip(PICTURES, QUESTIONS, strict=True):
        inputs = processor(images=[picture], text=[text], return_tensors="pt")
        with torch.no_grad():
            probabilities = network(**inputs).logits[0, -1].softmax(-1)
        tokens = [[(*SPECIAL, *WORDS).index(form) for form in forms] for forms in words]
        rows.append(torch.stack([probabilities[t].sum() for t in tokens]))
    return torch.stack(rows)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_yes_or_no_is_the_share_of_yes(llava, batch):
    yes, no = odds(llava, [["yes", "Yes"], ["no", "NO"]]).unbind(1)
    reward = named_reward(f'vlm(model={llava}, question="is this {{prompt}} ?", batch={batch})')
    found = checked(reward, "vlm", IMAGES, PROMPTS)
    torch.testing.assert_close(found, yes / (yes + no), atol=1e-5, rtol=0)
    assert float(found.max() - found.min()) > 0.01


def test_a_processor_that_knows_videos_does_without_torchvision(qwen):
    from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration
    from transformers import Qwen2VLImageProcessorPil as Pixels

    network = Qwen2VLForConditionalGeneration.from_pretrained(qwen).eval()
    pixels, words = Pixels.from_pretrained(qwen), AutoTokenizer.from_pretrained(qwen)
    yes, no = (words.convert_tokens_to_ids(w) for w in (["yes", "Yes"], ["no", "NO"]))
    expected = []
    for picture, prompt in zip(PICTURES, PROMPTS, strict=True):
        shown = pixels(images=[picture], return_tensors="pt")
        many = int(shown["image_grid_thw"].prod()) // 4
        image = f"<|vision_start|> {'<|image_pad|> ' * many}<|vision_end|>"
        told = words(f"user : {image} is this {prompt} ? assistant :", return_tensors="pt")
        kinds = (told["input_ids"] == network.config.image_token_id).int()
        with torch.no_grad():
            logits = network(**shown, **told, mm_token_type_ids=kinds).logits[0, -1]
        odds = logits.softmax(-1)
        expected.append(float(odds[yes].sum() / (odds[yes].sum() + odds[no].sum())))
    for batch in (1, 3):
        found = Vlm(str(qwen), "is this {prompt} ?", batch=batch)(IMAGES, PROMPTS)
        assert found.tolist() == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 0.01


def test_other_answers(llava):
    shares = odds(llava, [["maybe"], ["no", "NO"], ["dog"]])
    reward = Vlm(str(llava), "is this {prompt} ?", answers="maybe/no/dog", batch=3)
    expected = shares[:, 0] / shares.sum(1)
    torch.testing.assert_close(reward(IMAGES, PROMPTS), expected, atol=1e-5, rtol=0)


def test_a_scale_is_the_expected_rating(llava):
    shares = odds(llava, [["1"], ["2"], ["3"], ["4"], ["5"]])
    reward = named_reward(
        f'vlm(model={llava}, scale=1-5, question="is this {{prompt}} ?", batch=3)'
    )
    expected = (shares * torch.arange(1.0, 6)).sum(1) / shares.sum(1)
    found = reward(IMAGES, PROMPTS)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert bool(((found > 1) & (found < 5)).all())


def test_what_is_asked_unless_told_otherwise(llava):
    assert Vlm(str(llava)).fingerprint()["question"] == (
        "Does this picture show the following? {prompt}\nAnswer with yes or no."
    )
    assert Vlm(str(llava), scale="0-10").fingerprint()["question"] == (
        "How well does this picture show the following? {prompt}\nAnswer with a number, 0 to 10."
    )
    assert Vlm(str(llava), scale="1-3").fingerprint()["answers"] == "1=1,2=2,3=3"


def test_a_judge_remembers_and_has_no_gradient(llava):
    reward = Vlm(str(llava), "is this {prompt} ?", batch=3)
    first = reward(IMAGES.clone().requires_grad_(), PROMPTS)
    assert not first.requires_grad
    assert torch.equal(reward(IMAGES, PROMPTS), first)
    assert (reward.score_cache.hits, reward.score_cache.misses) == (3, 3)
    assert not any(p.requires_grad for p in reward.vision_language.network.parameters())


def test_half_precision_is_near(llava):
    full = Vlm(str(llava), "is this {prompt} ?", batch=3)
    half = Vlm(str(llava), "is this {prompt} ?", batch=3, dtype="bfloat16")
    assert half.vision_language.network.dtype == torch.bfloat16
    difference = (full(IMAGES, PROMPTS) - half(IMAGES, PROMPTS)).abs().max()
    assert 0 < float(difference) < 0.1


def test_without_a_template_the_picture_comes_before_the_question(llava, tmp_path):
    from transformers import AutoProcessor

    from scoretune.rewards.networks import vision_language

    folder = tmp_path / "plain"
    shutil.copytree(llava, folder)
    (folder / "chat_template.jinja").unlink()
    prepare = vision_language.VisionLanguage(str(folder)).processor
    found = vision_language.questions(
        prepare, np.asarray(eight_bit(IMAGES[:1])), ["is this a cat ?"]
    )
    plain = AutoProcessor.from_pretrained(folder)
    expected = plain(images=PICTURES[:1], text=["<image>\nis this a cat ?"], return_tensors="pt")
    assert torch.equal(found["input_ids"], expected["input_ids"])
    assert torch.equal(found["pixel_values"], expected["pixel_values"])


def test_the_beginning_is_not_told_twice(llava, tmp_path):
    from tokenizers.processors import TemplateProcessing

    from scoretune.rewards.networks import vision_language

    prepare = vision_language.VisionLanguage(str(llava)).processor
    prepare.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    for template in (CHAT, "<s> " + CHAT):
        prepare.chat_template = template
        asked = vision_language.questions(prepare, eight_bit(IMAGES[:1]), ["is this a cat ?"])
        assert asked["input_ids"][0].tolist().count(1) == 1


# ---------------------------------------------------------------------------- what may go wrong


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"answers": "yes"}, "two or more different words"),
        ({"answers": "yes,Yes"}, "two or more different words"),
        ({"answers": "yes,,no"}, "two or more different words"),
        ({"scale": "5-1"}, "write it as 1-5"),
        ({"scale": "five"}, "write it as 1-5"),
        ({"batch": 0}, "batch must be 1 or more"),
    ],
)
def test_settings_that_cannot_be(settings, words):
    with pytest.raises(UserError, match=words):
        Vlm("model", **settings)


def test_an_answer_of_many_tokens(llava):
    reward = Vlm(str(llava), "is this {prompt} ?", answers="yes,perhaps")
    with pytest.raises(UserError, match="'perhaps' is no single token of"):
        reward(IMAGES, PROMPTS)


@pytest.mark.parametrize("kind", [Ocr, Vlm])
def test_a_model_that_is_not_there(kind, tmp_path):
    for model in (str(tmp_path / "none"), "nobody/nothing"):
        with pytest.raises(UserError) as caught:
            kind(model)(IMAGES[:1], ['"a"'])
        assert model in str(caught.value) and "\n" not in str(caught.value)


def test_missing_weights_and_pickles_are_refused(llava, tmp_path):
    lacking, pickled = tmp_path / "lacking", tmp_path / "pickled"
    shutil.copytree(llava, lacking)
    weights = load_file(lacking / "model.safetensors")
    gone = next(key for key in weights if "lm_head" in key)
    save_file({k: v for k, v in weights.items() if k != gone}, lacking / "model.safetensors")
    with pytest.raises(
        UserError, match=r"lacks 1 of the weights of a LlavaForConditional.*lm_head"
    ):
        Vlm(str(lacking))(IMAGES, PROMPTS)
    shutil.copytree(llava, pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(UserError, match="is a pickle, which can run code"):
        Vlm(str(pickled))(IMAGES, PROMPTS)


def test_a_model_without_its_processor(llava, tmp_path):
    folder = tmp_path / "bare"
    shutil.copytree(llava, folder)
    (folder / "processor_config.json").unlink()
    with pytest.raises(UserError) as caught:
        Vlm(str(folder))(IMAGES, PROMPTS)
    assert str(folder) in str(caught.value) and "processor" in str(caught.value)


def test_scores_are_finite_and_within_bounds(llava, trocr):
    share = Vlm(str(llava), "is this {prompt} ?", batch=3)(IMAGES, PROMPTS)
    read = Ocr(str(trocr), tokens=4)(IMAGES, ['"abc"'] * 3)
    for score in (*share.tolist(), *read.tolist()):
        assert math.isfinite(score) and 0 <= score <= 1


@pytest.mark.parametrize("family", ["llava", "qwen"])
def test_a_model_that_knows_no_json_is_a_critic_that_says_nothing(family, request):
    """Random weights answer with gibberish: it is asked for again, counted, and never raises."""
    folder = request.getfixturevalue(family)
    pictures = [Shown(prompt, image) for prompt, image in zip(PROMPTS, IMAGES, strict=True)]
    critic = roles.named("critic", f"vlm(model={folder}, batch=2, tokens=4)", roles.CRITICS)
    said = critic(pictures)
    assert [(answer.content, answer.attempts) for answer in said] == [(None, 3)] * len(PROMPTS)
    assert len({answer.raw for answer in said}) > 1  # it looked at the pictures
    writer = roles.named("writer", f"vlm(model={folder}, tokens=4, most=2)", roles.WRITERS)
    plans = writer(pictures[:1], [Critique(alignment=3)])
    assert [answer.content for answer in plans] == [None]
