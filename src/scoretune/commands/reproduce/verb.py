"""`scoretune reproduce`: papers' experiments in miniature."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from scoretune.commands.options import Json, set_threads


def reproduce(
    experiment: Annotated[str, typer.Argument(help="continuous-rl, contractive, …")],
    part: Annotated[list[str] | None, typer.Option(help="Only this part; may be repeated.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder (default: below reproduced/).")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Of each arm.")] = 5,
    jobs: Annotated[int, typer.Option(min=1, help="Processes, one thread each.")] = 1,
    model: Annotated[
        Path | None, typer.Option(help="For `hard` and `stories`: a model folder.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="For `images`, `pictures`, `stories` and `trading`: their files."),
    ] = None,
    quick: Annotated[bool, typer.Option(help="A rehearsal: numbers mean nothing.")] = False,
    json_: Json = False,
) -> None:
    """Repeat a paper's experiments in miniature; goes on where it was stopped."""
    from scoretune.commands.display import CellBars
    from scoretune.commands.reproduce import launch

    set_threads(1)
    where = out or Path("reproduced") / experiment
    bars = CellBars()
    with bars.progress:
        results = launch.reproduce(
            experiment,
            where,
            parts=part or (),
            seeds=seeds,
            jobs=jobs,
            quick=quick,
            inputs=launch.Inputs(model, data),
            watcher=bars.watcher,
        )
    if json_:
        typer.echo(json.dumps(results))
    else:
        for name in results:
            typer.echo(f"{name}: look at {where / name / 'README.md'}")
