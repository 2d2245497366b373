"""A process of its own that takes signals and whose words can be read, forked from the test's: it
need not import what the test has imported, which takes seconds."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, TextIO


@dataclass
class Forked:
    """A child, and the pipes of what it prints."""

    pid: int
    stdout: TextIO
    stderr: TextIO
    returncode: int | None = None
    """As `subprocess` has it: the exit status, or less a signal's number."""

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def communicate(self) -> tuple[str, str]:
        """What else it says until its end."""
        said = self.stdout.read(), self.stderr.read()
        self.wait()
        return said


@contextmanager
def forked(work: Callable[..., Any], *arguments: Any) -> Iterator[Forked]:
    """A child that does the work while the context lasts; it is killed at its end."""
    (out, out_end), (err, err_end) = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        _work(work, arguments, out_end, err_end)
    os.close(out_end)
    os.close(err_end)
    with os.fdopen(out) as stdout, os.fdopen(err) as stderr:
        child = Forked(pid, stdout, stderr)
        try:
            yield child
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()


@contextmanager
def forked_command(*words: object) -> Iterator[Forked]:
    """`scoretune WORDS`, through the installed command's own entry."""

    def run() -> None:
        from scoretune.cli import main

        sys.argv = ["scoretune", *map(str, words)]
        main()

    with forked(run) as child:
        yield child


def _work(work: Callable[..., Any], arguments: tuple[Any, ...], out: int, err: int) -> NoReturn:
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.close(out)
    os.close(err)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    # Whoever runs the tests in the background has Ctrl-C ignored, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code = 1
    try:
        work(*arguments)
        code = 0
    except SystemExit as done:
        code = int(done.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
