"""Rewards: what they measure, and what is said about one that misbehaves."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from scoretune.core.errors import UserError
from scoretune.data.prompts import Prompt
from scoretune.data.scenes import world
from scoretune.evaluate.scores import verdict_metrics
from scoretune.rewards import catalog, reader, weighted
from scoretune.rewards.base import checked, has_gradient
from scoretune.rewards.catalog import named_reward
from scoretune.rewards.pixels import Compressibility, brightness

IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
PROMPTS = ["a seven", "a red seven", "two fives"]


# ---------------------------------------------------------------------------- pixels


@pytest.mark.parametrize("quality", [95, 50])
def test_compressibility_is_the_size_of_the_jpeg(quality):
    sizes = []
    for image in IMAGES:
        buffer = io.BytesIO()
        pixels = np.rint(image.permute(1, 2, 0).numpy() * 255).astype(np.uint8)
        Image.fromarray(pixels).save(buffer, format="JPEG", quality=quality)
        sizes.append(len(buffer.getvalue()) / 1000)
    found = Compressibility(quality)(IMAGES, PROMPTS)
    assert found.tolist() == pytest.approx([-size for size in sizes])
    assert Compressibility(quality, sign=-1.0)(IMAGES, PROMPTS).tolist() == pytest.approx(sizes)


def test_plain_pictures_compress_better():
    plain = torch.full((1, 3, 32, 32), 0.5)
    reward = named_reward("compressibility")
    assert float(reward(plain, ["a"])) > float(reward(IMAGES[:1], ["a"]))
    reward = named_reward("incompressibility")
    assert float(reward(plain, ["a"])) < float(reward(IMAGES[:1], ["a"]))


def test_compressibility_takes_pictures_out_of_range():
    wild = torch.tensor([-3.0, 4.0])[:, None, None, None].expand(2, 3, 16, 16)
    tame = wild.clamp(0, 1)
    reward = Compressibility()
    assert torch.equal(reward(wild, ["a", "b"]), reward(tame, ["a", "b"]))


def test_brightness():
    images = torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)])
    assert brightness(images, ["a", "b"]).tolist() == [0.0, 1.0]


# ---------------------------------------------------------------------------- by name


@pytest.mark.parametrize("name", ["reader", "compressibility", "incompressibility", "brightness"])
def test_every_reward_without_a_model_gives_a_number_an_image(name):
    values = checked(named_reward(name), name, IMAGES, PROMPTS)
    assert values.shape == (3,)
    assert values.dtype == torch.float32


def test_an_unknown_reward_is_named():
    with pytest.raises(UserError, match=r"unknown reward 'brightnes': did you mean 'brightness'\?"):
        named_reward("brightnes")


def test_the_reader_reads_scenes_only():
    with pytest.raises(UserError, match="scenes of digits only"):
        checked(named_reward("reader"), "reader", IMAGES[:1], ["a photo of a cat"])


def test_verdicts_are_of_the_shipped_world():
    metrics = verdict_metrics("scenes")
    assert sorted(metrics) == ["judge", "reader"]
    for metric in metrics.values():
        assert set(metric(IMAGES, PROMPTS).tolist()) <= {0.0, 1.0}
    assert verdict_metrics("somewhere/else") == {}


def test_a_missing_reader_is_named(tmp_path):
    from scoretune.rewards.reader import load

    with pytest.raises(UserError, match=r"reader\.safetensors"):
        load(tmp_path, "reader")
    assert (world.shipped() / "reader.safetensors").exists()


@pytest.mark.parametrize("name", ["reader", "judge"])
def test_loading_draws_no_random_numbers(name):
    """How often a run looks at its progress must not change the run."""
    reader.load.cache_clear()
    before = torch.get_rng_state()
    network = reader.load(world.shipped(), name)
    assert torch.equal(torch.get_rng_state(), before)
    assert reader.load(world.shipped(), name) is network  # nor does it read the file again
    named_reward("reader")
    verdict_metrics("scenes")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "kind"), [("reader", reader.CellReader), ("judge", reader.CanvasJudge)]
)
def test_a_loaded_network_is_the_stored_one(name, kind):
    stored = load_file(world.shipped() / f"{name}.safetensors")
    usual = kind().eval()
    usual.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in stored.items()})
    network = reader.load(world.shipped(), name)
    assert not network.training
    assert network.state_dict().keys() == stored.keys()
    for tensor in (*network.parameters(), *network.buffers()):
        assert tensor.device.type == "cpu"
        assert not tensor.requires_grad
        assert tensor.dtype == (torch.float32 if tensor.is_floating_point() else torch.long)
    with torch.no_grad():
        assert torch.equal(network(IMAGES), usual(IMAGES))


def test_a_gradient_is_of_the_soft_reading_only():
    verdict = reader.Reading(reader.load(world.shipped(), "reader"), soft=False)
    gradients = {
        "reader": has_gradient(named_reward("reader"), "reader", IMAGES[0], PROMPTS[0]),
        "verdict": has_gradient(verdict, "verdict", IMAGES[0], PROMPTS[0]),
        "brightness": has_gradient(brightness, "brightness", IMAGES[0], PROMPTS[0]),
        "jpeg": has_gradient(Compressibility(), "compressibility", IMAGES[0], PROMPTS[0]),
    }
    assert gradients == {"reader": True, "verdict": False, "brightness": True, "jpeg": False}


# ---------------------------------------------------------------------------- sums


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("reader", [(1, "reader")]),
        ("", [(1, "")]),
        ("reader + brightness", [(1, "reader"), (1, "brightness")]),
        ("reader+brightness", [(1, "reader"), (1, "brightness")]),
        ("reader-brightness", [(1, "reader"), (-1, "brightness")]),
        ("  reader  -0.5 *brightness ", [(1, "reader"), (-0.5, "brightness")]),
        ("-reader", [(-1, "reader")]),
        ("+ .5*reader", [(0.5, "reader")]),
        ("2.*reader + -3*brightness", [(2, "reader"), (-3, "brightness")]),
        (
            "1e-3*reader+1E+2*brightness-2e1*jpeg",
            [(1e-3, "reader"), (100, "brightness"), (-20, "jpeg")],
        ),
        ("reader - 0.1*my_module:function", [(1, "reader"), (-0.1, "my_module:function")]),
        ("reader-0.1*my.module:function", [(1, "reader"), (-0.1, "my.module:function")]),
        ("reader-my_module:function", [(1, "reader"), (-1, "my_module:function")]),
        ("a/b.py:f-0.5*../c_2/d.py:g", [(1, "a/b.py:f"), (-0.5, "../c_2/d.py:g")]),
        ("/home/me/x.py:f+~/y.py:g", [(1, "/home/me/x.py:f"), (1, "~/y.py:g")]),
        ("my-folder/my-file.py:f - reader", [(1, "my-folder/my-file.py:f"), (-1, "reader")]),
        ("my-module:function", [(1, "my-module:function")]),
        ("0.5*my-2nd.py:f-brightness", [(0.5, "my-2nd.py:f"), (-1, "brightness")]),
    ],
)
def test_a_sum_is_read(text, terms):
    assert catalog.terms(text) == terms


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("reader +", "cannot read the reward 'reader +' from '+' on"),
        ("reader + 0.5", "from '+ 0.5' on"),
        ("reader brightness", "cannot read the reward 'reader brightness' from 'reader bri"),
        ("0.5 reader", "from '0.5 reader' on"),
        ("reader*2", "from 'reader*2' on"),
        ("reader + two*brightness", "from '+ two*brightness' on"),
        ("reader ** 2", "from 'reader ** 2' on"),
        ("reader + (brightness)", "from '+ (brightness)' on"),
        ("* reader", "from '* reader' on"),
        ("--reader", "from '--reader' on"),
        ("reader + my_module:", "from '+ my_module:' on"),
        ("reader + inf*brightness", "from '+ inf*brightness' on"),
        ("reader + 0*brightness", "'brightness' has the weight 0: leave it out"),
        ("reader + 1e999*brightness", "'brightness' has the weight inf: leave it out"),
        ("reader + brightness - 2*reader", "'reader' is there twice: give it one weight"),
        ("reader + brightnes", "unknown reward 'brightnes': did you mean 'brightness'?"),
        ("reader + nowhere_at_all:red", "cannot import the reward 'nowhere_at_all:red'"),
    ],
)
def test_a_sum_that_cannot_be_read(text, told):
    with pytest.raises(UserError) as caught:
        named_reward(text)
    said = str(caught.value)
    assert told in said
    assert "\n" not in said
    if "cannot read" in said:
        assert "'reader + 0.5*compressibility - 0.1*my_module:function'" in said


def test_a_sum_adds_up():
    reward = named_reward("reader - 0.5*brightness + 1e-1*compressibility")
    reader_, light, size = (
        named_reward(name)(IMAGES, PROMPTS) for name in ("reader", "brightness", "compressibility")
    )
    expected = reader_ - 0.5 * light + 0.1 * size
    torch.testing.assert_close(reward(IMAGES, PROMPTS), expected)
    parts = reward.each(IMAGES, PROMPTS)
    assert list(parts) == ["reader", "brightness", "compressibility"]
    torch.testing.assert_close(parts["brightness"], -0.5 * light)
    assert reward.weights == {"reader": 1.0, "brightness": -0.5, "compressibility": 0.1}
    found = weighted.scored(reward, "sum", IMAGES, PROMPTS)
    torch.testing.assert_close(found.total, expected)
    torch.testing.assert_close(torch.stack(list(found.parts.values())).sum(0), found.total)
    assert found.prompts == tuple(PROMPTS)


def test_one_reward_has_no_parts():
    assert named_reward("brightness") is brightness
    found = weighted.scored(brightness, "brightness", IMAGES, PROMPTS)
    assert found.parts == {}
    assert torch.equal(found.total, brightness(IMAGES, PROMPTS))


def test_a_weighted_reward_alone():
    assert torch.equal(named_reward("-2*brightness")(IMAGES, PROMPTS), -2 * brightness(IMAGES, []))


def test_the_gradient_of_a_sum_is_the_sum_of_gradients():
    whole, red, light = (IMAGES.clone().requires_grad_() for _ in range(3))
    named_reward("reader - 3*brightness")(whole, PROMPTS).sum().backward()
    named_reward("reader")(red, PROMPTS).sum().backward()
    brightness(light, PROMPTS).sum().backward()
    torch.testing.assert_close(whole.grad, red.grad - 3 * light.grad)


def test_a_sum_without_one_gradient_has_none():
    """The gradient of the rest would be taken for that of the sum."""
    halves = {"brightness + reader": True, "brightness + compressibility": False}
    for name, known in halves.items():
        assert has_gradient(named_reward(name), name, IMAGES[0], PROMPTS[0]) == known
    images = IMAGES.clone().requires_grad_()
    assert not named_reward("compressibility + brightness")(images, PROMPTS).requires_grad


def test_a_part_that_misbehaves_is_named():
    parts = (
        weighted.Part("brightness", 1.0, brightness),
        weighted.Part("mine", 0.5, lambda images, prompts: torch.zeros(2)),
    )
    text = said_of(weighted.Weighted(parts))
    assert "returned shape (2,) for 3 images" in text


# ---------------------------------------------------------------------------- checked


def said_of(reward, images=IMAGES, prompts=PROMPTS) -> str:
    with pytest.raises(UserError) as caught:
        checked(reward, "mine", images, prompts)
    text = str(caught.value)
    assert "reward 'mine'" in text
    return text


def test_what_a_good_reward_may_return():
    for value in (torch.ones(3), torch.ones(3).double(), [1, 2, 3], np.arange(3), (True, False, 1)):
        found = checked(lambda images, prompts, v=value: v, "mine", IMAGES, PROMPTS)
        assert found.shape == (3,)
        assert found.dtype == torch.float32


def test_a_reward_keeps_its_gradient():
    images = IMAGES.clone().requires_grad_()
    checked(brightness, "brightness", images, PROMPTS).sum().backward()
    assert float(images.grad.abs().sum()) > 0


def test_a_reward_that_is_not_finite():
    values = torch.tensor([0.0, float("nan"), 1.0])
    text = said_of(lambda images, prompts: values)
    assert "is nan for the prompt 'a red seven': return finite numbers" in text
    assert "is -inf for the prompt 'a seven'" in said_of(lambda i, p: -1 / torch.zeros(3))


@pytest.mark.parametrize("shape", [(), (1,), (2,), (3, 1), (0,)])
def test_a_reward_of_the_wrong_shape(shape):
    text = said_of(lambda images, prompts: torch.zeros(shape))
    assert f"returned shape {shape} for 3 images" in text
    assert "shape (3,)" in text


@pytest.mark.parametrize("value", [None, "0.5", ["a", "b", "c"], {"a": 1}])
def test_a_reward_that_is_no_number(value):
    assert "failed with" in said_of(lambda images, prompts: value)


def test_a_reward_that_raises():
    def reward(images, prompts):
        raise KeyError("weights")

    text = said_of(reward)
    assert "failed with KeyError: 'weights'" in text
    assert "images (3, 3, 32, 32) in [0, 1] and a list of 3 prompts" in text


def test_the_line_of_the_users_own_code_is_named(here):
    """Neither the library's that raises in the end, nor the product's that calls."""
    (here / "failing_taste.py").write_text(
        "import json\n\n\ndef count(prompts):\n"
        "    return [prompt.metadata['objects'] for prompt in prompts]\n\n\n"
        "def of(images, prompts):\n    return count(prompts)\n\n\n"
        "def read(images, prompts):\n    return json.loads('{')\n"
    )
    said, given = [], [Prompt(text) for text in PROMPTS]
    for function in ("of", "read"):
        with pytest.raises(UserError) as caught:
            checked(named_reward(f"failing_taste:{function}"), function, IMAGES, given)
        said.append(str(caught.value))
    assert "failed with KeyError: 'objects' at failing_taste.py:5; it is called" in said[0]
    assert " at failing_taste.py:13; it is called" in said[1]


def test_a_reward_of_a_library_is_known_by_its_module(tmp_path, monkeypatch):
    home = tmp_path / "site-packages"
    home.mkdir()
    (home / "installed_taste.py").write_text("def of(images, prompts):\n    return 1 / 0\n")
    (home / "installed_part.py").write_text(
        "import installed_taste\n\n\n"
        "def of(images, prompts):\n    return installed_taste.of(images, prompts)\n"
    )
    monkeypatch.syspath_prepend(str(home))
    for module, place in [
        ("installed_taste", "installed_taste.py:2"),
        ("installed_part", "t.py:5"),
    ]:
        with pytest.raises(UserError) as caught:
            checked(named_reward(f"{module}:of"), module, IMAGES, PROMPTS)
        assert f"{place}; it is called" in str(caught.value)


def test_a_users_error_passes_untouched():
    def reward(images, prompts):
        raise UserError("give me another prompt")

    with pytest.raises(UserError, match=r"^give me another prompt$"):
        checked(reward, "mine", IMAGES, PROMPTS)


# ---------------------------------------------------------------------------- module:function


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def test_a_function_in_this_folder(here):
    (here / "taste_of_tests.py").write_text(
        "def red(images, prompts):\n    return images[:, 0].mean((1, 2))\n"
    )
    reward = named_reward("taste_of_tests:red")
    assert torch.equal(checked(reward, "red", IMAGES, PROMPTS), IMAGES[:, 0].mean((1, 2)))


@pytest.mark.parametrize(
    ("name", "source", "told"),
    [
        ("nowhere_at_all:red", None, "No module named 'nowhere_at_all'"),
        ("empty_taste:red", "", "empty_taste has no 'red', nor another function: define it there"),
        (
            "misspelt_taste:sharpnes",
            "from math import sqrt as sharpnest\ndef sharpness(images, prompts): ...\n",
            "misspelt_taste has no 'sharpnes': did you mean 'sharpness'?",
        ),
        ("other_taste:blue", "def red(i, p): ...\n", "no 'blue': choose one of: red"),
        ("imported_taste:sqr", "from math import sqrt\n", "no 'sqr': did you mean 'sqrt'?"),
        ("broken_taste:red", "def red(:\n", "SyntaxError"),
        ("raising_taste:red", "raise RuntimeError('no GPU')\n", "RuntimeError: no GPU"),
        ("number_taste:red", "red = 3\n", "is a int, not a function"),
        (":red", None, "write it as module:function"),
        ("math:", None, "write it as module:function"),
    ],
)
def test_a_function_that_cannot_be_had(here, name, source, told):
    if source is not None:
        (here / f"{name.partition(':')[0]}.py").write_text(source)
    with pytest.raises(UserError) as caught:
        named_reward(name)
    assert told in str(caught.value)
    assert repr(name) in str(caught.value)


def test_the_log_scale_keeps_its_ends_and_its_order():
    probability = torch.tensor([0.0, 1e-4, 1e-2, 0.5, 1.0])
    scaled = reader.on_log_scale(probability)
    assert scaled[0] == 0
    assert scaled[-1] == pytest.approx(1.0)
    assert bool((scaled.diff() > 0).all())
    assert float(scaled[2]) == pytest.approx(0.347081, abs=1e-6)  # ln 11 / ln 1001


def test_the_log_scale_has_a_slope_where_the_reader_is_sure_of_something_else():
    probability = torch.tensor(1e-6, requires_grad=True)
    reader.on_log_scale(probability).backward()
    assert float(probability.grad) > 100  # the probability itself would have slope 1


def test_a_function_of_a_file(tmp_path):
    (tmp_path / "my-taste.py").write_text("def of(images, prompts): return [1.0] * len(images)\n")
    name = f"{tmp_path}/my-taste.py:of"
    assert checked(named_reward(name), name, IMAGES, PROMPTS).tolist() == [1.0] * len(IMAGES)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.tensor([1j, 2j]), "returned complex numbers: return one real number an image"),
        (torch.zeros(2, device="meta"), "returned a tensor without numbers"),
    ],
)
def test_a_reward_of_numbers_that_are_none(value, said):
    with pytest.raises(UserError, match=said):
        checked(lambda images, prompts: value, "mine", torch.zeros(2, 3, 4, 4), ["a", "b"])


@pytest.mark.parametrize("value", [[True, False], [3, -4], torch.tensor([1, 0], dtype=torch.uint8)])
def test_truth_values_and_whole_numbers_are_rewards(value):
    scores = checked(lambda images, prompts: value, "mine", torch.zeros(2, 3, 4, 4), ["a", "b"])
    assert scores.dtype == torch.float32 and scores.tolist() == [float(v) for v in value]


@pytest.mark.parametrize("text", ["compressibility(quality=1000)", "incompressibility(quality=0)"])
def test_a_quality_that_no_jpeg_has(text):
    with pytest.raises(UserError, match="the quality of a JPEG is 1 to 100"):
        named_reward(text)


def test_a_class_is_no_reward(here):
    (here / "mine.py").write_text("class Nice:\n    def __call__(self, i, p): return i.mean()\n")
    with pytest.raises(UserError, match=r"'mine:Nice' is a class: .*reward = Nice\(\), and name"):
        named_reward("mine:Nice")
