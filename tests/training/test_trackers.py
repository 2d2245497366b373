"""Trackers: what they are told, how a resumed run goes on in them, and that they stop no run."""

from __future__ import annotations

import importlib.machinery
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scoretune import recipes
from scoretune.core.config import Run
from scoretune.core.errors import UserError
from scoretune.training import overrides, trackers

LINE = {
    "update": 2,
    "sampler": "ddim, 2 steps",
    "chain_kl": 0.25,
    "reward": {"deterministic": 0.5, "stochastic": 0.4},
    "judge": {"overall": 0.75, "tasks": {"two": 1.0}},
    "nothing": None,
}
TOLD = {
    "evaluation/chain_kl": 0.25,
    "evaluation/reward/deterministic": 0.5,
    "evaluation/reward/stochastic": 0.4,
    "evaluation/judge/overall": 0.75,
    "evaluation/judge/tasks/two": 1.0,
}


def tracked(*names: str) -> Run:
    return overrides.changed(recipes.named("ddpo"), [f"tracking.trackers={','.join(names)}"])


def started(run: Run, folder: Path, first: int, **options: Any) -> trackers.Trackers:
    """The trackers of a run, given its settings."""
    return trackers.start(run.tracking, run.model_dump(), folder, first, **options)


def read(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    return found


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    return [(each.step, each.value) for each in read(folder).Scalars(name)]


class Service(ModuleType):
    """Stands for wandb or trackio: keeps what it is told."""

    def __init__(self, name: str, fails_at: int | None = None) -> None:
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None, origin=f"/site/{name}")
        self.opened: list[dict] = []
        self.lines: list[tuple[int, dict]] = []
        self.fails_at, self.finished = fails_at, 0

    def init(self, **named):
        self.opened.append(named)
        return SimpleNamespace(log=self.log, finish=self.finish)

    def log(self, values, step=None):
        if step == self.fails_at:
            raise RuntimeError("the server is gone\nand more")
        self.lines.append((step, values))

    def finish(self):
        self.finished += 1

    def Image(self, array, caption=None):
        return caption, array


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch):
    def make(name: str, fails_at: int | None = None) -> Service:
        made = Service(name, fails_at)
        monkeypatch.setitem(sys.modules, name, made)
        return made

    return make


def test_tensorboard_is_told_numbers_pictures_and_settings(tmp_path):
    told = started(tracked("tensorboard"), tmp_path, 0)
    told(1, {"reward": 0.5, "loss": 2.0})
    told(2, {"reward": 0.75})
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    told.evaluated(LINE, images, ["a", "b", "c"])
    told.finish()
    assert scalars(tmp_path, "train/reward") == [(1, 0.5), (2, 0.75)]
    assert scalars(tmp_path, "train/loss") == [(1, 2.0)]
    for name, value in TOLD.items():
        assert scalars(tmp_path, name) == [(2, pytest.approx(value))]
    tags = read(tmp_path).Tags()
    assert set(tags["scalars"]) == {*TOLD, "train/reward", "train/loss"}
    assert tags["images"] == ["evaluation/pictures"]
    assert read(tmp_path).Images("evaluation/pictures")[0].step == 2
    assert any(b"optimiser.learning_rate" in p.read_bytes() for p in tmp_path.rglob("events*"))


def test_a_resumed_run_goes_on_where_it_was_without_steps_twice(tmp_path):
    run = tracked("tensorboard")
    told = started(run, tmp_path, 0)
    told.evaluated({"update": 0, "reward": 0.0})
    for update in range(1, 6):
        told(update, {"reward": float(update)})
    told.evaluated({"update": 4, "reward": 4.0})  # then it was killed; the checkpoint is of 3
    again = started(run, tmp_path, 3)
    for update in range(4, 7):
        again(update, {"reward": 10.0 * update})
    again.evaluated({"update": 4, "reward": 40.0})
    again.evaluated({"update": 6, "reward": 60.0})
    again.finish()
    expected = [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0), (5, 50.0), (6, 60.0)]
    assert scalars(tmp_path, "train/reward") == expected
    assert scalars(tmp_path, "evaluation/reward") == [(0, 0.0), (4, 40.0), (6, 60.0)]
    done = started(run, tmp_path, 6)  # resumed though it had ended: measured once more
    done.evaluated({"update": 6, "reward": 60.0})
    done.finish()
    assert scalars(tmp_path, "evaluation/reward") == [(0, 0.0), (4, 40.0), (6, 60.0)]


def test_a_run_that_begins_again_without_a_checkpoint_replaces_what_it_told(tmp_path):
    run = tracked("tensorboard")
    for value in (1.0, 2.0):
        told = started(run, tmp_path, 0)
        told.evaluated({"update": 0, "reward": value})
        told(1, {"reward": value})
        told.finish()
    assert scalars(tmp_path, "train/reward") == [(1, 2.0)]
    assert scalars(tmp_path, "evaluation/reward") == [(0, 2.0)]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_service_keeps_one_run_and_hears_of_no_step_twice(service, tmp_path, name):
    fake, run, folder = service(name), tracked(name), tmp_path / "mine"
    folder.mkdir()
    first = started(run, folder, 0)
    for update in (1, 2, 3):
        first(update, {"reward": float(update)})
    images = torch.full((2, 3, 4, 4), 0.5)
    first.evaluated(LINE, images, ["a", "b"])
    again = started(run, folder, 1)
    for update in (2, 3, 4):
        again(update, {"reward": 10.0 * update})
    again.evaluated(LINE, images, ["a", "b"])
    again.finish()
    assert fake.finished == 1
    opened, reopened = fake.opened
    assert opened["project"] == "scoretune"
    assert opened["resume"] == "allow"
    assert opened["name"] == reopened["name"]
    assert opened["name"].startswith("mine-")
    assert opened["config"]["optimiser.learning_rate"] == run.optimiser.learning_rate
    assert opened["config"]["model.revision"] == "null"
    if name == "wandb":
        assert opened["id"] == reopened["id"]
        assert opened["dir"] == str(folder)
    rewards = [(s, v["train/reward"]) for s, v in fake.lines if "train/reward" in v]
    assert rewards == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]
    assert [v for _, v in fake.lines if "evaluation/chain_kl" in v] == [TOLD]
    shown = [each for _, v in fake.lines for k, each in v.items() if "picture" in k]
    captions = [c for each in shown for c, _ in (each if isinstance(each, list) else [each])]
    assert captions == ["a", "b"]
    caption, array = shown[0][0] if name == "wandb" else shown[0]
    assert caption == "a"
    np.testing.assert_array_equal(array, np.full((4, 4, 3), 128, np.uint8))


def test_a_tracker_that_fails_is_named_once_and_the_others_go_on(service, tmp_path):
    fake, said = service("wandb", fails_at=2), []
    told = started(tracked("wandb", "tensorboard"), tmp_path, 0, say=said.append)
    for update in (1, 2, 3):
        told(update, {"reward": float(update)})
    told.evaluated(LINE)
    told.finish()
    assert said == [
        "the tracker wandb failed (the server is gone): the run goes on without it",
    ]
    assert [step for step, _ in fake.lines] == [1]
    assert scalars(tmp_path, "train/reward") == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_a_tracker_that_cannot_start_is_left_out(service, tmp_path, monkeypatch, capsys):
    fake = service("wandb")
    monkeypatch.setattr(fake, "init", lambda **named: 1 / 0)
    told = started(tracked("wandb"), tmp_path, 0)
    told(1, {"reward": 1.0})
    assert capsys.readouterr().err == (
        "scoretune: the tracker wandb failed (division by zero): the run goes on without it\n"
    )
    assert not list(tmp_path.iterdir())


def test_what_cannot_track_is_said_in_a_line(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="unknown tracker 'tensorbord': did you mean 'tensorboard'"):
        trackers.check(tracked("tensorbord").tracking)
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"wandb is not installed: pip install 'scoretune\[track\]'"
    ):
        trackers.check(tracked("wandb").tracking)
    trackers.check(tracked().tracking)


def test_a_mere_folder_of_that_name_is_no_tracker(monkeypatch, tmp_path):
    """wandb leaves a folder `wandb` behind, which Python takes for a package without code."""
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(UserError, match="not installed"):
        trackers.check(tracked("wandb").tracking)


def test_a_run_without_trackers_writes_nothing(tmp_path):
    told = started(tracked(), tmp_path, 0)
    told(1, {"reward": 1.0})
    told.evaluated(LINE, torch.zeros(1, 3, 4, 4), ["a"])
    told.finish()
    assert not list(tmp_path.iterdir())


def test_a_tree_of_settings_is_flat_text_and_numbers():
    tree = {"a": {"b": 1, "c": [1, 2], "d": {}}, "e": None, "f": True, "g": "x"}
    flat = {"a.b": 1, "a.c": "[1, 2]", "e": "null", "f": True, "g": "x"}
    assert trackers.flattened(tree) == flat
