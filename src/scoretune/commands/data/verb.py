"""`scoretune data check`, `scoretune data resample`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scoretune.commands.options import Json, Seed
from scoretune.core.errors import UserError, listed, unknown

if TYPE_CHECKING:
    from scoretune.commands.data.check import Checked

SHOWN = 10
"""Problems of rows, each a line; --json has all."""
FILE = "A .jsonl, .json, .csv, .tsv or .parquet file, a folder with pairs.jsonl, or datasets:ID."


def check(file: Annotated[str, typer.Argument(help=FILE)], json_: Json = False) -> None:
    """Say what a file of preferences holds, of pictures or of texts, before any training.

    Exits with 1 where nothing can be learned from it, or training would refuse it.
    """
    from scoretune.commands.data.check import check as examine
    from scoretune.commands.display import counting

    with counting("rows") as watch:
        checked = examine(file, watch)
    if json_:
        typer.echo(json.dumps(checked.as_dict()))
    else:
        _show(checked)
    raise typer.Exit(int(bool(checked.refusal())))


def resample(
    file: Annotated[str, typer.Argument(help="Rows of a prompt, samples and their scores.")],
    out: Annotated[Path, typer.Option(help="What to write: .jsonl or .parquet.")] = Path(
        "pairs.jsonl"
    ),
    temperature: Annotated[
        float, typer.Option(min=0, help="0 accepts the best; large, any.")
    ] = 0.2,
    percentile: Annotated[
        bool, typer.Option("--percentile/--raw", help="Of ranks in [0, 1], or of raw scores.")
    ] = True,
    candidates: Annotated[
        int, typer.Option(min=0, help="Accepted of each prompt (0: half, at least two).")
    ] = 0,
    pairing: Annotated[str, typer.Option(help="extremes or tournament.")] = "extremes",
    seed: Seed = 0,
    json_: Json = False,
) -> None:
    """Make pairs of scored samples by statistical rejection sampling (RSO)."""
    from scoretune.commands.data import resample as rso

    if pairing not in rso.PAIRINGS:
        raise unknown("--pairing", pairing, rso.PAIRINGS)
    if candidates == 1:
        raise UserError("--candidates 1 makes no pair: give 2 or more, or 0 for half")
    rso.check_out(out)
    how = rso.Resampling(temperature, candidates, percentile, pairing, seed)
    result = rso.resample(file, how, out)
    rso.write(result.rows, out)
    report = result.as_dict()
    if json_:
        typer.echo(json.dumps(report | {"out": str(out)}))
        return
    typer.echo(
        f"{report['pairs']:,} pairs of {report['prompts']:,} prompts in {out}"
        + (f", {report['equal']:,} of equal score left out" if report["equal"] else "")
    )
    typer.echo(
        f"mean score {report['mean_score_of_samples']:.4g} of the samples, "
        f"{report['mean_score_of_accepted']:.4g} of the accepted; mean gap of a pair "
        f"{report['mean_gap']:.4g}"
    )


def _show(checked: Checked) -> None:
    """What was understood, a line each; then rows that cannot be read, and what follows."""
    from scoretune.commands.data.summary import lines

    typer.echo(f"{checked.file}: {checked.kind}")
    for name, text in lines(checked):
        typer.echo(f"  {name:<12} {text}")
    problems: dict[str, list[str]] = {}
    for row in checked.broken:
        problems.setdefault(row["problem"], []).append(row["row"])
    for problem, rows in list(problems.items())[:SHOWN]:
        typer.echo(f"{listed(rows, 40)}: {problem}")
    if len(problems) > SHOWN:
        typer.echo(f"… and {len(problems) - SHOWN:,} more problems (--json has all)")
    typer.echo(checked.refusal() or "can be learned from")
