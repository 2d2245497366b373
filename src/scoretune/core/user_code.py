"""Calling a user's code: it may compute, but not end the run, double it or move it elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from scoretune.core.errors import UserError


@contextmanager
def contained(name: str) -> Iterator[None]:
    """Within this context the code called `name` runs.

    `sys.exit` in it becomes a UserError. A child that comes back from its `os.fork` ends here, so
    that there is one run, and says so. The working folder is afterwards the one of before.
    """
    process, folder = os.getpid(), _working_folder()
    try:
        yield
    except SystemExit as error:
        if os.getpid() != process:  # how a child may end
            os._exit(error.code if isinstance(error.code, int) else 1)
        raise UserError(
            f"{name} called sys.exit({error.code!r}), which would end the run: return instead, or "
            "raise an error"
        ) from error
    finally:
        if os.getpid() != process:
            _end_child(name)
        if folder and _working_folder() != folder:
            os.chdir(folder)


def _working_folder() -> str:
    """The current folder, empty where somebody has deleted it."""
    try:
        return os.getcwd()
    except OSError:
        return ""


def _end_child(name: str) -> None:
    line = f"scoretune: {name} forked a process that came back into the run, where it was ended: "
    os.write(2, f"{line}start others with subprocess or multiprocessing\n".encode())
    os._exit(1)
