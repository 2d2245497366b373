"""Two processes that make one run, forked as a launcher would start them: they need not import what
the test has imported."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any


def run_in_two(work: Callable[..., Any], *arguments: Any) -> None:
    """Do the work in two processes that can find each other; both must end well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    children = [
        context.Process(target=_rank, args=(rank, port, work, arguments)) for rank in range(2)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]


def _rank(rank: int, port: int, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": rank, "RANK": rank}
    os.environ.update({name: str(value) for name, value in where.items()}, WORLD_SIZE="2")
    work(*arguments)
