"""The runs of a sweep, each in a folder of its own, by a few processes that take turns."""

from __future__ import annotations

import json
import multiprocessing
import os
import shlex
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.trial import TrialState

from scoretune.commands.sweep import study as studies
from scoretune.commands.sweep.budget import words_within
from scoretune.commands.sweep.ranges import words_of
from scoretune.commands.sweep.study import Plan
from scoretune.core.config import Run
from scoretune.core.errors import UserError, one_line
from scoretune.training import settings_file
from scoretune.training.hooks import Silent
from scoretune.training.run import launch
from scoretune.training.run_folder import record

POLL = 5.0  # seconds between two looks at what the processes have done


class GivenUp(Exception):
    """A run that successive halving does not go on with."""


@dataclass
class Judged(Silent):
    """Tells the study what each evaluation of a run came to, and ends a run that is behind."""

    trial: optuna.Trial
    folder: Path
    by: str
    updates: int
    every: int

    def stage(self, text: str) -> None:
        if text != "training":
            return
        line = last_line(self.folder)
        if line is None or not line["update"]:
            return
        self.trial.report(level(line, self.by), line["update"] // self.every)
        if line["update"] < self.updates and self.trial.should_prune():
            raise GivenUp


def last_line(folder: Path) -> dict[str, Any] | None:
    """The last evaluation of a run."""
    path = folder / "evaluations.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return json.loads(lines[-1]) if lines else None


def level(line: dict[str, Any], by: str) -> float:
    """What an evaluation came to: `judge` and `reader` are accuracies, `reward` is through the
    deterministic sampler. Raises UserError where the run does not measure that."""
    if by not in line:
        known = ", ".join(name for name in ("judge", "reader", "reward") if name in line)
        raise UserError(f"these runs measure no {by}: give --by one of {known or 'nothing'}")
    return float(line[by]["deterministic" if by == "reward" else "overall"])


def sweep(
    url: str,
    name: str,
    plan: Plan,
    folder: Path,
    *,
    runs: int,
    jobs: int,
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> optuna.Study:
    """Run what waits, by so many processes; the study.

    What was stopped or killed in this folder goes on where it was. Nobody else may be at work in
    the folder; others may share the study.
    """
    study = studies.opened(url, name, plan)
    home = str(folder.resolve())
    with studies.storage_errors(url):
        begun = studies.orphans(study, home)
        studies.add(study, plan, runs)
    context = multiprocessing.get_context("spawn")
    turn = context.Lock()
    processes = [
        context.Process(
            target=_process, args=(Share(url, name, plan, folder), begun[i::jobs], turn)
        )
        for i in range(jobs)
    ]
    for process in processes:
        process.start()
    try:
        while any(process.is_alive() for process in processes):
            watch(_ended(study), runs)
            wait([process.sentinel for process in processes if process.is_alive()], POLL)
    except BaseException:  # Ctrl-C: each saves, and goes on another time
        for process in processes:
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, signal.SIGINT)
        for process in processes:
            process.join()
        raise
    watch(_ended(study), runs)
    if any(process.exitcode for process in processes):
        raise UserError(
            f"a process of the sweep ended badly ({[p.exitcode for p in processes]}): repeat the "
            "command to go on with what it left"
        )
    return study


def _ended(study: optuna.Study) -> int:
    return len(study.get_trials(deepcopy=False, states=studies.ENDED))


@dataclass(frozen=True)
class Share:
    """What a process of a sweep works on."""

    url: str
    name: str
    plan: Plan
    folder: Path


def _process(share: Share, begun: Sequence[int], turn: AbstractContextManager[Any]) -> None:
    """A process of the sweep."""
    os.setpgrp()  # the terminal tells the parent alone, which passes it on
    _end_with_parent()
    torch.set_num_threads(1)
    try:
        work(share, begun, turn)
    except KeyboardInterrupt:
        raise SystemExit(0) from None


def work(share: Share, begun: Sequence[int], turn: AbstractContextManager[Any]) -> None:
    """Go on with the runs that were begun, then take others until none waits; the `turn` of a
    process comes when no other one is about to take a run."""
    study = studies.opened(share.url, share.name, share.plan)
    for number in begun:
        _run(study, studies.adopted(study, number), share)
    while True:
        with turn:  # else two find the same last one waiting
            if not studies.waiting(study):
                return
            trial = studies.taken(study, share.plan.space)
            trial.set_user_attr("home", str(share.folder.resolve()))
        _run(study, trial, share)


def _end_with_parent() -> None:
    """A process whose parent was killed ends too: what it was doing goes on another time."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _run(study: optuna.Study, trial: optuna.Trial, share: Share) -> None:
    """All seeds of one setting; the study is told what they came to on average."""
    plan = share.plan
    try:
        words = words_of_run(plan, trial.params)
        run = settings_file.named(plan.recipe, words)
        levels = [_seed(run, words, trial, share, seed) for seed in range(plan.seeds)]
    except GivenUp:
        study.tell(trial, state=TrialState.PRUNED)
        return
    except UserError as error:
        trial.set_user_attr("error", one_line(str(error)))
        study.tell(trial, state=TrialState.FAIL)
        return
    trial.set_user_attr("levels", levels)
    study.tell(trial, sum(levels) / len(levels))


def words_of_run(plan: Plan, values: dict[str, Any]) -> list[str]:
    """All changes of the recipe that a run of the sweep has. Raises UserError as the budget
    does."""
    words = [*plan.fixed, *words_of(values)]
    if not plan.evaluations:
        return words
    return [*words, *words_within(settings_file.named(plan.recipe, words), plan.evaluations)]


def _seed(run: Run, words: list[str], trial: optuna.Trial, share: Share, seed: int) -> float:
    """What the run of one seed comes to; the first one alone may be given up."""
    plan, run = share.plan, run.model_copy(update={"seed": run.seed + seed})
    where = share.folder / "runs" / f"{trial.number:04d}" / f"seed-{run.seed}"
    if not (where / "result.json").exists():
        judged = Judged(trial, where, plan.by, run.updates, run.evaluation.every)
        watcher = judged if plan.halving and not seed else Silent()
        changes = [*words, f"seed={run.seed}"]
        record(run, where, 1, command=shlex.join(["scoretune", "train", plan.recipe, *changes]))
        launch(run, where, watcher)
    line = last_line(where)
    assert line is not None
    return level(line, plan.by)
