"""One process at a time in a run's folder: a lock that ends with the process that holds it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from scoretune.core import distributed
from scoretune.core.errors import UserError

NAME = ".lock"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Within this context the folder is there, and this process alone may write to it.

    The file `.lock` says whose it is. The system lets go of it when its process ends, however it
    ends, so a file that is left behind locks nothing. Folders that were made for it are taken away
    again where nothing was written. Of several processes of a run the main one holds it. Raises
    UserError, with the number of the other process, and where the folder cannot be made.
    """
    if not distributed.team().main:
        yield
        return
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = _taken(folder / NAME)
    except OSError as error:
        raise UserError(
            f"cannot write to {str(folder)!r} ({error.strerror}): choose --run"
        ) from error
    try:
        yield
    finally:
        with suppress(OSError):
            (folder / NAME).unlink()
        if handle is not None:
            os.close(handle)
        for path in made:
            with suppress(OSError):  # something was written: then it stays, and those above it
                path.rmdir()


def _taken(path: Path) -> int | None:
    """The open lock file; None where the system or its disk knows no locks."""
    if os.name != "posix":
        return None
    import fcntl

    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _same_file(handle, path):  # else its owner has just deleted it: once more
                os.truncate(handle, 0)
                os.write(handle, f"{os.getpid()} {socket.gethostname()}\n".encode())
                return handle
        except BlockingIOError:
            owner = os.pread(handle, 200, 0).decode("utf-8", "replace").split()
            os.close(handle)
            raise _in_use(path.parent, *owner[:2]) from None
        except OSError:  # a disk without locks
            os.close(handle)
            return None
        os.close(handle)


def _same_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _in_use(folder: Path, process: str = "?", host: str = "") -> UserError:
    where = f" on {host}" if host and host != socket.gethostname() else ""
    return UserError(
        f"{str(folder)!r} is in use by process {process}{where}: wait until it has ended, or stop "
        f"it with kill -INT {process}, which saves; another run needs another --run folder"
    )
