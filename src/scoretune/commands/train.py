"""`scoretune train`, `demo` and `show`: settings from a recipe or a file, and a run of them."""

from __future__ import annotations

import json
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from scoretune.commands.options import Changes, Folder, Json, Seed, Threads, set_threads
from scoretune.core.errors import UserError


def demo(json_: Json = False, seed: Seed = 0, threads: Threads = 1, run: Folder = None) -> None:
    """Fine-tune the shipped miniature Stable Diffusion; ends with a report to look at."""
    from scoretune import recipes

    _train(recipes.demo().model_copy(update={"seed": seed}), run, threads, json_)


def train(
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="A method, e.g. score_as_action (`train` alone lists all), or a settings file: "
            ".yaml, .json, a run's run.json.",
        ),
    ] = None,
    changes: Changes = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with this run folder; hardware.… may change.")
    ] = None,
    run: Folder = None,
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="How many: starts them, or checks what a launcher started."),
    ] = None,
    threads: Threads = 1,
    json_: Json = False,
) -> None:
    """Train or fine-tune by a recipe or a settings file, or go on with a run that was stopped."""
    from scoretune import recipes
    from scoretune.core import distributed
    from scoretune.training import settings_file

    if distributed.needed(processes):
        raise typer.Exit(distributed.run_in(processes or 1, sys.argv[1:]))
    distributed.start(processes)

    if resume is not None:
        from scoretune.training.run_folder import resumed

        words = [word for word in (recipe, *(changes or [])) if word is not None]
        _train(resumed(resume, words), resume, threads, json_)
        return
    if recipe is None:
        raise UserError(
            f"name a recipe ({', '.join(recipes.RECIPES)}), a settings file (.yaml, .json), or "
            "--resume a run folder"
        )
    _train(settings_file.named(recipe, changes or []), run, threads, json_)


def show(
    recipe: Annotated[str, typer.Argument(help="A method, or a settings file.")],
    changes: Changes = None,
    yaml: Annotated[
        bool,
        typer.Option(
            "--yaml", help="What matters to this recipe, explained, as a file for `train`."
        ),
    ] = False,
) -> None:
    """Print a recipe's settings, changed as `train` would change them."""
    from scoretune.training import settings_file

    settings = settings_file.named(recipe, changes or [])
    text = settings_file.written(settings) if yaml else json.dumps(settings.model_dump(), indent=2)
    typer.echo(text.rstrip())


def _train(run: Any, folder: Path | None, threads: int, json_: bool) -> None:
    from scoretune.commands.display import Live
    from scoretune.commands.plan.suggestions import best_suggestion
    from scoretune.core import distributed
    from scoretune.training.engine import short_of_memory, undetermined
    from scoretune.training.run import launch, ready
    from scoretune.training.run_folder import record

    set_threads(threads)
    checked = ready(run)
    default = Path("runs") / f"{run.recipe}-{time.strftime('%Y%m%d-%H%M%S')}"
    where = Path(distributed.agreed(str(folder or default)))
    command = shlex.join(["scoretune", *sys.argv[1:]])
    record(run, where, threads, command=command, checked=checked)
    main = distributed.team().main
    live = Live(run, where, quiet=not main)
    try:
        with live.progress:
            result = launch(run, where, live, checked)
    except KeyboardInterrupt:
        live.stopped()
        raise
    except Exception as error:
        if kernel := undetermined(error):
            raise UserError(
                f"{kernel} has no deterministic form on this device: set "
                "hardware.deterministic=false; nothing is lost, go on by scoretune train --resume "
                f"{where} and that setting"
            ) from error
        if not short_of_memory(error):
            raise
        raise UserError(
            f"there is not enough memory ({error}): {best_suggestion(run)}; nothing is lost, go on "
            f"by scoretune train --resume {where} and that setting"
        ) from error
    distributed.stop()
    if not main:
        return
    if json_:
        typer.echo(json.dumps(result))
    elif "data" in result:
        _conclude(result)
    else:
        live.conclude(result)


def _conclude(result: dict[str, Any]) -> None:
    """The result of a run on data in a few lines, and where to look."""
    from scoretune.evaluate.report.data_page import result_lines

    for line in result_lines(result):
        typer.echo(line, err=True)
    where = result["run"]
    typer.echo(f"{result['seconds']:.0f} s; look at {where}/report.html", err=True)
    typer.echo(f"draw more: scoretune sample {where} --count 64 --out samples.png", err=True)
