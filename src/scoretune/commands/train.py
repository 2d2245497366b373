"""`scoretune train`, `demo` and `show`: settings from a recipe or a file, and a run of them."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from scoretune.commands import train_reward
from scoretune.commands.options import Changes, Folder, Json, Seed, Threads, folder, set_threads
from scoretune.core.errors import UserError, first_line


def demo(json_: Json = False, seed: Seed = 0, threads: Threads = 1, run: Folder = None) -> None:
    """Fine-tune the shipped miniature Stable Diffusion; ends with a report to look at."""
    from scoretune import recipes

    train_run(recipes.demo().model_copy(update={"seed": seed}), run, threads, json_)


def train(
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="A method, e.g. score_as_action (`train` alone lists all), a settings file: "
            ".yaml, .json, a run's run.json; or reward: a reward model from votes, data=….",
        ),
    ] = None,
    changes: Changes = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            parser=folder, help="Go on with this run folder; hardware.… and updates may change."
        ),
    ] = None,
    accept_changes: Annotated[
        bool,
        typer.Option("--accept-changes", help="resume: go on with other settings than before."),
    ] = False,
    run: Folder = None,
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="How many: starts them, or checks what a launcher started."),
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, max=1000, help="Runs, from `seed` on, and intervals over them.")
    ] = 1,
    threads: Threads = 1,
    json_: Json = False,
) -> None:
    """Train or fine-tune by a recipe or a settings file, or go on with a run that was stopped."""
    from scoretune.core import distributed
    from scoretune.core.processes import run_in

    _compatible(resume, run, accept_changes=accept_changes, processes=processes, seeds=seeds)
    words = [word for word in (recipe, *(changes or [])) if word is not None]
    if recipe == train_reward.NAME or train_reward.going_on(resume):
        if distributed.needed(processes) or accept_changes or seeds > 1:
            raise UserError(
                "train reward fits an ensemble in one process: leave out --processes, --seeds "
                "and --accept-changes"
            )
        given = [word for word in words if word != train_reward.NAME]
        train_reward.train_reward(given, run, resume, threads=threads, json_=json_)
        return
    if distributed.needed(processes):
        raise typer.Exit(run_in(processes or 1, sys.argv[1:]))
    distributed.start(processes)
    if resume is not None:
        from scoretune.training.run_folder import resumed

        settings = resumed(resume, words, accept_changes=accept_changes)
        train_run(settings, resume, threads, json_, going_on=True, accept_changes=accept_changes)
        return
    settings = _settings(recipe, changes or [])
    if seeds > 1:
        from scoretune.commands.seeds import train_seeds

        train_seeds(settings, run, threads, seeds=seeds, json_=json_)
    else:
        train_run(settings, run, threads, json_)


def _compatible(
    resume: Path | None,
    run: Path | None,
    *,
    accept_changes: bool,
    processes: int | None,
    seeds: int,
) -> None:
    """Raise where one option says the opposite of another."""
    if resume is not None and run is not None:
        raise UserError("--resume goes on in its own folder: leave out --run")
    several = (processes or 1) > 1 or "WORLD_SIZE" in os.environ
    if seeds > 1 and (resume is not None or several):
        raise UserError(
            "--seeds trains several runs in one process: leave out --resume and --processes (the "
            "same command goes on with runs that were stopped)"
        )
    if accept_changes and resume is None:
        raise UserError("--accept-changes is of --resume: give it too, or leave it out")


def _settings(recipe: str | None, changes: list[str]) -> Any:
    from scoretune import recipes
    from scoretune.training import settings_file

    if recipe is None:
        raise UserError(
            f"name a recipe ({', '.join(recipes.RECIPES)}), a settings file (.yaml, .json), or "
            "--resume a run folder"
        )
    return settings_file.named(recipe, changes)


def show(
    recipe: Annotated[str, typer.Argument(help="A method, or a settings file.")],
    changes: Changes = None,
    yaml: Annotated[
        bool,
        typer.Option(
            "--yaml", help="What matters to this recipe, explained, as a file for `train`."
        ),
    ] = False,
    origins: Annotated[
        bool,
        typer.Option("--origins", help="A line a setting, with where its value comes from."),
    ] = False,
) -> None:
    """Print a recipe's settings, changed as `train` would change them."""
    from scoretune.core.config import leaves
    from scoretune.training import overrides, settings_file

    settings = settings_file.named(recipe, changes or [])
    if note := overrides.unread_hub_id(settings.model.source, settings.model.revision):
        typer.echo(f"note: {note}", err=True)
    if origins:
        whence = settings_file.origins(recipe, changes or [])
        for path, value in leaves(settings.model_dump()):
            typer.echo(f"{path} = {json.dumps(value)}  # {whence.get(path, 'command line')}")
        return
    text = settings_file.written(settings) if yaml else json.dumps(settings.model_dump(), indent=2)
    typer.echo(text.rstrip())


def train_run(
    run: Any,
    folder: Path | None,
    threads: int,
    json_: bool,
    *,
    going_on: bool = False,
    accept_changes: bool = False,
) -> dict[str, Any]:
    """Train in a folder, or go on there, and show it; the result, of several processes in the main
    one."""
    from scoretune.commands.display import Live
    from scoretune.core import distributed
    from scoretune.training import run_folder
    from scoretune.training.run import launch, ready

    set_threads(threads)
    default = Path("runs") / f"{run.recipe}-{time.strftime('%Y%m%d-%H%M%S')}"
    where = Path(distributed.agreed(str(folder or default)))
    if not going_on:
        run = run.model_copy(update={"data": distributed.agreed(_pinned(run, where))})
        run_folder.check(run, where)
    checked = ready(run)
    command = shlex.join(["scoretune", *sys.argv[1:]])

    def begun() -> None:
        run_folder.record(run, where, threads, command=command, checked=checked, resumed=going_on)

    main = distributed.team().main
    live = Live(run, where, quiet=not main)
    try:
        with live.progress:
            result = launch(run, where, live, checked, begun=begun, accept_changes=accept_changes)
    except KeyboardInterrupt:
        live.stopped()
        raise
    except Exception as error:
        raise _in_words(error, run, where) from error
    distributed.stop()
    if not main:
        return {}
    if json_:
        typer.echo(json.dumps(result))
    elif "data" in result:
        _conclude(result)
    else:
        live.conclude(result)
    return result


def _pinned(run: Any, where: Path) -> str:
    """The data of a run; a store of feedback as of now, or as of when the folder's run began."""
    from scoretune.data.store import is_store, pinned
    from scoretune.training.run_folder import recorded, unfinished_start

    if not is_store(run.data):
        return str(run.data)
    there = (where / "run.json").exists() and not unfinished_start(where)
    return pinned(run.data, recorded(where).data if there else "")


def _in_words(error: Exception, run: Any, where: Path) -> Exception:
    """What a run failed of, as far as it is the machine's fault."""
    from scoretune.commands.plan.suggestions import best_suggestion
    from scoretune.core import distributed
    from scoretune.core.processes import LOST
    from scoretune.training.engine import short_of_memory, undetermined

    if distributed.lost(error):
        return typer.Exit(LOST)  # the other one has said why
    if kernel := undetermined(error):
        return UserError(
            f"{kernel} has no deterministic form on this device: go on by scoretune train --resume "
            f"{where} hardware.deterministic=false; nothing is lost"
        )
    if short_of_memory(error):
        return UserError(
            f"there is not enough memory ({first_line(error)[:80]}): {best_suggestion(run)}; "
            f"nothing is lost, go on by scoretune train --resume {where} and that setting"
        )
    return error


def _conclude(result: dict[str, Any]) -> None:
    """The result of a run on data in a few lines, and where to look."""
    from scoretune.evaluate.report.data_page import result_lines

    for line in result_lines(result):
        typer.echo(line, err=True)
    where = result["run"]
    typer.echo(f"{result['seconds']:.0f} s; look at {where}/report.html", err=True)
    typer.echo(f"draw more: scoretune sample {where} --count 64 --out samples.png", err=True)
