"""A PostgreSQL server of one's own on a free port, for the tests of stores."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OPTIONS = "-c fsync=off -c full_page_writes=off -c max_connections=40 -c shared_buffers=16MB"
USERS = ("postgres", "nobody")
"""Who may run it, as the server refuses to be run by root."""


def lacking() -> str:
    """Why no server can be run here; empty where one can."""
    if program("postgres") is None or program("initdb") is None:
        return "PostgreSQL is not installed (Debian's package postgresql)"
    if os.geteuid() == 0 and user() is None:
        return f"PostgreSQL refuses to run as root, and there is no user {' or '.join(USERS)}"
    return ""


def program(name: str) -> str | None:
    """Debian keeps them out of the PATH."""
    debian = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(debian[-1]) if debian else shutil.which(name)


def user() -> str | None:
    """As whom it runs: oneself, and where that is root another user."""
    there = {entry.pw_name for entry in pwd.getpwall()}
    if os.geteuid() != 0:
        return pwd.getpwuid(os.geteuid()).pw_name
    return next((name for name in USERS if name in there), None)


@contextmanager
def running() -> Iterator[str]:
    """The URL of a new server's first database; the server ends with the context."""
    name, port = user(), _free_port()
    assert name is not None
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    entry = pwd.getpwnam(name)
    os.chown(folder, entry.pw_uid, entry.pw_gid)
    other = {"user": name, "group": entry.pw_gid} if os.geteuid() == 0 else {}
    data = folder / "data"
    make = [program("initdb"), "-D", data, "-U", "tests", "-A", "trust", "-E", "UTF8", "--no-sync"]
    control = [program("pg_ctl"), "-D", data, "-s", "-w"]
    where = f"{OPTIONS} -c listen_addresses=127.0.0.1 -c port={port} -k {folder}"
    try:
        _run([*make, "--locale=C"], folder, other)
        _run([*control, "-l", folder / "log", "-o", where, "start"], folder, other)
        try:
            yield f"postgresql+psycopg://tests@127.0.0.1:{port}/postgres"
        finally:
            _run([*control, "-m", "immediate", "stop"], folder, other)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(command: list[object], folder: Path, other: dict[str, object]) -> None:
    done = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
        **other,
    )
    assert done.returncode == 0, done.stderr.decode()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
