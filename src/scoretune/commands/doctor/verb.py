"""`scoretune doctor`: does the mathematics hold on this machine?"""

from __future__ import annotations

from typing import Annotated

import typer

from scoretune.commands.options import Json, Threads, set_threads


def doctor(
    model: Annotated[
        str | None,
        typer.Option(help="Examine this too: a run or model folder, scenes or scenes-flow."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Threads = 1,
    json_: Json = False,
) -> None:
    """Measure laws with known answers on this machine; exits with 1 if one fails."""
    from scoretune.commands.doctor.doctor import run

    set_threads(threads)
    raise typer.Exit(run(device, model, json_))
