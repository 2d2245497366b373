"""`scoretune rpo`: critique, plan, edit, score, filter, pairs; then preference tuning on them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scoretune.commands.options import Folder, Json, Seed, Threads, set_threads
from scoretune.core.errors import UserError

if TYPE_CHECKING:
    from scoretune.core.config import Run
    from scoretune.training.feedback.pipeline import Cast, Job, Stored
    from scoretune.training.feedback.settings import PipelineSettings
    from scoretune.training.feedback.workers import Workers


def rpo(
    model: Annotated[str, typer.Argument(help="scenes, or the folder or hub id of a model.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            help="prompts= critic= writer= editor= reward= agree= threshold= least= most= "
            "reversed= pictures= per_prompt=, and settings of the dpo recipe as a.b=c."
        ),
    ] = None,
    store: Annotated[
        str | None, typer.Option("--store", help="Folder or URL (default: in the run folder).")
    ] = None,
    run: Folder = None,
    pairs_only: Annotated[
        bool, typer.Option("--pairs-only", help="End with the pairs: no training.")
    ] = False,
    processes: Annotated[
        int | None, typer.Option(min=1, help="How many share the pictures and the training.")
    ] = None,
    cluster: Annotated[
        int | None,
        typer.Option(
            min=1, help="Ray workers for the pictures, of RAY_ADDRESS or here (extra cluster)."
        ),
    ] = None,
    seed: Seed = 0,
    threads: Threads = 1,
    json_: Json = False,
) -> None:
    """Rich Preference Optimization: a critic says what is wrong with a model's pictures, an editor
    mends it, and the model learns to prefer what a reward finds better. The same command goes on
    where it was stopped."""
    from scoretune.commands.train import train_run
    from scoretune.core import distributed
    from scoretune.core.processes import run_in
    from scoretune.training.feedback.settings import split

    if cluster and processes:
        raise UserError("--cluster and --processes both share the pictures out: leave one out")
    if distributed.needed(processes):
        raise typer.Exit(run_in(processes or 1, sys.argv[1:]))
    main = distributed.start(processes).main
    set_threads(threads)
    pipeline_settings, changes = split(settings or [])
    folder = run or Path("runs") / "rpo"
    where = store or str(folder / "store")
    job = _job(model, pipeline_settings, seed)
    tuning = _tuning(model, where, pipeline_settings, changes, seed)
    cast = _cast(job, tuning)
    folder.mkdir(parents=True, exist_ok=True)
    summary, stored = _pairs(where, job, cast, cluster)
    result: dict[str, Any] = {"rpo": summary, "store": where}
    if main:
        _say(summary)
    if not pairs_only:
        _check_pairs(summary)
        result["training"] = train_run(tuning, folder, threads, json_=False)
    if main:
        _write_page(folder, stored, result, json_)


def _pairs(store: str, job: Job, cast: Cast, cluster: int | None) -> tuple[dict[str, Any], Stored]:
    """The pipeline's summary, and what the store has of it then."""
    from scoretune.commands.display import Bars
    from scoretune.data.store import open_store
    from scoretune.training.feedback.pipeline import Pipeline

    feedback, bars = open_store(store, create=True), Bars()

    def show(stage: str, done: int, total: int) -> None:
        bars.show(stage, done, total, {})

    with bars.progress, _workers(cluster) as workers:
        pipeline = Pipeline(feedback, job, cast, show, workers=workers)
        return pipeline.run(), pipeline.stored


@contextmanager
def _workers(cluster: int | None) -> Iterator[Workers]:
    """Ray actors, or this process."""
    from scoretune.training.feedback.workers import Cluster, one_by_one

    if cluster is None:
        yield one_by_one
        return
    workers = Cluster(cluster)
    try:
        yield workers
    finally:
        workers.close()


def _job(model: str, settings: PipelineSettings, seed: int) -> Job:
    from scoretune.data.prompts import check_storable, in_laps, read_prompts
    from scoretune.training.feedback.filters import Filter
    from scoretune.training.feedback.pipeline import Job

    count = max(1, settings.pictures // settings.per_prompt)
    prompts = read_prompts(settings.prompts)
    check_storable(prompts.texts)
    return Job(
        model=model,
        prompts=tuple(in_laps(prompts, count, seed)),
        critic=settings.critic,
        writer=settings.writer or settings.critic,
        editor=settings.editor,
        reward=settings.reward,
        agree=settings.agree,
        per_prompt=settings.per_prompt,
        seed=seed,
        filter=Filter(
            threshold=settings.threshold,
            least=settings.least,
            most=settings.most,
            reversed=settings.reversed,
        ),
    )


def _tuning(
    model: str, store: str, settings: PipelineSettings, changes: Sequence[str], seed: int
) -> Run:
    """The settings of the tuning: those of dpo that fit the model, the reward of the filter to be
    measured by."""
    from scoretune.core.config import SHIPPED_MODELS
    from scoretune.recipes import PAIRS_OF_MINIATURE
    from scoretune.training import settings_file

    fixed = [f"model.source={model}", f"data={store}", f"reward={settings.reward}", f"seed={seed}"]
    held_out = any(change.startswith("evaluation.prompts=") for change in changes)
    if model in SHIPPED_MODELS:
        fixed += [*PAIRS_OF_MINIATURE, "updates=100"]
    elif not held_out:
        fixed.append(f"prompts={settings.prompts}")  # a share of them is held out
    return settings_file.named("dpo", [*fixed, *changes])


def _cast(job: Job, tuning: Run) -> Cast:
    from scoretune.core import distributed
    from scoretune.training.build import build_policy
    from scoretune.training.feedback.pipeline import cast_of

    return cast_of(job, lambda: build_policy(tuning, distributed.device()))


def _check_pairs(summary: dict[str, Any]) -> None:
    """Raise UserError where there is nothing to learn from."""
    if not summary["pairs"]:
        raise UserError(
            "no edit was kept, so there is nothing to learn from: look at the verdicts above, "
            "lower threshold=, or take another editor= or critic="
        )


def _say(summary: dict[str, Any]) -> None:
    critiques, plans = summary["critiques"], summary["plans"]
    typer.echo(
        f"{summary['pictures']} pictures, {critiques['read']} critiques "
        f"({critiques['malformed']} could not be read), {plans['with instructions']} plans, "
        f"{summary['edits']} edits, {summary['pairs']} pairs",
        err=True,
    )
    for category, counts in summary["acceptance"].items():
        typer.echo(f"  {category}: {counts['kept']} of {counts['edits']} edits kept", err=True)


def _write_page(folder: Path, stored: Stored, result: dict[str, Any], json_: bool) -> None:
    from scoretune.commands.rpo import page

    typer.echo(f"look at {page.write(folder, stored, result)}", err=True)
    if json_:
        typer.echo(json.dumps(result))
