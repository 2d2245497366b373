"""What measures a model asks it on the device, and hands pictures back on the CPU."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from scoretune.data.prompts import Prompts
from scoretune.diffusion import grids
from scoretune.evaluate.samples import act, sample
from scoretune.evaluate.scores import verdicts
from scoretune.policy import Policy
from scoretune.training import run_folder

pytestmark = pytest.mark.gpu
PROMPTS = Prompts(("a red seven", "two fives"), ("all", "all"))


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Where networks were asked."""
    asked: set[str] = set()
    estimate = Policy.estimate

    def listening(self: Policy, x: torch.Tensor, *rest: Any) -> Any:
        asked.add(x.device.type)
        return estimate(self, x, *rest)

    monkeypatch.setattr(Policy, "estimate", listening)
    return asked


COMMANDS: dict[str, Callable[[Path, Path], list[object]]] = {
    "sample": lambda run, out: ["sample", run, "a red seven", "--out", out / "x.png"],
    "sample a model": lambda run, out: ["sample", "scenes", "a six", "--out", out / "x.png"],
    "evaluate": lambda run, out: ["evaluate", run, "--json"],
    "gap": lambda run, out: ["gap", run, "--steps", 2, "--eta", "0,1", "--fine", 0, "--json"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_verb_asks_on_the_device(name, command, finished_run, tmp_path, devices):
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    outcome = command(*COMMANDS[name](run, tmp_path))
    assert outcome.code == 0, outcome.err
    assert devices == {"cuda"}
    if "--json" in COMMANDS[name](run, tmp_path):
        assert json.loads(outcome.out.strip().splitlines()[-1])


def test_pictures_and_values_come_back_to_the_cpu(finished_run):
    policy = run_folder.load(finished_run, torch.device("cuda"))
    times = grids.uniform(policy.backbone.process, 2)
    images = sample(policy, PROMPTS, times=times, seed=1)
    stochastic, kls = act(policy, PROMPTS, times=times, seed=1)
    assert images.device.type == stochastic.device.type == "cpu" and kls
    seen: list[str] = []

    def brightness(images: torch.Tensor, prompts: Any) -> torch.Tensor:
        seen.append(images.device.type)
        return images.flatten(1).mean(1)

    values = verdicts(images, PROMPTS, {"brightness": brightness})["brightness"]
    assert values.device.type == "cpu" and seen == ["cuda"]
    torch.testing.assert_close(values, images.flatten(1).mean(1))
