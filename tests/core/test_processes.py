"""The processes of a run begin and end together, and one line says why.

The slow tests run the real command in two: killed, interrupted, refused.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from scoretune.core import checkpoints, distributed, processes
from scoretune.core.errors import UserError


def outcome(capfd, *scripts: str, words: dict[int, bytes] | None = None) -> tuple[int, str]:
    """What processes that run such shell scripts come to."""
    children = [subprocess.Popen(["sh", "-c", script]) for script in scripts]
    said = [[(words or {}).get(rank, b"")] for rank in range(len(scripts))]
    return processes._wait(children, said), capfd.readouterr().err


def test_the_first_that_failed_by_itself_says_why(capfd, monkeypatch):
    monkeypatch.setattr(processes, "GRACE", 0.2)
    words = {1: b"why\n", 2: b"noise\n"}
    assert outcome(capfd, "exit 0", "exit 0", words=words) == (0, "")
    assert outcome(capfd, "exit 2", "exit 2", words=words) == (2, "")  # the main one has said it
    assert outcome(capfd, "sleep .2; exit 3", "exit 2", "exit 3", words=words) == (2, "why\n")
    # One that goes on is ended, though it stands before the one that failed.
    assert outcome(capfd, "sleep 60; exit 5", "exit 2", words=words) == (2, "why\n")
    assert outcome(capfd, "exit 130", "exit 130", words=words) == (130, "")
    assert outcome(capfd, "exit 0", "kill -9 $$", words=words) == (137, "why\n")


def test_the_end_of_the_parent_is_the_end_of_a_process(tmp_path):
    """A parent that is killed before its child has looked, and one that is killed later."""
    source = Path(processes.__file__).parents[2]
    child = (
        "import time; from scoretune.core.processes import end_with_parent; end_with_parent(); "
        "print('here', flush=True); time.sleep(60)"
    )
    alive, mine = os.pipe()
    environment = {**os.environ, processes.PARENT: str(alive), "PYTHONPATH": str(source)}
    with subprocess.Popen(
        [sys.executable, "-c", child], env=environment, pass_fds=(alive,), stdout=subprocess.PIPE
    ) as process:
        os.close(alive)
        assert process.stdout is not None and process.stdout.readline() == b"here\n"
        assert process.poll() is None
        os.close(mine)  # what the system does for a parent that ends, however it ends
        assert process.wait(30) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE is 'abc' and should be a number: unset it"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0' and should be a number"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 is set and RANK, MASTER_ADDR, MASTER_PORT not: unset"),
        (
            {"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "here", "MASTER_PORT": "1"},
            "RANK=2 is not below WORLD_SIZE=2",
        ),
        (
            {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "here", "MASTER_PORT": "x"},
            "MASTER_PORT is 'x' and should be a number",
        ),
    ],
)
def test_half_of_what_a_launcher_says(monkeypatch, environment, said):
    for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=said):
        distributed.start()


# --------------------------------------------------------------------------- the real command

TRAIN = [sys.executable, "-m", "scoretune", "train"]


def started(folder: Path, tiny: list[str], *changes: str) -> subprocess.Popen[str]:
    words = ["ddpo", *tiny, "sizes.prompts=2", "updates=500", *changes, "--run", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(Path(processes.__file__).parents[2])}
    return subprocess.Popen(
        [*TRAIN, *words, "--processes", "2"], env=environment, stderr=subprocess.PIPE, text=True
    )


def until(what: Callable[[], object]) -> None:
    for _ in range(600):
        if what():
            return
        time.sleep(0.2)
    raise AssertionError("it never came")


def ranks(parent: int) -> list[int]:
    """The processes that a process has started."""
    import psutil

    return [child.pid for child in psutil.Process(parent).children()]


def gone(process: int) -> bool:
    import psutil

    return not psutil.pid_exists(process) or psutil.Process(process).status() == "zombie"


@pytest.mark.slow
def test_ranks_end_with_a_parent_that_is_killed(tmp_path, tiny, command):
    run = tmp_path / "run"
    process = started(run, tiny)
    until(lambda: checkpoints.latest(run / "checkpoints"))
    children = ranks(process.pid)
    assert len(children) == 2
    process.kill()
    process.wait()
    until(lambda: all(map(gone, children)))
    newest = checkpoints.latest(run / "checkpoints")
    assert newest is not None
    done = int(checkpoints.load(newest)["update"])
    assert command("train", "--resume", run, f"updates={done + 1}", "--accept-changes").code == 0


@pytest.mark.slow
def test_ctrl_c_saves_in_all_processes(tmp_path, tiny):
    run = tmp_path / "run"
    process = started(run, tiny, "checkpoints.every=1000")
    until((run / "metrics.jsonl").exists)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert said.splitlines()[-1].endswith(f"go on with: scoretune train --resume {run}")
    assert checkpoints.latest(run / "checkpoints") is not None and not (run / ".lock").exists()


@pytest.mark.slow
def test_a_refusal_in_all_processes_is_one_line(tmp_path, tiny):
    process = started(tmp_path / "run", tiny, "sizes.prompts=3")
    _, said = process.communicate(timeout=120)
    assert process.returncode == 2
    (line,) = [line for line in said.splitlines() if line.startswith("scoretune: ")]
    assert line.startswith("scoretune: sizes.prompts=3 cannot be shared equally by 2 processes")
    assert "Traceback" not in said and not (tmp_path / "run").exists()
