"""Training that the studio starts beside itself, one at a time; and the stop of any run.

A job is a process of its own group, so that it goes on when the studio ends. What it prints is in
a file beside its run's folder.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scoretune.core import lock
from scoretune.core.errors import UserError
from scoretune.rewards.reward_model import is_reward_model

NAME = re.compile(r"round-(\d+)")


@dataclass
class Jobs:
    """The jobs of one studio on the store `where`, in the folder `runs`."""

    where: str
    runs: Path
    process: subprocess.Popen[bytes] | None = None
    current: Path | None = None
    _lock: Any = field(default_factory=threading.Lock)

    def busy(self) -> bool:
        """Whether a job is going on, of this studio or of one before it."""
        if self.process is not None and self.process.poll() is None:
            return True
        return any(running(run) is not None for run in self.rounds()[:1])

    def start(self, model: str, words: list[str]) -> Path:
        """Train by `scoretune train WORDS`, and where that is a model draw the next round of it and
        of `model`, the one before; the run's folder.

        Raises UserError while another job is going on.
        """
        with self._lock:
            if self.busy():
                raise UserError("a model is being trained already: wait for it, or stop it first")
            self.runs.mkdir(parents=True, exist_ok=True)
            run = self._free()
            log = log_of(run)
            arguments = [self.where, model, str(run), "--", *words]
            with log.open("wb") as output:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "scoretune.commands.studio.rounds", *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            self.current = run
            return run

    def rounds(self) -> list[Path]:
        """The folders of all rounds, the newest first, of which a log is there."""
        logs = (path for path in self.runs.glob("round-*.log") if NAME.fullmatch(path.stem))
        return [
            path.with_suffix("")
            for path in sorted(logs, key=lambda path: int(path.stem[6:]), reverse=True)
        ]

    def rewards(self) -> list[Path]:
        """The rewards that were trained here, the newest first."""
        return [run for run in self.rounds() if is_reward_model(str(run))]

    def models(self) -> list[Path]:
        """The models that were tuned here, the newest first."""
        done = (run for run in self.rounds() if (run / "result.json").is_file())
        return [run for run in done if not is_reward_model(str(run))]

    def _free(self) -> Path:
        taken = [int(match[1]) for p in self.runs.iterdir() if (match := NAME.match(p.name))]
        return self.runs / f"round-{max(taken, default=0) + 1}"


def log_of(run: Path) -> Path:
    """Where a job's output goes."""
    return run.with_name(f"{run.name}.log")


def running(run: Path) -> int | None:
    """The process that writes to a run's folder on this machine; None where none does."""
    path = run / lock.NAME
    if os.name != "posix" or not path.is_file():
        return None
    import fcntl

    with path.open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            words = file.read(200).decode("utf-8", "replace").split()
            here = len(words) == 2 and words[1] == socket.gethostname()
            return int(words[0]) if here and words[0].isdecimal() else None
        except OSError:  # a disk without locks
            return None
    return None


def stop(run: Path) -> None:
    """End a run in good order: it finishes its update and saves. Raises UserError if none is on."""
    process = running(run)
    if process is None:
        raise UserError(f"{run.name} is not running on this machine: there is nothing to stop")
    try:
        os.kill(process, signal.SIGINT)
    except OSError as error:
        raise UserError(f"process {process} cannot be stopped: {error.strerror}") from error
