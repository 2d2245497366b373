"""What may be written as a reward: names with settings, addresses, functions, and sums of them."""

from __future__ import annotations

import hashlib
import io
import json
import sys
from dataclasses import dataclass
from typing import Literal

import pytest
import torch
from PIL import Image

from scoretune.core import resolve
from scoretune.core.errors import UserError
from scoretune.data.scenes import world
from scoretune.rewards import catalog, reader
from scoretune.rewards.catalog import fingerprint, named_reward
from scoretune.rewards.networks import pretrained
from scoretune.rewards.pixels import Compressibility, brightness

IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
PROMPTS = ["a seven", "a red seven", "two fives"]


# ---------------------------------------------------------------------------- sums with settings


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("clip(batch=4)", [(1, "clip(batch=4)")]),
        ("clip()", [(1, "clip()")]),
        ("-clip(batch=4)", [(-1, "clip(batch=4)")]),
        (
            "pickscore(model=runs/my-pick, batch=4) + 0.5*compressibility(quality=80) - 0.1*m:f",
            [
                (1, "pickscore(model=runs/my-pick, batch=4)"),
                (0.5, "compressibility(quality=80)"),
                (-0.1, "m:f"),
            ],
        ),
        ("clip(model=a/b-c)-reader", [(1, "clip(model=a/b-c)"), (-1, "reader")]),
        ("reader-clip(model=a+b)", [(1, "reader"), (-1, "clip(model=a+b)")]),
        ("clip(model=a) + clip(model=b)", [(1, "clip(model=a)"), (1, "clip(model=b)")]),
        (
            'vlm(question="1 + 1 = 2)?") + reader',
            [(1, 'vlm(question="1 + 1 = 2)?")'), (1, "reader")],
        ),
        (
            "2*isolated(reward=clip(model=a, batch=2), python=/x-y/bin) - reader",
            [(2, "isolated(reward=clip(model=a, batch=2), python=/x-y/bin)"), (-1, "reader")],
        ),
        ("http://my-host:8000/a-b", [(1, "http://my-host:8000/a-b")]),
        ("https://h/a?b=c+d - 2*reader", [(1, "https://h/a?b=c+d"), (-2, "reader")]),
        ("reader + .5*http://h:80", [(1, "reader"), (0.5, "http://h:80")]),
        (
            "server(url=http://h-1:80/x) + reader",
            [(1, "server(url=http://h-1:80/x)"), (1, "reader")],
        ),
        ("clip-taste:of - reader", [(1, "clip-taste:of"), (-1, "reader")]),
        ("server-2.py:of + reader", [(1, "server-2.py:of"), (1, "reader")]),
    ],
)
def test_a_sum_is_read(text, terms):
    assert catalog.terms(text) == terms


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("clip(batch=4", "its brackets do not close at its end"),
        ("clip(batch=4) reader", "from 'clip(batch=4) reader' on"),
        ("reader + clip(batch=4", "from '+ clip(batch=4' on"),
        ("reader + clip (batch=4)", "from '+ clip (batch=4)' on"),
        ("reader + m:f(a=1)", "'m:f' is a function of yours, whose only setting is frames"),
        ("compressibility(80)", "cannot read '80' in 'compressibility(80)': write it as setting="),
        ("compressibility(quality=)", "cannot read 'quality=' in"),
        ("compressibility(quality=80,,sign=1)", "cannot read '' in"),
        ("compressibility(quality=80, quality=90)", "'quality' is there twice in"),
        ("compressibility(qualty=80)", "'compressibility' 'qualty': did you mean 'quality'?"),
        ("compressibility(quality=80%)", "compressibility(quality=…) must be int, got '80%'"),
        ("compressibility(quality=8.5)", "compressibility(quality=…) must be int, got '8.5'"),
        ("compressibility(quality=True)", "compressibility(quality=…) must be int, got 'True'"),
        ("compressibility(sign=[1])", "compressibility(sign=…) must be float, got '[1]'"),
        ("clip(dtype=float64)", "clip(dtype=…): 'float64': did you mean 'float16'?"),
        ("clip(clipped=1)", "clip(clipped=…) must be bool, got '1'"),
        ("brightness(bright=1)", "reward 'brightness' has no settings: write brightness alone"),
        ("klip(batch=4)", "unknown reward 'klip': did you mean 'clip'?"),
        ("reader(folder=nowhere)", "'nowhere' holds no reader.safetensors: give a folder that"),
        ("clip(batch=4) + 2*clip(batch=4)", "'clip(batch=4)' is there twice"),
        ("0*clip(batch=4)", "'clip(batch=4)' has the weight 0"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(text, told):
    with pytest.raises(UserError) as caught:
        named_reward(text)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_reach_the_reward():
    assert named_reward("compressibility(quality=80)") == Compressibility(80)
    assert named_reward("compressibility( quality = 80 , sign = -1, )") == Compressibility(80, -1)
    assert named_reward("incompressibility(quality=80)") == Compressibility(80, -1.0)
    assert named_reward("compressibility()") == named_reward("compressibility") == Compressibility()
    assert named_reward("brightness()") is brightness
    found = named_reward("clip(model=openai/clip-vit-base-patch16, batch=4, dtype=bfloat16)")
    assert (found.model, found.batch) == ("openai/clip-vit-base-patch16", 4)
    assert (found.dtype, found.revision, found.scale) == ("bfloat16", None, 100.0)
    assert named_reward("clip(scale=2, clipped=True)").scale == 2.0


def test_a_sum_with_settings_adds_up():
    reward = named_reward("2*compressibility(quality=80) - 0.5*brightness")
    buffer = io.BytesIO()
    eight_bit = (IMAGES[0] * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(eight_bit).save(buffer, "JPEG", quality=80)
    expected = -2 * len(buffer.getvalue()) / 1000 - 0.5 * float(IMAGES[0].mean())
    assert float(reward(IMAGES, PROMPTS)[0]) == pytest.approx(expected, abs=1e-6)
    assert reward.weights == {"compressibility": 2.0, "brightness": -0.5}


def test_two_of_a_kind_are_told_apart_by_their_settings():
    reward = named_reward("compressibility(quality=80) - compressibility(quality=20) + brightness")
    assert list(reward.weights) == [
        "compressibility(quality=80)",
        "compressibility(quality=20)",
        "brightness",
    ]


def test_constructing_a_learned_reward_reads_nothing(monkeypatch):
    def read(*arguments, **settings):
        raise AssertionError(f"read {arguments}")

    for function in ("network", "tokenizer", "file", "preprocessing", "identity"):
        monkeypatch.setattr(pretrained, function, read)
    monkeypatch.setattr("builtins.open", read)
    for name in ("clip", "pickscore", "hpsv2(model=nobody/nothing)", "aesthetic(head=nowhere.st)"):
        named_reward(name)


# ---------------------------------------------------------------------------- values


@dataclass(frozen=True)
class Thing:
    """Settings of every kind that a reward may have."""

    word: str = ""
    perhaps: str | None = None
    count: int = 1
    share: float = 0.0
    sure: bool = False
    kind: Literal["one", "two"] = "one"
    words: tuple[str, ...] = ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("t()", Thing()),
        ("t", Thing()),
        ("t(word=openai/clip-vit-large-patch14)", Thing(word="openai/clip-vit-large-patch14")),
        ("t(word=http://host:8000/a?b=c)", Thing(word="http://host:8000/a?b=c")),
        ('t(word="Is it red, or not?")', Thing(word="Is it red, or not?")),
        ("t(word='a) b', count=2)", Thing(word="a) b", count=2)),
        (r't(word="say \"no\", then")', Thing(word='say "no", then')),
        ("t(word=who's there, count=3)", Thing(word="who's there", count=3)),
        ("t(word=C:\\models\\clip)", Thing(word="C:\\models\\clip")),
        ("t(word=f(a=1, b=[2, 3]), count=2)", Thing(word="f(a=1, b=[2, 3])", count=2)),
        ("t(word=1234567)", Thing(word="1234567")),
        ("t(word=None)", Thing(word="None")),
        ("t(perhaps=None)", Thing(perhaps=None)),
        ("t(perhaps=null)", Thing(perhaps=None)),
        ("t(perhaps=main)", Thing(perhaps="main")),
        ("t(count=-3, share=2, sure=true)", Thing(count=-3, share=2.0, sure=True)),
        ("t(share=1e-3, sure=False, kind=two)", Thing(share=1e-3, kind="two")),
        ("t(words=('a, b', 'c'))", Thing(words=("a, b", "c"))),
        ("t(\n  count=2,\n)", Thing(count=2)),
    ],
)
def test_a_call_is_read(text, expected):
    found = resolve.instantiate("thing", resolve.read_call(text), Thing)
    assert found == expected
    assert type(found.share) is float


def test_a_missing_setting_is_named():
    def constructor(url: str) -> str:
        return url

    with pytest.raises(UserError, match=r"reward 'x' needs the setting 'url': write x\(url=…\)"):
        resolve.instantiate("reward", resolve.read_call("x"), constructor)
    assert (
        resolve.instantiate("reward", resolve.read_call("x(url=http://a)"), constructor)
        == "http://a"
    )


# ---------------------------------------------------------------------------- reader(folder=…)


def test_a_reader_of_ones_own_folder(tmp_path):
    weights = reader.load(world.shipped(), "reader").state_dict()
    from safetensors.torch import save_file

    changed = {k: v + 0.05 if v.is_floating_point() else v for k, v in weights.items()}
    save_file(changed, tmp_path / "reader.safetensors")
    mine, shipped = named_reward(f"reader(folder={tmp_path})"), named_reward("reader")
    assert not torch.equal(mine(IMAGES, PROMPTS), shipped(IMAGES, PROMPTS))
    usual = reader.Reading(reader.load(tmp_path, "reader"))
    assert torch.equal(mine(IMAGES, PROMPTS), usual(IMAGES, PROMPTS))
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "sub").mkdir()
    (tmp_path / "other.safetensors").rename(tmp_path / "sub" / "reader.safetensors")
    with pytest.raises(UserError, match="none of scoretune's"):
        named_reward(f"reader(folder={tmp_path / 'sub'})")


# ---------------------------------------------------------------------------- what scored


def test_a_fingerprint_names_every_part(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    source = "def red(images, prompts):\n    return images[:, 0].mean((1, 2))\n"
    (tmp_path / "taste_of_names.py").write_text(source)
    name = "reader - 0.5*compressibility(quality=80) + 2*taste_of_names:red + brightness"
    found = fingerprint(name, named_reward(name))
    assert json.loads(json.dumps(found)) == found
    assert found["reward"] == name
    assert set(found["libraries"]) == {"scoretune", "torch", "transformers"}
    read, size, red, light = found["parts"]
    stored = (world.shipped() / "reader.safetensors").read_bytes()
    assert read["sha256"] == hashlib.sha256(stored).hexdigest()
    assert (read["name"], read["weight"], read["settings"]) == ("reader", 1.0, {"folder": ""})
    assert size["settings"] == {"quality": 80, "sign": 1.0}
    assert size["class"] == "scoretune.rewards.pixels:Compressibility"
    assert (red["name"], red["weight"]) == ("taste_of_names:red", 2.0)
    assert red["sha256 of the source"] == hashlib.sha256(source.encode()).hexdigest()
    assert light["class"] == "scoretune.rewards.pixels:brightness"
    assert fingerprint("-reader", named_reward("-reader"))["parts"][0]["weight"] == -1.0


def test_a_fingerprint_builds_nothing_anew(monkeypatch):
    text = "2*compressibility(quality=80) - brightness"
    reward = named_reward(text)

    def build(*settings):
        raise AssertionError("built anew")

    monkeypatch.setattr(catalog.resolve, "instantiate", build)
    weights = [part["weight"] for part in fingerprint(text, reward)["parts"]]
    assert weights == [2.0, -1.0]


def test_the_names_of_a_reward_are_without_settings():
    assert catalog.names("reader - 0.5*clip(batch=4) + m:f") == {"reader", "clip", "m:f"}
