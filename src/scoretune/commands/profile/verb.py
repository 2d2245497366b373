"""`scoretune profile`: where the time of an update goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from scoretune.commands.options import Changes, Json, Threads, folder, set_threads


def profile(
    recipe: Annotated[str, typer.Argument(help="A method, a settings file, or a run folder.")],
    changes: Changes = None,
    out: Annotated[
        Path | None,
        typer.Option(parser=folder, help="Folder of the page (default: below profiles/)."),
    ] = None,
    threads: Threads = 1,
    json_: Json = False,
) -> None:
    """Time one update part by part; a table, and a flame view of it as a page."""
    from scoretune.commands.display import counting
    from scoretune.commands.profile import page
    from scoretune.commands.profile.measure import ROUNDS, measured
    from scoretune.training.run_folder import settings_of

    set_threads(threads)
    run = settings_of(recipe, changes or [])
    with counting("updates") as note:
        profiled = measured(run, lambda done: note(done, ROUNDS))
    written = page.write(profiled, run, out or Path("profiles") / run.recipe)
    if json_:
        typer.echo(json.dumps({**profiled.as_dict(), "page": str(written)}))
        return
    for line in page.lines(profiled):
        typer.echo(line)
    typer.echo(f"look at {written}")
