"""One process at a time in a run's folder, and none that a dead one keeps out."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from forked import forked
from scoretune.core import lock
from scoretune.core.errors import UserError


def hold(folder: Path) -> None:
    with lock.held(folder):
        print("held", flush=True)
        time.sleep(60)


def test_the_other_process_is_named_and_its_end_frees_the_folder(tmp_path):
    folder = tmp_path / "run"
    with forked(hold, folder) as other:
        assert other.stdout.readline() == "held\n"
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
