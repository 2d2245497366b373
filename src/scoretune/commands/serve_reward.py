"""`scoretune serve-reward`: a reward over HTTP."""

from __future__ import annotations

import signal
import threading
from typing import Annotated, NoReturn

import typer

from scoretune.commands.options import Threads, set_threads
from scoretune.core.errors import UserError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Hosts that no other machine reaches."""


def serve_reward(
    reward: Annotated[str, typer.Argument(help="reader, module:function, ocr(model=...), ...")],
    host: Annotated[
        str, typer.Option(help="Listen here; 0.0.0.0 for all, with --token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    batch: Annotated[int, typer.Option(min=1, help="Images that are scored at once.")] = 16,
    token: Annotated[
        str,
        typer.Option(envvar="SCORETUNE_REWARD_TOKEN", help="Callers must know it; empty: anyone."),
    ] = "",
    limit: Annotated[int, typer.Option(min=1, help="Megabytes of a request, at most.")] = 256,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Threads = 1,
) -> None:
    """Serve a reward over HTTP, for `reward=http://HOST:PORT` in another process; Ctrl-C stops."""
    import torch

    from scoretune.rewards.catalog import fingerprint, named_reward
    from scoretune.rewards.remote.server import RewardServer, Service

    set_threads(threads)
    cuda = torch.cuda.is_available()
    if device not in ("auto", "cpu", "cuda") or (device == "cuda" and not cuda):
        raise UserError(f"--device {device}: there is {'cpu and cuda' if cuda else 'only cpu'}")
    where = device if device != "auto" else "cuda" if cuda else "cpu"
    if not token.strip() and host not in LOOPBACK:
        raise UserError(
            f"--host {host} is open to other machines: give --token, or set the environment "
            "variable SCORETUNE_REWARD_TOKEN here and where the run is"
        )
    built = named_reward(reward)
    service = Service(reward, built, batch, token.strip(), limit * 10**6, where)
    server = RewardServer(service, host, port)
    service.fingerprint = fingerprint(reward, built)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)
    typer.echo(f"{reward} is ready at {server.url}; Ctrl-C stops")
    try:
        server.serve()
    except KeyboardInterrupt:
        typer.echo("stopped")


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt
