"""`scoretune feedback collect`, `import`, `export`, `stats` and `check`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from scoretune.commands.options import Changes, Json, Seed, Threads, set_threads
from scoretune.core.errors import UserError, listed, unknown

StoreOption = Annotated[
    str, typer.Option("--store", "--db", help="A folder, or postgresql+psycopg://USER@HOST/NAME.")
]
StoreWord = Annotated[str, typer.Argument(help="A folder, or postgresql+psycopg://USER@HOST/NAME.")]
PictureFolder = Annotated[
    str | None, typer.Option(help="PostgreSQL: the folder of a new store's pictures.")
]
SHOWN = 10
"""Problems, each a line; --json has all."""


def collect(
    model: Annotated[Path, typer.Argument(help="A run folder, a model folder, or scenes.")],
    changes: Changes = None,
    store: StoreOption = "feedback",
    pictures: PictureFolder = None,
    per_prompt: Annotated[int, typer.Option(min=1, help="Samples of each prompt.")] = 4,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Of the solver (default: the model's own).")
    ] = None,
    solver: Annotated[str, typer.Option(help="ddim, dpmpp_2m, heun, gddim, …")] = "ddim",
    batch: Annotated[int, typer.Option(min=1, help="Samples drawn at once.")] = 16,
    round_: Annotated[int, typer.Option("--round", min=0, help="Of collecting, to tell by.")] = 0,
    seed: Seed = 0,
    threads: Threads = 1,
    json_: Json = False,
) -> None:
    """Draw samples of prompts=FILE into a store; stopped or killed, the same command goes on."""
    from scoretune.commands.display import counting
    from scoretune.commands.feedback import collect as collecting
    from scoretune.data.prompts import read_prompts
    from scoretune.data.store import open_store

    set_threads(threads)
    given = {name: value for name, _, value in (word.partition("=") for word in changes or [])}
    for name in given:
        if name != "prompts":
            raise unknown("setting of collect", name, ["prompts"])
    if not given.get("prompts"):
        raise UserError("say of what: prompts=FILE, or prompts=scenes")
    texts = list(dict.fromkeys(read_prompts(given["prompts"]).texts))
    how = collecting.Drawing(per_prompt, steps, solver, batch, seed, round_)
    artist = collecting.artist(model, how)
    for line in artist.remarks:
        typer.echo(f"note: {line}", err=True)
    kept = open_store(store, create=True, pictures=pictures)
    try:
        with counting("samples") as watch:
            report = collecting.collect(kept, artist, texts, watch)
    except KeyboardInterrupt:
        typer.echo("scoretune: stopped; the same command goes on", err=True)
        raise
    if json_:
        typer.echo(json.dumps(report | {"store": kept.name}))
        return
    typer.echo(
        f"{report['drawn']:,} samples of {report['prompts']:,} prompts drawn into {kept.name}"
        + (f", {report['there']:,} were there already" if report["there"] else "")
    )


def import_(
    file: Annotated[
        str, typer.Argument(help="Pairs or likes: .parquet, .jsonl, …, a folder, or datasets:ID.")
    ],
    store: StoreOption = "feedback",
    pictures: PictureFolder = None,
    json_: Json = False,
) -> None:
    """Take judged pictures into a store; done again, it changes nothing."""
    from scoretune.commands.display import counting
    from scoretune.commands.feedback.importing import Import, check_source
    from scoretune.data.store import open_store

    check_source(file)
    kept = open_store(store, create=True, pictures=pictures)
    with counting("pairs") as watch:
        report = Import(kept, file).run(watch)
    if json_:
        typer.echo(json.dumps(report | {"store": kept.name}))
        return
    typer.echo(", ".join(f"{n:,} {what}" for what, n in report.items()) + f" in {kept.name}")


def export(
    store: StoreWord,
    out: Annotated[
        Path,
        typer.Argument(help="x.parquet (Pick-a-Pic's columns), x.jsonl (TRL's), or a folder."),
    ],
    json_: Json = False,
) -> None:
    """Write what a store says of pairs, a row a judgement, where other programs read it."""
    from scoretune.commands.display import counting
    from scoretune.commands.feedback import export as exporting

    exporting.check_out(out)
    with counting("pairs") as watch:
        report = exporting.export(store, out, watch)
    if json_:
        typer.echo(json.dumps(report | {"out": str(out)}))
        return
    left = f", {report['ties']:,} ties left out" if report["ties"] else ""
    typer.echo(f"{report['pairs']:,} judgements in {out}{left}")


def stats(store: StoreWord, json_: Json = False) -> None:
    """Say what a store holds, and how its raters vote."""
    from scoretune.commands.feedback.stats import lines, measured
    from scoretune.data.store import open_store

    kept = open_store(store)
    report: dict[str, Any] = {"store": kept.name, **measured(kept)}
    if json_:
        typer.echo(json.dumps(report))
        return
    typer.echo(kept.name)
    for name, text in lines(report):
        typer.echo(f"  {name:<10} {text}")


def check(store: StoreWord, json_: Json = False) -> None:
    """Look whether every picture of a store is there and whole; exits with 1 where one is not."""
    from scoretune.commands.display import counting
    from scoretune.commands.feedback.check import examine
    from scoretune.data.store import open_store

    kept = open_store(store)
    with counting("pictures") as watch:
        report = examine(kept, watch)
    if json_:
        typer.echo(json.dumps({"store": kept.name, **report}))
    else:
        for line in report["problems"][:SHOWN]:
            typer.echo(line)
        if len(report["problems"]) > SHOWN:
            typer.echo(f"… and {len(report['problems']) - SHOWN:,} more (--json has all)")
        left = listed(report["unused"], 60)
        typer.echo(
            f"{report['pictures']:,} pictures, {len(report['problems']):,} problems"
            + (f"; files of no sample, which may be deleted: {left}" if left else "")
        )
    raise typer.Exit(int(bool(report["problems"])))
