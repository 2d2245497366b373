"""`scoretune sweep`: what it draws, how runs share a study, what a kill leaves, and its page."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from scoretune.commands import seeds as several
from scoretune.commands.sweep import budget, page, ranges, runs, study
from scoretune.commands.sweep.ranges import Choice, Range
from scoretune.commands.sweep.study import Plan
from scoretune.core.errors import UserError
from scoretune.training import settings_file
from scoretune.training.run_folder import record, recorded

RATE = "optimiser.learning_rate=1e-4..1e-2"


def plan_of(*words: str, **changes) -> Plan:
    space, fixed = ranges.space_of("ddpo", [RATE, *words])
    return replace(Plan("ddpo", tuple(fixed), space, "judge", 1, False, 0), **changes)


# ---------------------------------------------------------------------------------- ranges


def test_ranges_and_choices_are_read():
    words = [RATE, "objective.clip=0.1..0.3", "sizes.share=0.2..1:log", "sizes.minibatch=8..64"]
    space, fixed = ranges.space_of("ddpo", [*words, "model.rank=4|8", "updates=7"])
    assert fixed == ["updates=7"]
    assert space == (
        Range("optimiser.learning_rate", 1e-4, 1e-2, log=True, whole=False),
        Range("objective.clip", 0.1, 0.3, log=False, whole=False),
        Range("sizes.share", 0.2, 1.0, log=True, whole=False),
        Range("sizes.minibatch", 8.0, 64.0, log=False, whole=True),
        Choice("model.rank", (4, 8)),
    )
    linear, _ = ranges.space_of("ddpo", [RATE + ":linear"])
    assert not linear[0].log


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["updates=3"], "nothing is searched"),
        (["optimiser.learning_rate=1e-2..1e-4"], "is empty"),
        (["optimiser.learning_rate=small..large"], "cannot read the range"),
        (["optimiser.learning_rate=0..1:log"], "log scale has no 0"),
        (["optimiser.learning_rate=1e-4..1e-2:cubic"], "not 'cubic'"),
        (["optimiser.lr=1e-4..1e-2"], "unknown key"),
        (["sizes.share=0.5..2"], "less than or equal to 1"),
        (["model.rank=4|4"], "double choice"),
        (["model.rank=[1]|4"], "a choice is a number"),
        (["seed=1..5"], "--seeds N"),
        ([RATE, RATE], "searched twice"),
        (["objective.buffer=4..64"], "of no use here"),
    ],
)
def test_what_cannot_be_searched_is_told_in_one_line(words, what):
    with pytest.raises(UserError, match=what) as refusal:
        ranges.space_of("ddpo", words)
    assert len(str(refusal.value)) <= 300 and "\n" not in str(refusal.value)


def test_draws_follow_from_the_seed_and_the_number():
    space = plan_of("sizes.minibatch=1..4", "model.rank=4|8").space
    found = [ranges.drawn(space, 5, number) for number in range(400)]
    assert found == [ranges.drawn(space, 5, number) for number in range(400)]
    assert found[0] != ranges.drawn(space, 6, 0)
    logs = [math.log10(values["optimiser.learning_rate"]) for values in found]
    assert -4 <= min(logs) < -3.9 and -2.1 < max(logs) <= -2
    assert sum(logs) / 400 == pytest.approx(-3, abs=4 * 2 / math.sqrt(12 * 400))
    for path, values in (("sizes.minibatch", (1, 2, 3, 4)), ("model.rank", (4, 8))):
        counts = [sum(v[path] == value for v in found) for value in values]
        expected = 400 / len(values)
        assert sum(counts) == 400
        assert max(abs(count - expected) for count in counts) < 4 * math.sqrt(expected)


# ----------------------------------------------------------------------------------- runs


class Killed(BaseException):
    """What stands for the end of a process."""


@pytest.fixture
def launched(monkeypatch):
    """Runs that only write what they would have measured: the rate on a log scale; updates 1 to 9
    at every third. Of `killed` runs the process ends at the first evaluation."""
    begun: list[Path] = []
    killed: list[bool] = []

    def launch(run, folder, watcher):
        begun.append(folder)
        for update in (0, 3, 6, 9):
            accuracy = -math.log10(run.optimiser.learning_rate) * update / 100 + run.seed / 1000
            line = {"update": update, "judge": {"overall": accuracy}}
            with (folder / "evaluations.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            watcher.stage("training")
            if killed:
                killed.pop()
                raise Killed
        (folder / "result.json").write_text("{}")

    monkeypatch.setattr(runs, "launch", launch)
    launch.begun, launch.killed = begun, killed
    return launch


def swept(folder: Path, plan: Plan, count: int) -> optuna.Study:
    """A sweep by this process alone."""
    url = f"sqlite:///{folder / 'study.db'}"
    made = study.opened(url, "s", plan)
    begun = study.orphans(made, str(folder.resolve()))
    study.add(made, plan, count)
    runs.work(runs.Share(url, "s", plan, folder), begun, nullcontext())
    return made


def test_runs_are_those_that_were_drawn_and_the_best_is_found(tmp_path, launched):
    plan = plan_of("model.rank=4|8", seeds=2)
    made = swept(tmp_path, plan, 6)
    assert [t.params for t in made.trials] == [ranges.drawn(plan.space, 0, n) for n in range(6)]
    best = study.ranked(made)[0]
    rates = [t.params["optimiser.learning_rate"] for t in made.trials]
    assert best.params["optimiser.learning_rate"] == min(rates)
    levels = best.user_attrs["levels"]  # seeds 0 and 1
    assert levels[1] == pytest.approx(levels[0] + 0.001) and best.value == sum(levels) / 2
    assert len(launched.begun) == 12
    swept(tmp_path, plan, 8)  # more of the same sweep: only what is new
    assert len(launched.begun) == 16
    with pytest.raises(UserError, match="another seeds"):
        study.opened(f"sqlite:///{tmp_path / 'study.db'}", "s", replace(plan, seeds=3))


def test_what_a_kill_leaves_is_gone_on_with(tmp_path, launched):
    plan = plan_of()
    launched.killed.append(True)
    with pytest.raises(Killed):
        swept(tmp_path, plan, 3)
    (left,) = launched.begun
    made = swept(tmp_path, plan, 3)
    assert launched.begun[1] == left, "in the same folder, from its checkpoint"
    assert [t.state for t in made.trials] == [TrialState.COMPLETE] * 3
    assert len(launched.begun) == 4
    elsewhere = tmp_path / "other"
    elsewhere.mkdir()
    assert study.orphans(made, str(elsewhere)) == []


def test_halving_gives_up_what_is_behind(tmp_path, launched):
    plan = plan_of("evaluation.every=3", "updates=9", halving=True)
    made = swept(tmp_path, plan, 9)
    states = [trial.state for trial in made.trials]
    assert TrialState.PRUNED in states and TrialState.COMPLETE in states
    rates = {t.params["optimiser.learning_rate"]: t.state for t in made.trials}
    assert rates[min(rates)] == TrialState.COMPLETE, "the best one is never behind"
    assert max(t.last_step for t in made.trials if t.state == TrialState.PRUNED) < 9


@pytest.mark.parametrize(
    ("recipe", "words", "updates", "every"),
    [  # an update of DDPO asks 1,280 + 640 times, of GRPO 640 times more (docs/costs.md)
        ("ddpo", ["updates=30", "evaluation.every=10"], 24, 8),
        ("ddpo", ["updates=30", "evaluation.every=10", "sizes.share=1"], 18, 6),
        ("ddpo", ["updates=30", "evaluation.every=0", "model.guidance=3"], 12, 0),
        ("grpo", ["updates=60", "evaluation.every=20"], 18, 6),
        ("grpo", ["updates=60", "evaluation.every=20", "objective.kl_weight=0"], 24, 8),
    ],
)
def test_a_budget_pays_for_as_many_updates_as_it_can(recipe, words, updates, every):
    run = settings_file.named(recipe, words)
    found = budget.words_within(run, 46_080)
    assert found == [f"updates={updates}", f"evaluation.every={every}"]


def test_runs_of_a_budget_have_its_updates(tmp_path, launched):
    plan = plan_of("updates=30", "evaluation.every=10", "sizes.share=0.5|1", evaluations=3_900)
    made = swept(tmp_path, plan, 4)
    updates = {0.5: 2, 1: 1}
    for trial in made.trials:
        run = recorded(tmp_path / "runs" / f"{trial.number:04d}" / "seed-0")
        assert run.updates == updates[trial.params["sizes.share"]]
        assert run.evaluation.every == 1
    written = page.write(made, plan, tmp_path)
    assert "each with 3,900 network evaluations" in written.read_text(encoding="utf-8")
    best = settings_file.named(str(tmp_path / "best.yaml"), [])
    assert best.updates == updates[study.ranked(made)[0].params["sizes.share"]]


def test_a_setting_that_fails_ends_no_sweep(tmp_path, launched, monkeypatch):
    def launch(run, folder, watcher):
        raise UserError("there is not enough memory")

    monkeypatch.setattr(runs, "launch", launch)
    plan = plan_of()
    made = swept(tmp_path, plan, 2)
    assert [trial.state for trial in made.trials] == [TrialState.FAIL] * 2
    text = page.write(made, plan, tmp_path).read_text()
    assert "there is not enough memory" in text and "2 failed" in text
    assert not (tmp_path / "best.yaml").exists()


def test_the_page_and_the_best_settings(tmp_path, launched):
    plan = plan_of("objective.clip=0.1..0.3", "updates=9", seeds=2)
    made = swept(tmp_path, plan, 8)
    text = page.write(made, plan, tmp_path).read_text()
    assert text.count("<polyline") == 8 and "8 finished" in text and "functional ANOVA" in text
    shares = study.importance(made, plan.space)
    assert next(iter(shares)) == "optimiser.learning_rate"
    assert sum(shares.values()) == pytest.approx(1)
    best = settings_file.named(str(tmp_path / "best.yaml"))
    assert best == ranges.settings_of("ddpo", plan.fixed, study.ranked(made)[0].params)
    assert best.updates == 9


# -------------------------------------------------------------------------------- command


def test_the_command_refuses_what_it_cannot_do(command, tmp_path):
    for words, what in (
        (["ddpo", RATE, "--by", "beauty"], "--by beauty"),
        (["ddpo", RATE, "--halving", "updates=2"], "--halving gives runs up"),
        (["ddpo", RATE, "--evaluations", "1900"], "asks the network 1,920 times"),
        (["dpo2", RATE], "unknown recipe"),
        (["ddpo", RATE, "--storage", "nonsense", "--out", tmp_path], "check the path or the URL"),
    ):
        outcome = command("sweep", *words)
        assert outcome.code == 2 and what in outcome.err, outcome.err
        assert len(outcome.err.strip()) <= 320 and outcome.err.count("\n") == 1


def test_seeds_of_one_recipe_give_intervals(command, tmp_path, monkeypatch):
    begun = []

    def train_run(run, home, threads, json_):
        begun.append(run.seed)
        record(run, home, threads)
        overall = {"overall": 0.5 + 0.1 * run.seed}
        result = {"judge": {"base": {"overall": 0.4}, "final": overall}}
        (home / "result.json").write_text(json.dumps(result))

    monkeypatch.setattr(several, "train_run", train_run)
    words = ["train", "ddpo", "reward=brightness", "seed=1", "--seeds", "3", "--run", tmp_path]
    found = json.loads(command(*words, "--json").out.splitlines()[-1])["results"]["judge after"]
    # 0.6, 0.7 and 0.8: 0.1/√3 times the 97.5 % point of Student's t with two degrees, 4.3027.
    assert found["mean"] == pytest.approx(0.7)
    assert found["high"] - found["mean"] == pytest.approx(0.1 / 3**0.5 * 4.3027, rel=1e-4)
    outcome = command(*words)
    assert begun == [1, 2, 3], "what is finished is not repeated"
    assert "judge after" in outcome.out and "0.700 [0.452, 0.948]" in outcome.out
    assert (tmp_path / "seeds.html").exists() and (tmp_path / "seeds.json").exists()
    assert "--seeds trains several" in command(*words, "--processes", "2").err


@pytest.mark.slow
def test_a_sweep_survives_the_kill_of_its_processes(tmp_path):
    """After a kill −9 of the parent, with which its processes end, the runs are as without."""
    tiny = ["updates=4", "sizes.prompts=2", "sizes.group=2", "sampling.steps=3"]
    tiny += ["evaluation.per_task=1", "evaluation.steps=2", "checkpoints.every=1"]
    tiny += ["evaluation.every=0", "guard.action=off", "--by", "reward"]
    words = [sys.executable, "-m", "scoretune", "sweep", "ddpo", RATE, *tiny, "--runs", "2"]

    def saved(name: str) -> int:
        return len(list((tmp_path / name / "runs").glob("*/*/checkpoints/step-*")))

    def swept_in(name: str, kills: int) -> dict[int, float]:
        line = [*words, "--jobs", "1", "--out", str(tmp_path / name)]
        for _ in range(kills):
            process, before = subprocess.Popen(line), saved(name)
            while process.poll() is None and saved(name) <= before:
                time.sleep(0.2)
            process.send_signal(signal.SIGKILL)
            process.wait()
            time.sleep(2)
        subprocess.run(line, check=True)
        made = study.opened(f"sqlite:///{tmp_path / name / 'study.db'}", name)
        return {trial.number: trial.value for trial in made.trials}

    killed = swept_in("killed", 1)
    assert len(killed) == 2 and len(set(killed.values())) == 2
    assert killed == swept_in("whole", 0)
