"""Prompts that a reward cannot judge are refused when a run is built, not at an evaluation."""

from __future__ import annotations

import json

import pytest
import torch

from scoretune import recipes
from scoretune.core.errors import UserError
from scoretune.data.prompts import Prompt
from scoretune.rewards import catalog
from scoretune.rewards.base import can_judge
from scoretune.training import build, overrides

QUOTES = ('a sign "A7"', 'a sign "42"')


def text_file(tmp_path, *lines: str) -> str:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def refused(*changes: str, recipe: str = "ddpo") -> str:
    run = overrides.changed(recipes.named(recipe), list(changes))
    with pytest.raises(UserError) as caught:
        build.check(run)
    return str(caught.value)


def test_prompts_and_held_out_ones_are_looked_at_alike(tmp_path):
    reward, quotes = "reward=ocr(engine=rapidocr)", text_file(tmp_path, *QUOTES)
    trained = refused(reward)
    assert "cannot judge prompts=scenes" in trained and "asks for no text" in trained
    assert trained.endswith("set prompts=FILE of such as it reads, or another reward")
    shipped = refused(reward, f"prompts={quotes}")  # its held-out prompts are scenes
    assert "cannot judge the held-out prompts of 'scenes'" in shipped
    assert shipped.endswith("set evaluation.prompts=FILE of such as it reads")
    named = refused(reward, f"prompts={quotes}", "evaluation.prompts=scenes-held-out")
    assert "cannot judge evaluation.prompts=scenes-held-out" in named
    on_data = refused(reward, recipe="supervised")  # the reward is that of evaluations alone
    assert "cannot judge the held-out prompts of 'scenes'" in on_data


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["reward=reader"], "unknown scene prompt"),
        (["reward=source_closeness"], "has none: give prompts with a column image"),
        (["reward=scene_edit"], "scene_edit judges scenes of digits only"),
        (["reward=brightness + 0.5*reader"], "reward 'brightness + 0.5*reader' cannot judge"),
        (["reward=source_closeness(frames=first)"], "has none: give prompts with a column image"),
        (["reward=brightness", "guard.judge=reader"], "reward 'reader' cannot judge evaluation.pr"),
    ],
)
def test_every_reward_that_needs_something_of_a_prompt_says_so(tmp_path, changes, says):
    quotes = text_file(tmp_path, *QUOTES)
    assert says in refused(*changes, f"prompts={quotes}", f"evaluation.prompts={quotes}")


def test_a_users_function_says_so_too():
    def length(images, prompts):
        return torch.tensor([float(len(prompt)) for prompt in prompts])

    def short(prompt):
        if len(prompt) > 5:
            raise ValueError("it is too long")

    length.check_prompt = short
    assert can_judge(length, ["a", "b"]) and not can_judge(length, ["a", "longer than five"])
    assert can_judge(catalog.named_reward("brightness"), ["anything"])
    assert can_judge(catalog.named_reward("ocr(engine=rapidocr)"), [Prompt("x", {"text": "A7"})])


def test_a_run_of_the_shipped_model_on_prompts_of_no_scene(command, tmp_path, tiny):
    """Its reader and judge, which know scenes alone, are left out of evaluations, and that is
    said."""
    quotes = text_file(tmp_path, *QUOTES)
    out = tmp_path / "run"
    changes = [
        *[change for change in tiny if "per_task" not in change],
        "updates=1",
        "reward=brightness",
        f"prompts={quotes}",
        f"evaluation.prompts={quotes}",
    ]
    done = command("train", "ddpo", *changes, "--run", out)
    assert done.code == 0, done.err
    assert "no reader and no judge in evaluations" in done.err + done.out
    result = json.loads((out / "result.json").read_text())
    assert "judge" not in result and result["reward"]["deterministic"] > 0
