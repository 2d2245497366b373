"""Models of videos: how many frames, what rewards see of them, what people are shown, and that a
run learns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from scoretune import recipes
from scoretune.commands import sample
from scoretune.core.config import Model
from scoretune.core.errors import UserError
from scoretune.data.prompts import Prompt
from scoretune.evaluate import samples, videos
from scoretune.evaluate.features import named_features
from scoretune.evaluate.report.page import write_report
from scoretune.models import catalog
from scoretune.models.tiny import videos as tiny
from scoretune.models.tiny import words
from scoretune.rewards.base import RewardFailed, checked, has_gradient
from scoretune.rewards.catalog import fingerprint, named_reward
from scoretune.rewards.frames import places
from scoretune.rewards.temporal_flickering import temporal_flickering
from scoretune.training import run_folder
from scoretune.training.hooks import Silent
from scoretune.training.overrides import changed
from scoretune.training.run import launch, ready

FEW = (
    "updates=1",
    "sizes.prompts=2",
    "sizes.group=2",
    "sampling.steps=2",
    "evaluation.steps=2",
    "evaluation.every=0",
    "model.rank=2",
)


@pytest.fixture(scope="module")
def wan(tmp_path_factory) -> Path:
    return tiny.build("wan", tmp_path_factory.mktemp("wan"))


def backbone(folder: Path, **settings: Any) -> Any:
    return catalog.load_backbone(Model(source=str(folder), rank=0, **settings))


def trained(recipe: str, folder: Path, source: Path, *settings: str) -> Path:
    """A run on the miniature, in a folder."""
    prompts = folder.with_suffix(".txt")
    prompts.write_text("\n".join(words.PROMPTS), encoding="utf-8")
    told = [f"model.source={source}", f"prompts={prompts}", *FEW, *settings]
    run = changed(recipes.named(recipe), told)
    checked = ready(run)
    run_folder.record(run, folder, threads=1, checked=checked)
    launch(run, folder, Silent(), checked)
    return folder


def film(count: int = 5) -> torch.Tensor:
    return torch.rand(2, count, 3, 16, 16, generator=torch.Generator().manual_seed(0))


# -------------------------------------------------------------------------- how many frames


def test_how_many_frames(wan):
    model = backbone(wan)
    assert model.shape == (4, 3, 4, 4) and model.frames == 5
    other = backbone(wan, frames=7, size="64x32")
    assert other.shape == (4, 4, 4, 8)
    assert other.sides == {"height": 32, "width": 64, "num_frames": 7}
    assert other.decode(torch.zeros(1, *other.shape)).shape == (1, 7, 3, 32, 64)
    assert backbone(wan, frames=1).shape == (4, 1, 4, 4)


@pytest.mark.parametrize(("frames", "near"), [(6, "5 or 7"), (2, "1 or 3")])
def test_frames_that_do_not_divide(wan, frames, near):
    with pytest.raises(UserError, match=f"{frames} cannot be divided .* 2 frames: set {near}$"):
        backbone(wan, frames=frames)


def test_frames_in_patches_of_time():
    """CogVideoX 1.5 has patches of two frames of its latents, each of four frames."""
    from types import SimpleNamespace

    from diffusers import CogVideoXPipeline

    from scoretune.models.videos import usual_frames, with_frames

    pipeline = CogVideoXPipeline.__new__(CogVideoXPipeline)
    config = {"patch_size": 2, "patch_size_t": 2, "sample_frames": 81}
    vars(pipeline)["transformer"] = SimpleNamespace(config=config)
    vars(pipeline)["vae"] = SimpleNamespace(config={"temporal_compression_ratio": 4})
    assert usual_frames(pipeline) == 22  # 81 frames are 21, and the pipeline fills them up
    model: Any = SimpleNamespace(pipeline=pipeline, shape=(16, 22, 8, 8))
    with pytest.raises(UserError, match="4 frames and patches of 2: set 77 or 85"):
        with_frames(model, 81)


def test_frames_of_a_model_of_pictures_are_refused():
    with pytest.raises(UserError, match=r"model\.frames=8 is of videos, and a Stable.* pictures"):
        backbone(Path("scenes"), frames=8)


def test_two_networks_are_refused_before_any_is_read(wan, tmp_path):
    index = json.loads((wan / "model_index.json").read_text())
    index["transformer_2"] = ["diffusers", "WanTransformer3DModel"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="has two networks, each for a part of the time"):
        backbone(tmp_path)


def test_data_of_pictures_are_refused(wan):
    with pytest.raises(UserError, match="draws videos, and the data are pictures"):
        backbone(wan).embed(torch.zeros(1, 3, 32, 32))


# -------------------------------------------------------------------------- rewards


def test_which_frames_are_looked_at():
    assert places("first", 5) == [0] and places("middle", 5) == [2]
    assert places("all", 3) == [0, 1, 2] and places("every(4)", 10) == [0, 4, 8]
    for text in ("last", "every(0)", "every", "every(-1)"):
        with pytest.raises(UserError, match=r"write first, middle, all or every\(4\)"):
            places(text, 5)


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("brightness", [0, 1, 2, 3, 4]),
        ("brightness(frames=middle)", [2]),
        ("brightness(frames=every(2))", [0, 2, 4]),
        ("scoretune.rewards.pixels:brightness(frames=first)", [0]),
    ],
)
def test_a_reward_of_pictures_is_a_mean_over_frames(text, seen):
    reward, shown = named_reward(text), film()
    values = checked(reward, text, shown, ["a", "b"])
    torch.testing.assert_close(values, shown[:, seen].mean((1, 2, 3, 4)))
    assert has_gradient(reward, text, shown[0], "a")
    picture = checked(reward, text, shown[:, 0], ["a", "b"])
    torch.testing.assert_close(picture, shown[:, 0].mean((1, 2, 3)))


def test_frames_in_a_sum_are_each_parts_own():
    text, shown = "compressibility(quality=50, frames=first) - 2*temporal_flickering", film()
    reward = named_reward(text)
    still = checked(named_reward("compressibility(quality=50)"), "c", shown[:, 0], ["a", "b"])
    expected = still - 2 * temporal_flickering(shown, ["a", "b"])
    torch.testing.assert_close(checked(reward, text, shown, ["a", "b"]), expected)
    first, second = fingerprint(text, reward)["parts"]
    assert first["settings"]["quality"] == 50 and first["frames"] == "first"
    assert "frames" not in second


def test_each_frame_comes_with_its_prompt():
    seen: list[Any] = []

    def reward(images, prompts):
        seen.extend(prompts)
        return images.mean((1, 2, 3))

    checked(reward, "mine", film(3), [Prompt("a", {"n": 1}), Prompt("b", {"n": 2})])
    assert [prompt.metadata["n"] for prompt in seen] == [1, 1, 1, 2, 2, 2]


def test_a_function_may_take_whole_videos():
    def steady(shown, prompts):
        return -shown.diff(dim=1).square().mean((1, 2, 3, 4))

    with pytest.raises(RewardFailed, match="IndexError"):
        checked(steady, "steady", film(), ["a", "b"])
    steady.takes_videos = True  # type: ignore[attr-defined]
    assert checked(steady, "steady", film(), ["a", "b"]).shape == (2,)


def test_flickering():
    flat = torch.tensor([0.0, 1.0, 0.5, 0.5])[None, :, None, None, None].expand(1, 4, 3, 2, 2)
    assert float(temporal_flickering(flat, ["a"])) == pytest.approx(0.5)  # 1 − (1 + .5 + 0)/3
    still = film(1).expand(-1, 4, -1, -1, -1)
    assert temporal_flickering(still, ["a", "b"]).tolist() == [1, 1]
    black_and_white = (torch.arange(4) % 2).float()[None, :, None, None, None].expand_as(flat)
    assert float(temporal_flickering(black_and_white, ["a"])) == 0
    shown = film()
    there, back = (temporal_flickering(each, ["a", "b"]) for each in (shown, shown.flip(1)))
    torch.testing.assert_close(there, back)  # whichever way it runs
    for wrong, what in ((shown[:, 0], "pictures"), (shown[:, :1], "one frame")):
        with pytest.raises(RewardFailed, match=f"was shown {what}: give a text-to-video"):
            temporal_flickering(wrong, ["a", "b"])


def test_flickering_is_refused_where_pictures_are_drawn(tmp_path):
    run = changed(recipes.named("ddpo"), ["reward=temporal_flickering", *FEW])
    checked = ready(run)
    with pytest.raises(RewardFailed, match="was shown pictures"):
        launch(run, tmp_path / "run", Silent(), checked)


def test_features_of_a_video_are_means_over_its_frames():
    shown = film()
    torch.testing.assert_close(named_features("pixels")(shown), shown.mean(1).flatten(1))


# -------------------------------------------------------------------------- what people see


def test_an_animation_and_a_strip(tmp_path):
    shown = film(12)
    videos.write(videos.sheet(shown, 2), tmp_path / "a.webp")
    with Image.open(tmp_path / "a.webp") as opened:
        assert opened.n_frames == 12 and opened.size == (32, 16) and opened.info["loop"] == 0
    assert videos.strips(shown).shape == (2, 3, 16, 8 * 16)
    assert torch.equal(videos.strips(shown)[0, :, :, :16], shown[0, 0])
    assert torch.equal(videos.strips(shown)[1, :, :, -16:], shown[1, -1])
    sheet = videos.sheet(shown, 1)
    assert torch.equal(sheet[3], torch.cat([shown[0, 3], shown[1, 3]], 1))
    large = torch.rand(1, 50, 3, 20, 512)
    assert videos.small(large).shape == (1, 33, 3, 10, 256)


def test_a_run_is_shown_and_sampled_from(wan, tmp_path, monkeypatch):
    """One update of a critic's slopes through the decoder, its page, and more samples."""
    reward = "temporal_flickering + brightness(frames=every(2))"
    run = trained("score_as_action", tmp_path / "run", wan, f"reward={reward}")
    shown = sorted(path.name for path in (run / "previews" / "videos").iterdir())
    assert shown == [f"{when}-{i:02}.webp" for when in ("after", "before") for i in range(4)]
    with Image.open(run / "previews" / "before.png") as strips:
        assert strips.size == (5 * 32, 4 * 32)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/webp") == 8 and "a red circle" in page
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[0])["reward"] > 0
    (run / "previews" / "videos" / "after-00.webp").unlink()
    write_report(run)  # what is gone is left out
    assert (run / "report.html").read_text(encoding="utf-8").count("data:image/webp") == 7
    monkeypatch.chdir(tmp_path)
    said = sample.draw(run, ["a red circle", "a dark sky"], steps=2)
    assert said.splitlines()[-1] == "2 videos in samples.webp"
    with Image.open("samples.webp") as opened:
        assert opened.n_frames == 5 and opened.size == (64, 32)
    sample.draw(run, ["a red circle"], Path("strip.png"), steps=2)
    with Image.open("strip.png") as opened:
        assert opened.size == (5 * 32, 32)
    monkeypatch.setattr(samples, "sample", lambda *args, **kwargs: pytest.fail("it was drawn"))
    with pytest.raises(UserError, match="cannot write videos as 'a"):
        sample.draw(run, ["a red circle"], Path("a.gif"), steps=2)


LEARNING = {
    "ddpo": ("reward=temporal_flickering", "optimiser.learning_rate=0.01", "updates=8"),
    "score_as_action": (
        "reward=100*temporal_flickering",
        "optimiser.learning_rate=0.03",
        "objective.kl_weight=0",
        "updates=5",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", LEARNING)
def test_a_model_of_videos_learns(wan, tmp_path, recipe):
    """All weights of the miniature, to flicker less: the reward of the training samples rises by
    more than three of its 95 % intervals."""
    sizes = ("sizes.prompts=4", "sizes.group=8", "sampling.steps=4", "evaluation.steps=4")
    settings = (*sizes, "model.rank=0", "guard.action=off", *LEARNING[recipe])
    run = trained(recipe, tmp_path / "run", wan, *settings)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    first, last = lines[0], lines[-1]
    assert last["reward"] - first["reward"] > 3 * (first["reward_high"] - first["reward"])
