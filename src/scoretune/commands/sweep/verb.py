"""`scoretune sweep`: search settings of a recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scoretune.commands.options import Json, Seed, folder
from scoretune.core.errors import UserError

if TYPE_CHECKING:
    from scoretune.commands.sweep.study import Plan

MEASURES = ("judge", "reader", "reward")


def sweep(
    recipe: Annotated[str, typer.Argument(help="A method or a settings file, as for train.")],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            help="Ranges a.b=1e-4..1e-2 (:log, :linear), choices a.b=x|y|z, settings a.b=c.",
            metavar="[a.b=LOW..HIGH | a.b=x|y | a.b=c]…",
        ),
    ] = None,
    runs: Annotated[int, typer.Option(min=1, max=100_000, help="Settings to try in all.")] = 20,
    jobs: Annotated[int, typer.Option(min=1, max=1024, help="Processes, one thread each.")] = 1,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Runs of each setting.")] = 1,
    halving: Annotated[
        bool, typer.Option("--halving", help="Give up the worse two thirds at evaluations.")
    ] = False,
    by: Annotated[str, typer.Option(help="The best by: judge, reader or reward.")] = "judge",
    evaluations: Annotated[
        int,
        typer.Option(min=0, help="Network evaluations of each run's training; sets updates."),
    ] = 0,
    storage: Annotated[
        str | None,
        typer.Option(help="URL of a database that machines share (default: SQLite in --out)."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(parser=folder, help="Folder (default: below sweeps/); names the study."),
    ] = None,
    seed: Seed = 0,
    json_: Json = False,
) -> None:
    """Search settings by many runs of a recipe; goes on where it was stopped."""
    if by not in MEASURES:
        raise UserError(f"--by {by}: give one of {', '.join(MEASURES)}")
    from scoretune.commands.sweep.ranges import space_of
    from scoretune.commands.sweep.study import Plan

    space, fixed = space_of(recipe, words or [])
    where = out or Path("sweeps") / Path(recipe).stem
    plan = Plan(recipe, tuple(fixed), space, by, seeds, halving, seed, evaluations)
    _check(plan)
    _sweep(plan, where, storage, runs=runs, jobs=jobs, json_=json_)


def _check(plan: Plan) -> None:
    """Raises UserError where there is nothing to halve by, or a budget of no update."""
    from scoretune.commands.sweep.runs import words_of_run
    from scoretune.commands.sweep.study import REDUCTION
    from scoretune.training import settings_file

    run = settings_file.named(plan.recipe, plan.fixed)
    every = run.evaluation.every
    if plan.halving and not 0 < every * REDUCTION <= run.updates:
        raise UserError(
            f"--halving gives runs up at evaluations, and evaluation.every={every} has too few in "
            f"{run.updates} updates: lower it to {max(1, run.updates // 9)} or less"
        )
    words_of_run(plan, {d.path: d.ends[0] for d in plan.space})


def _sweep(
    plan: Plan, where: Path, storage: str | None, *, runs: int, jobs: int, json_: bool
) -> None:
    from scoretune.commands.display import counting
    from scoretune.commands.sweep import page, study
    from scoretune.commands.sweep import runs as running
    from scoretune.core import lock

    with lock.held(where):
        url = storage or f"sqlite:///{where / 'study.db'}"
        with counting(f"sweep of {plan.recipe}") as note:
            done = running.sweep(url, where.name, plan, where, runs=runs, jobs=jobs, watch=note)
        written = page.write(done, plan, where)
    best = study.ranked(done)
    if json_:
        result = {"page": str(written), "finished": len(best), "runs": len(done.trials)}
        first = {"value": best[0].value, "settings": best[0].params} if best else None
        typer.echo(json.dumps({**result, "best": first}))
        return
    for trial in best[:5]:
        values = ", ".join(f"{path} {value}" for path, value in trial.params.items())
        typer.echo(f"{plan.by} {trial.value:.3f}  {values}")
    typer.echo(f"look at {written}")
    if best:
        typer.echo(f"the best settings: scoretune train {where / 'best.yaml'}")
