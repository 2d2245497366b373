"""The processes of one run on this machine: started together, ended together.

What torchrun does for one machine, less what it says: a signal to the parent reaches every process
once, the end of the parent is the end of all, and one that fails ends the others.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta

PARENT = "SCORETUNE_PARENT"
"""In the environment of a process: the file descriptor that ends with its parent."""
LOST = 3
"""Exit code of a process that ended because another one had."""
GRACE = 10.0
"""Seconds that the others have to end by themselves after the first that failed."""


def run_in(processes: int, words: Sequence[str]) -> int:
    """Run `scoretune WORDS` in so many processes; the exit code: of the first that failed.

    Ctrl-C is passed on to each of them. What those beside the main one say on stderr is shown where
    the main one did not fail itself.
    """
    from torch import distributed  # of those who start a run's processes alone

    store = distributed.TCPStore(  # type: ignore[attr-defined]
        "127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=60)
    )
    alive, mine = os.pipe()
    children: list[subprocess.Popen[bytes]] = []
    said: list[list[bytes]] = [[] for _ in range(processes)]
    previous = signal.signal(signal.SIGINT, lambda number, frame: _signal(children, number))
    try:
        for rank in range(processes):
            environment = {
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(processes),
                "LOCAL_WORLD_SIZE": str(processes),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(store.port),
                "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is this process's
                "TORCHELASTIC_RESTART_COUNT": "0",
                PARENT: str(alive),
            }
            child = subprocess.Popen(
                [sys.executable, "-P", "-m", "scoretune", *words],
                env=environment,
                pass_fds=(alive,),
                start_new_session=True,  # the terminal tells the parent alone, which passes it on
                stderr=subprocess.PIPE if rank else None,
            )
            children.append(child)
            if child.stderr is not None:
                drain = threading.Thread(target=_drain, args=(child, said[rank]), daemon=True)
                drain.start()
        return _wait(children, said)
    finally:
        _signal(children, signal.SIGKILL)
        for child in children:
            child.wait()
        signal.signal(signal.SIGINT, previous)
        os.close(mine)
        os.close(alive)


def end_with_parent() -> None:
    """In a process that `run_in` started: end at once when its parent does."""
    handle = os.environ.pop(PARENT, None)
    if handle is None:
        return
    threading.Thread(target=_watch, args=(int(handle),), daemon=True).start()


def _watch(handle: int) -> None:
    with suppress(OSError):
        while os.read(handle, 1):
            pass
    os.kill(os.getpid(), signal.SIGKILL)  # whatever it is doing: a run may be killed anywhere


def _wait(children: Sequence[subprocess.Popen[bytes]], said: Sequence[list[bytes]]) -> int:
    """The exit code of the run once all processes have ended: the main one's, unless that ended
    well or because of another; then the other's, with its words."""
    failed: list[int] = []  # in the order in which they failed
    until = float("inf")
    while None in [child.poll() for child in children]:  # of each: a list, not a generator
        failed += [k for k, child in enumerate(children) if child.returncode and k not in failed]
        if failed and until == float("inf"):
            until = time.monotonic() + GRACE
        if time.monotonic() > until:
            _signal(children, signal.SIGKILL)
        time.sleep(0.05)
    failed += [k for k, child in enumerate(children) if child.returncode and k not in failed]
    blamed = [k for k in failed if children[k].returncode not in (LOST, -signal.SIGKILL)]
    if not failed:
        return 0
    one = 0 if 0 in blamed else (blamed or failed)[0]
    sys.stderr.buffer.write(b"".join(said[one]))
    sys.stderr.flush()
    code = children[one].returncode
    return code if code > 0 else 128 - code


def _drain(child: subprocess.Popen[bytes], lines: list[bytes]) -> None:
    assert child.stderr is not None
    for line in child.stderr:
        lines.append(line)
        del lines[:-200]


def _signal(children: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    for child in children:
        if child.poll() is None:
            with suppress(ProcessLookupError):
                child.send_signal(number)
