"""A run that is killed and resumed ends where an undisturbed one ends, to the bit.

In the suite three kills of a forked child. `SCORETUNE_TEN_KILLS=1 python -m pytest -s -k ten
tests/training/test_resume.py` kills a real `scoretune train` ten times, at random moments of its
life.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from scoretune import recipes
from scoretune.core import checkpoints, config
from scoretune.data.images import read_pictures
from scoretune.training import overrides, run_folder

RECIPES = ["score_as_action", "ddpo", "supervised"]


class Silent:
    """A watcher that says nothing."""

    def stage(self, text: str) -> None: ...
    def line(self, numbers: dict[str, Any]) -> None: ...


def configured(recipe: str, tiny: list[str], *changes: str) -> config.Run:
    return overrides.changed(recipes.named(recipe), [*tiny, *changes])


def launch(run: config.Run, folder: Path) -> dict[str, Any]:
    from scoretune.training.build import launch

    run_folder.record(run, folder, threads=1)
    return launch(run, folder, Silent())


def lines_of(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    whole = [text for text in path.read_text().splitlines(keepends=True) if text.endswith("\n")]
    return [json.loads(text) for text in whole]


def adapter_hash(folder: Path) -> str:
    exported = folder / "lora" / "pytorch_lora_weights.safetensors"
    return hashlib.sha256(exported.read_bytes()).hexdigest()


def assert_same_run(folder: Path, undisturbed: Path, updates: int) -> None:
    """Equal adapters, equal numbers, one line an update; only the clock may differ."""
    assert adapter_hash(folder) == adapter_hash(undisturbed)
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        ours, theirs = (
            [{k: v for k, v in line.items() if k != "seconds"} for line in lines_of(f / name)]
            for f in (folder, undisturbed)
        )
        assert ours == theirs, name
    assert [line["update"] for line in lines_of(folder / "metrics.jsonl")] == list(
        range(1, updates + 1)
    )
    ours, theirs = (json.loads((f / "result.json").read_text()) for f in (folder, undisturbed))
    for result in (ours, theirs):
        del result["seconds"], result["run"]
    assert ours == theirs


# ---------------------------------------------------------------------------- three kills


def killed_child(run: config.Run, folder: Path, due: Callable[[], bool], delay: float) -> int:
    """Launch in a forked child and SIGKILL it `delay` seconds after `due`; its exit code."""
    child = multiprocessing.get_context("fork").Process(target=launch, args=(run, folder))
    child.start()
    while child.is_alive() and not due():
        time.sleep(0.002)
    time.sleep(delay)
    if child.is_alive():
        os.kill(child.pid, signal.SIGKILL)
    child.join()
    return child.exitcode or 0


@pytest.mark.parametrize("recipe", RECIPES)
def test_three_kills_change_nothing(tmp_path, tiny, recipe, monkeypatch):
    monkeypatch.setattr(
        "scoretune.training.methods.read_pictures", partial(read_pictures, count=60)
    )
    updates = 6 if recipe == "score_as_action" else 4
    run = configured(recipe, tiny, f"updates={updates}", "evaluation.every=2")
    undisturbed, folder = tmp_path / "undisturbed", tmp_path / "killed"
    launch(run, undisturbed)
    chance = random.Random(recipe)
    kills, log = 0, folder / "metrics.jsonl"
    for _ in range(3):
        goal = min(updates - 2, len(lines_of(log)) + chance.choice([0, 1]))
        exit_code = killed_child(
            run, folder, lambda goal=goal: len(lines_of(log)) >= goal, chance.uniform(0, 0.1)
        )
        kills += exit_code == -signal.SIGKILL
    launch(run, folder)
    assert kills >= 2  # one may have come too late
    assert_same_run(folder, undisturbed, updates)


def test_a_kill_while_saving(tmp_path, tiny, monkeypatch):
    """Killed between writing a checkpoint aside and giving it its name."""
    run = configured("ddpo", tiny, "updates=3")
    undisturbed, folder = tmp_path / "undisturbed", tmp_path / "killed"
    launch(run, undisturbed)
    rename, seen = os.rename, []

    def fatal(*arguments: Any) -> None:
        seen.append(1)
        if len(seen) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", fatal)
        assert killed_child(run, folder, lambda: False, 0) == -signal.SIGKILL
    assert checkpoints.latest(folder / "checkpoints").name == "step-00000001"
    assert len(lines_of(folder / "metrics.jsonl")) == 2  # update 2 is logged, and will be again
    launch(run, folder)
    assert_same_run(folder, undisturbed, 3)


# ---------------------------------------------------------------------------- going on


def test_full_fine_tuning_resumes_too(tmp_path, tiny):
    run = configured("ddpo", tiny, "model.rank=0")
    launch(run, tmp_path / "undisturbed")
    first = configured("ddpo", tiny, "model.rank=0", "updates=1")
    launch(first, tmp_path / "stopped")
    (tmp_path / "stopped" / "run.json").unlink()  # the same run, had it been stopped after one
    launch(run, tmp_path / "stopped")
    ours, theirs = (
        checkpoints.load(checkpoints.latest(tmp_path / name / "checkpoints"))["policy"]
        for name in ("stopped", "undisturbed")
    )
    assert all(bool((ours[name] == theirs[name]).all()) for name in theirs)
    results = [
        json.loads((tmp_path / name / "result.json").read_text())
        for name in ("stopped", "undisturbed")
    ]
    assert results[0]["judge"] == results[1]["judge"]  # the base is the untouched model's


@pytest.mark.parametrize(("recipe", "critic"), [("score_as_action", True), ("ddpo", False)])
def test_a_trust_region_resumes_too(tmp_path, tiny, recipe, critic):
    """Its coefficient has adapted by the time it is saved, and the next update is under it."""
    trusting = "objective.trust_region=0.5"  # hardly anything moves so far: the penalty halves
    whole, once = (
        configured(recipe, tiny, trusting, f"updates={n}", "optimiser.decay=none") for n in (3, 1)
    )
    stopped = tmp_path / "stopped"
    launch(whole, tmp_path / "whole")
    launch(once, stopped)
    (stopped / "run.json").unlink()  # the same run, had it been stopped after one
    saved = checkpoints.load(checkpoints.latest(stopped / "checkpoints"))
    assert saved["trust"] == {"coefficient": 0.5}
    assert ("critic" in saved["source"]["credit"]) == critic
    launch(whole, stopped)
    ours, theirs = (
        checkpoints.load(checkpoints.latest(tmp_path / name / "checkpoints"))
        for name in ("stopped", "whole")
    )
    assert ours["trust"] == theirs["trust"] == {"coefficient": 0.125}
    assert adapter_hash(stopped) == adapter_hash(tmp_path / "whole")


def test_what_prompts_got_before_resumes_too(tmp_path, tiny):
    """Two rewards, each with a memory of its own, of prompts that come again."""
    (tmp_path / "prompts.txt").write_text("a seven\na red seven\n")
    running = ["objective.baseline=running", "objective.buffer=4", "objective.min_count=3"]
    changes = [f"prompts={tmp_path / 'prompts.txt'}", "reward=reader + 0.5*brightness", *running]
    changes += ["objective.combine=advantages", "sizes.prompts=2", "optimiser.decay=none"]
    whole, once = (configured("ddpo", tiny, *changes, f"updates={n}") for n in (3, 1))
    stopped = tmp_path / "stopped"
    launch(whole, tmp_path / "whole")
    launch(once, stopped)
    (stopped / "run.json").unlink()  # the same run, had it been stopped after one
    saved = checkpoints.load(checkpoints.latest(stopped / "checkpoints"))["source"]["credit"]
    assert set(saved["memories"]) == {"reader", "brightness"}
    assert [len(got) for got in saved["memories"]["reader"].values()] == [2, 2]
    launch(whole, stopped)
    assert adapter_hash(stopped) == adapter_hash(tmp_path / "whole")
    lines, theirs = (lines_of(tmp_path / n / "metrics.jsonl") for n in ("stopped", "whole"))
    assert [line | {"seconds": 0} for line in lines] == [line | {"seconds": 0} for line in theirs]
    assert [line["own_history"] for line in lines] == [0.0, 1.0, 1.0]
    for line in lines:
        parts = line["reward/reader"] + line["reward/brightness"]
        assert parts == pytest.approx(line["reward"], abs=1e-6)


def test_a_finished_run_resumed_changes_nothing(tmp_path, tiny):
    run = configured("ddpo", tiny, "evaluation.every=1")
    folder = tmp_path / "run"
    launch(run, folder)
    before = {n: (folder / n).read_text() for n in ("metrics.jsonl", "evaluations.jsonl")}
    weights = adapter_hash(folder)
    launch(run, folder)
    assert (folder / "metrics.jsonl").read_text() == before["metrics.jsonl"]
    updates = [line["update"] for line in lines_of(folder / "evaluations.jsonl")]
    assert updates == [0, 1, 2]
    assert adapter_hash(folder) == weights


def test_another_seed_is_another_run(tmp_path, tiny):
    for seed in (0, 1):
        launch(configured("ddpo", tiny, f"seed={seed}"), tmp_path / str(seed))
    assert adapter_hash(tmp_path / "0") != adapter_hash(tmp_path / "1")


# ---------------------------------------------------------------------------- ten kills

TRAIN = [sys.executable, "-c", "from scoretune.cli import main; main()", "train"]


@pytest.mark.slow
@pytest.mark.skipif("SCORETUNE_TEN_KILLS" not in os.environ, reason="SCORETUNE_TEN_KILLS=1")
def test_ten_kills_of_the_real_command(tmp_path, tiny):
    updates = 24
    changes = [*tiny, f"updates={updates}", "evaluation.every=8"]
    changes += ["sizes.group=4", "sampling.steps=5"]
    undisturbed, folder = tmp_path / "undisturbed", tmp_path / "killed"
    fresh = [*TRAIN, "score_as_action", *changes, "--run"]
    subprocess.run([*fresh, str(undisturbed)], check=True, capture_output=True)
    chance, log, kills = random.Random(time.time()), folder / "metrics.jsonl", 0
    command = [*fresh, str(folder)]
    while kills < 10:
        done = len(lines_of(log))
        goal = min(updates - 1, done + chance.choice([-1, 0, 1, 2, 3, 4]))
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(chance.uniform(0, 4) if goal < done else 0)  # some die while they start
        while process.poll() is None and len(lines_of(log)) < goal:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.3))
        process.kill()
        kills += process.wait() == -signal.SIGKILL
        newest = checkpoints.latest(folder / "checkpoints")
        saved = newest.name if newest else "nothing saved"
        print(f"kill {kills}: {len(lines_of(log))} lines, {saved}")
        if (folder / "run.json").exists():
            command = [*TRAIN, "--resume", str(folder)]
    subprocess.run([*TRAIN, "--resume", str(folder)], check=True, capture_output=True)
    print(f"adapter {adapter_hash(folder)[:16]}, undisturbed {adapter_hash(undisturbed)[:16]}")
    assert_same_run(folder, undisturbed, updates)


# ------------------------------------------------------------------------------- Ctrl-C


def test_ctrl_c_ends_the_update_and_keeps_it(tmp_path, tiny):
    """Nothing that was learned is lost, however rarely the run saves."""
    run = configured("ddpo", tiny, "updates=4", "checkpoints.every=100")
    whole = launch(run, tmp_path / "whole")

    class Impatient(Silent):
        def line(self, numbers: dict[str, Any]) -> None:
            if numbers.get("update") == 2:
                os.kill(os.getpid(), signal.SIGINT)

    from scoretune.training.build import launch as begin

    folder, before = tmp_path / "run", signal.getsignal(signal.SIGINT)
    run_folder.record(run, folder, threads=1)
    with pytest.raises(KeyboardInterrupt):
        begin(run, folder, Impatient())
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["step-00000002"]
    assert signal.getsignal(signal.SIGINT) is before
    assert begin(run, folder, Silent())["network_evaluations"] == whole["network_evaluations"]
    assert_same_run(folder, tmp_path / "whole", 4)


def test_a_second_ctrl_c_does_not_wait():
    from scoretune.training.stopping import Stopping

    said: list[str] = []
    stopping = Stopping(lambda update: None, said.append)

    def interrupted_twice() -> None:
        with stopping.listening():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
            assert said == ["stopping after this update; Ctrl-C again stops at once"]
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)

    with pytest.raises(KeyboardInterrupt):
        interrupted_twice()
