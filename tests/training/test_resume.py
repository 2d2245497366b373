"""A run that is killed and resumed ends where an undisturbed one ends, to the bit.

A kill of a forked child while it saves, and each thing that changes while a run trains is restored
once; `test_from_data.py` kills a child at three moments of another run. The slow ones kill runs of
many recipes, and a real `scoretune train` ten times, at random moments.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import judged
from data_runs import killed_child, launch, lines_of
from scoretune import recipes
from scoretune.core import checkpoints, config, files
from scoretune.core.errors import UserError
from scoretune.data.images import read_pictures
from scoretune.training import overrides, run_folder
from scoretune.training.hooks import Silent
from scoretune.training.progress import Progress

FOUR = ("updates=4", "evaluation.every=2", "checkpoints.keep=4")


def configured(recipe: str, small: list[str], *changes: str) -> config.Run:
    if recipe in judged.RECIPES:
        small = [change for change in small if not change.startswith("sizes.")]
        changes = ("sizes.batch=2", *changes)
    return overrides.changed(recipes.named(recipe), [*small, *changes])


@pytest.fixture(scope="module")
def undisturbed(small, tmp_path_factory) -> Path:
    """A run of DDPO over four updates that nothing disturbed, to be read only."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    launch(configured("ddpo", small, *FOUR), folder)
    return folder


@pytest.fixture
def few_pictures(monkeypatch) -> None:
    """Sixty pictures to learn from instead of thousands."""
    monkeypatch.setattr(
        "scoretune.training.objectives.matching.read_pictures", partial(read_pictures, count=60)
    )


def stopped_after(update: int, whole: Path, folder: Path) -> dict[str, Any]:
    """A copy of the run `whole` as a kill after `update` leaves it; what its checkpoint holds."""
    shutil.copytree(whole, folder)
    for later in (folder / "checkpoints").glob("step-*"):
        if int(later.name.removeprefix("step-")) > update:
            shutil.rmtree(later)
    shutil.rmtree(folder / "lora", ignore_errors=True)
    (folder / "result.json").unlink()
    return saved_last(folder)


def saved_last(folder: Path) -> dict[str, Any]:
    """What the newest checkpoint of a run holds."""
    return checkpoints.load(checkpoints.latest(folder / "checkpoints"))


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


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["score_as_action", "ddpo", "supervised", "dpo"])
def test_three_kills_change_nothing(tmp_path, small, recipe, few_pictures):
    """Five of one that learns from pairs."""
    of_pairs = [f"data={judged.pairs_folder(tmp_path / 'pairs')}"] if recipe == "dpo" else []
    updates = 10 if of_pairs else 4
    run = configured(recipe, small, f"updates={updates}", "evaluation.every=2", *of_pairs)
    undisturbed, folder = tmp_path / "undisturbed", tmp_path / "killed"
    launch(run, undisturbed)
    chance = random.Random(recipe)
    kills, log = 0, folder / "metrics.jsonl"
    for _ in range(5 if of_pairs else 3):
        goal = min(updates - 2, len(lines_of(log)) + chance.choice([0, 1]))
        exit_code = killed_child(
            run, folder, lambda goal=goal: len(lines_of(log)) >= goal, chance.uniform(0, 0.1)
        )
        kills += exit_code == -signal.SIGKILL
    launch(run, folder)
    assert kills >= (4 if of_pairs else 2)  # one may have come too late
    assert_same_run(folder, undisturbed, updates)


RANKED = [
    *("sizes.prompts=2", "sizes.group=3", "sizes.epochs=2", "objective.reference=acting"),
    *("objective.preset=rainbow", "objective.dispersion=votes", "objective.ranking.label=votes"),
]
"""Votes, times, noise and the reference are drawn anew every update."""


@pytest.mark.slow
def test_five_kills_of_online_dpo_change_nothing(tmp_path, small):
    updates = 7
    run = configured("online_dpo", small, *RANKED, f"updates={updates}", "evaluation.every=2")
    undisturbed, folder = tmp_path / "undisturbed", tmp_path / "killed"
    launch(run, undisturbed)
    chance, log = random.Random(15), folder / "metrics.jsonl"
    for goal in range(1, 6):
        exit_code = killed_child(
            run, folder, lambda goal=goal: len(lines_of(log)) >= goal, chance.uniform(0, 0.2)
        )
        assert exit_code == -signal.SIGKILL
        print(f"kill {goal}: {len(lines_of(log))} of {updates} updates were logged")
    launch(run, folder)
    print(f"adapter {adapter_hash(folder)[:16]}, undisturbed {adapter_hash(undisturbed)[:16]}")
    assert_same_run(folder, undisturbed, updates)


def test_a_kill_while_saving(tmp_path, small, monkeypatch, undisturbed):
    """Killed between writing a checkpoint aside and giving it its name."""
    run, folder = configured("ddpo", small, *FOUR), tmp_path / "killed"
    rename, renames = os.rename, []

    def fatal(*arguments: Any) -> None:
        renames.append(1)
        if len(renames) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", fatal)
        assert killed_child(run, folder, lambda: False) == -signal.SIGKILL
    assert checkpoints.latest(folder / "checkpoints").name == "step-00000001"
    assert len(lines_of(folder / "metrics.jsonl")) == 2  # update 2 is logged, and will be again
    launch(run, folder)
    assert_same_run(folder, undisturbed, 4)


# ---------------------------------------------------------------------------- going on


def test_full_fine_tuning_resumes_too(tmp_path, small):
    run = configured("ddpo", small, "model.rank=0")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    launch(run, whole)
    stopped_after(1, whole, stopped)
    launch(run, stopped)
    ours, theirs = (saved_last(folder)["policy"] for folder in (stopped, whole))
    assert ours.keys() == theirs.keys()
    assert all(bool((ours[name] == theirs[name]).all()) for name in theirs)
    ours, theirs = (json.loads((f / "result.json").read_text()) for f in (stopped, whole))
    assert ours["judge"] == theirs["judge"]  # the base is the untouched model's


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("online_dpo", RANKED),
        pytest.param("d3po", ["objective.ranking.label=votes"], marks=pytest.mark.slow),
        pytest.param("spo", ["objective.threshold=0", "objective.skip=0"], marks=pytest.mark.slow),
    ],
)
def test_preferences_among_samples_resume_too(tmp_path, small, recipe, changes):
    run = configured(recipe, small, *changes)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    launch(run, whole)
    stopped_after(1, whole, stopped)
    launch(run, stopped)
    assert_same_run(stopped, whole, 2)


def test_learning_from_pairs_resumes_too(tmp_path, small):
    """With what KTO compares with, which follows the updates, and what the guard has seen."""
    data = f"data={judged.pairs_folder(tmp_path / 'pairs')}"
    run = configured("kto", small, data, "updates=3", "checkpoints.keep=3")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    launch(run, whole)
    state = stopped_after(2, whole, stopped)
    assert state["trust"]["level"] != 0
    assert len(state["guard"]["errors"]) == 2
    launch(run, stopped)
    assert_same_run(stopped, whole, 3)


def test_learning_from_pictures_resumes_too(tmp_path, small, few_pictures):
    """Its source's place in the data is its generator's, which the checkpoint holds."""
    run = configured("supervised", small)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    launch(run, whole)
    assert stopped_after(1, whole, stopped)["source"] is not None
    launch(run, stopped)
    assert_same_run(stopped, whole, 2)


@pytest.mark.parametrize(
    ("recipe", "critic"),
    [("score_as_action", True), pytest.param("ddpo", False, marks=pytest.mark.slow)],
)
def test_a_trust_region_resumes_too(tmp_path, small, recipe, critic):
    """Its coefficient has adapted by the time it is saved, and the next update is under it."""
    trusting = "objective.trust_region=0.5"  # hardly anything moves so far: the penalty halves
    run = configured(recipe, small, trusting, "updates=2", "checkpoints.keep=2")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    launch(run, whole)
    saved = stopped_after(1, whole, stopped)
    assert saved["trust"]["coefficient"] < 0.6
    assert ("critic" in saved["source"]["credit"]) == critic
    launch(run, stopped)
    coefficients = [saved_last(folder)["trust"]["coefficient"] for folder in (stopped, whole)]
    assert coefficients[0] == coefficients[1] < saved["trust"]["coefficient"]
    assert_same_run(stopped, whole, 2)


def test_what_prompts_got_before_resumes_too(tmp_path, small):
    """Two rewards, each with a memory of its own, of prompts that come again."""
    (tmp_path / "prompts.txt").write_text("a seven\na red seven\n")
    running = ["objective.baseline=running", "objective.buffer=4", "objective.min_count=3"]
    changes = [f"prompts={tmp_path / 'prompts.txt'}", "reward=reader + 0.5*brightness", *running]
    changes += ["objective.combine=advantages", "sizes.prompts=2", "checkpoints.keep=3"]
    run = configured("ddpo", small, *changes, "updates=3")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    launch(run, whole)
    memories = stopped_after(1, whole, stopped)["source"]["credit"]["memories"]
    assert set(memories) == {"reader", "brightness"}
    assert [len(rewards) for rewards in memories["reader"].values()] == [2, 2]
    launch(run, stopped)
    assert_same_run(stopped, whole, 3)
    lines = lines_of(stopped / "metrics.jsonl")
    assert [line["own_history"] for line in lines] == [0.0, 1.0, 1.0]
    for line in lines:
        parts = line["reward/reader"] + line["reward/brightness"]
        assert parts == pytest.approx(line["reward"], abs=1e-6)


def test_a_finished_run_resumed_changes_nothing(tmp_path, small, undisturbed):
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder)
    launch(configured("ddpo", small, *FOUR), folder)
    assert (folder / "metrics.jsonl").read_text() == (undisturbed / "metrics.jsonl").read_text()
    updates = [line["update"] for line in lines_of(folder / "evaluations.jsonl")]
    assert updates == [0, 2, 4]
    assert_same_run(folder, undisturbed, 4)


@pytest.mark.slow  # quick in `test_from_data.py`
def test_another_seed_is_another_run(tmp_path, small, undisturbed):
    launch(configured("ddpo", small, *FOUR, "seed=1"), tmp_path / "run")
    assert adapter_hash(tmp_path / "run") != adapter_hash(undisturbed)


# ---------------------------------------------------------------- what a checkpoint was made with


def progress_with(folder: Path, settings: dict[str, Any], **options: Any) -> Progress:
    """Of a run of ten updates; nobody learns."""
    nobody: Any = None
    return Progress(folder, nobody, {}, 10, 2, settings, **options)


def test_settings_that_differ_are_named_with_both_values(tmp_path):
    before = {"seed": 0, "updates": 8, "model.targets": ["a"], "sizes.gone": 3}
    compare = progress_with(tmp_path, {}).__class__._compare
    newest = Path("step-00000004")

    def refused(**changes: Any) -> str:
        new = {**before, "updates": 10, "model.targets": ("a",), "optimiser.new": 1, **changes}
        with pytest.raises(UserError) as caught:
            compare(progress_with(tmp_path, new), newest, before, 4)
        compare(progress_with(tmp_path, new, accept_changes=True), newest, before, 4)
        assert len(str(caught.value)) <= 300
        return str(caught.value)

    text = refused(seed=5)
    assert text.startswith("step-00000004 was made with other settings than run.json has now: ")
    assert "now: seed 0 -> 5; put them back" in text and "--accept-changes" in text
    assert "updates 8 -> 7" in refused(updates=7)
    text = refused(**{"model.targets": ("b" * 99, "c"), "seed": 1, "sizes.gone": 4, "updates": 7})
    assert "seed 0 -> 1, updates 8 -> 7" in text and text.count("->") == 3 and " and 1 more" in text
    plain = {**before, "updates": 10, "model.targets": ("a",)}
    compare(progress_with(tmp_path, plain), newest, before, 4)  # more updates
    compare(progress_with(tmp_path, plain), newest, {}, 4)  # an older checkpoint
    for accept in (False, True):
        with pytest.raises(UserError, match="updates=10 is less than the 11 that are done in"):
            compare(progress_with(tmp_path, plain, accept_changes=accept), newest, before, 11)


def test_what_changed_is_refused_or_accepted_and_then_acts(tmp_path, small, undisturbed):
    from scoretune.training import run

    folder = tmp_path / "run"
    assert stopped_after(2, undisturbed, folder)["settings"]["seed"] == 0
    changes = ["optimiser.learning_rate=0.005", "optimiser.decay=none"]
    other = configured("ddpo", small, *FOUR, *changes)
    recorded = (folder / "run.json").read_text()

    def begun() -> None:
        run_folder.record(other, folder, 1, resumed=True)

    with pytest.raises(UserError, match=r"optimiser.learning_rate 0.003 -> 0.005"):
        run.launch(other, folder, Silent(), begun=begun)
    assert (folder / "run.json").read_text() == recorded and saved_last(folder)["update"] == 2
    run.launch(other, folder, Silent(), begun=begun, accept_changes=True)
    saved = saved_last(folder)
    assert saved["update"] == 4 and saved["optimiser"]["param_groups"][0]["lr"] == 0.005
    assert run_folder.recorded(folder) == other
    lines = lines_of(folder / "metrics.jsonl")
    assert [line["update"] for line in lines] == [1, 2, 3, 4]


def test_more_updates_may_be_asked_for(tmp_path, small, undisturbed):
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder)
    assert run_folder.resumed(folder, ["updates=5"]).updates == 5
    with pytest.raises(UserError, match="leave out 'seed=1', or add --accept-changes"):
        run_folder.resumed(folder, ["seed=1"])
    assert run_folder.resumed(folder, ["seed=1"], accept_changes=True).seed == 1


def test_a_checkpoint_of_something_else_is_told_before_training(tmp_path, small, undisturbed):
    """Without a record of its settings, as older versions wrote it."""
    folder = tmp_path / "run"
    state = stopped_after(2, undisturbed, folder)
    del state["settings"]
    checkpoints.save(folder / "checkpoints", 2, state)
    for recipe, change, said in (
        ("ddpo", "model.rank=8", "holds other layers than this run trains: same model.rank"),
        ("score_as_action", "seed=0", r"step-00000002 does not fit what run.json sets up \(KeyEr"),
    ):
        from scoretune.training import run

        with pytest.raises(UserError, match=said):
            run.launch(configured(recipe, small, *FOUR, change), folder, Silent())
    launch(configured("ddpo", small, *FOUR), folder)  # and its own run goes on as before
    assert_same_run(folder, undisturbed, 4)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "base.json",
            "{",
            r"base.json', what was measured before training, cannot be read \(JSOND",
        ),
        ("base.json", '{"tasks": [], "values": {}, "line": {}}', r"cannot be read \(KeyError"),
        ("metrics.jsonl", '[1]\n{"update": 1}\n', r"line 1 of .*metrics.jsonl' cannot be read"),
    ],
)
def test_what_a_run_wrote_is_read_before_it_goes_on(
    tmp_path, small, undisturbed, name, content, said
):
    folder = tmp_path / "run"
    stopped_after(2, undisturbed, folder)
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=said):
        launch(configured("ddpo", small, *FOUR), folder)
    assert saved_last(folder)["update"] == 2 and (folder / name).read_text() == content


def test_only_a_last_line_may_be_cut_short(tmp_path):
    log = tmp_path / "metrics.jsonl"
    log.write_bytes(b'{"update": 1}\n{"update": 2}\n{"upd\xff')
    files.forget_after(log, 1)
    assert log.read_text() == '{"update": 1}\n'


# ---------------------------------------------------------------------------- ten kills

TRAIN = [sys.executable, "-c", "from scoretune.cli import main; main()", "train"]


@pytest.mark.slow
def test_ten_kills_of_the_real_command(tmp_path, small):
    updates = 24
    changes = [*small, f"updates={updates}", "evaluation.every=8"]
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


def test_ctrl_c_ends_the_update_and_keeps_it(tmp_path, small, undisturbed):
    """Nothing that was learned is lost, however rarely the run saves."""
    run = configured("ddpo", small, *FOUR, "checkpoints.every=100")

    class Impatient(Silent):
        def line(self, numbers: dict[str, Any]) -> None:
            if numbers.get("update") == 2 and "judge" not in numbers:
                os.kill(os.getpid(), signal.SIGINT)

    folder, before = tmp_path / "run", signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        launch(run, folder, Impatient())
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["step-00000002"]
    assert signal.getsignal(signal.SIGINT) is before
    launch(run, folder)
    assert_same_run(folder, undisturbed, 4)


def test_a_second_ctrl_c_does_not_wait():
    from scoretune.training.hooks import Stopping

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
