"""One process at a time in a run's folder, and none that a dead one keeps out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from scoretune.core import lock
from scoretune.core.errors import UserError

HOLD = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from scoretune.core import lock
with lock.held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
SOURCE = str(Path(__file__).resolve().parents[2] / "src")


def test_the_other_process_is_named_and_its_end_frees_the_folder(tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-c", HOLD, str(folder), SOURCE]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        with (
            pytest.raises(UserError, match=f"is in use by process {other.pid}: wait") as caught,
            lock.held(folder),
        ):
            raise AssertionError("two are in it")
        assert f"kill -INT {other.pid}" in str(caught.value) and len(str(caught.value)) <= 300
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert (folder / lock.NAME).exists()  # it had no time to tidy up
    with lock.held(folder):
        assert (folder / lock.NAME).read_text().split()[0] == str(os.getpid())
    assert list(folder.iterdir()) == []


def test_a_start_that_writes_nothing_leaves_nothing(tmp_path):
    with pytest.raises(ValueError), lock.held(tmp_path / "runs" / "mine"):
        raise ValueError
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "here").mkdir()
    with lock.held(tmp_path / "here"):
        pass
    assert (tmp_path / "here").is_dir()  # it was there before
    with lock.held(tmp_path / "runs" / "mine"):
        (tmp_path / "runs" / "mine" / "run.json").write_text("{}")
    assert [p.name for p in (tmp_path / "runs" / "mine").iterdir()] == ["run.json"]
