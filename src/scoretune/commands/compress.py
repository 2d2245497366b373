"""`scoretune compress check`: how sparse data are, and what decoding measurements misses and
costs."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scoretune.commands.options import Changes, Json, Threads, set_threads
from scoretune.core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from scoretune.core.config import Compress
    from scoretune.data.datasets import Data
    from scoretune.training.compressing import Plan

SHARES = (0.5, 1.0, 1.5, 2.0)
"""Of δ, or for the linear decoder of m: measurements that are tried, beside m."""
TRIED = 64
"""Held-out states that are recovered."""
COLUMNS = {
    "m": "m",
    "predicted_error": "predicted error",
    "measured_error": "measured",
    "milliseconds": "ms a state",
    "linear_error": "by a linear decoder",
}
"""Of the table of numbers of measurements."""


def check(
    data: Annotated[str, typer.Argument(help="A folder of pictures, an array, a table, digits …")],
    changes: Changes = None,
    out: Annotated[Path, typer.Option(help="Picture of originals beside recoveries.")] = Path(
        "recoveries.png"
    ),
    threads: Threads = 1,
    json_: Json = False,
) -> None:
    """Say how sparse data are in each basis, how many measurements they need, and what sparse
    recovery and the linear decoder miss of them, before anything is trained.

    Takes the settings of training, e.g. dataset.size=48 compress.basis=dct. Exits with 1 where
    training would refuse.
    """
    from scoretune.commands.display import counting

    set_threads(threads)
    if out.suffix != ".png":
        raise UserError(f"cannot write {str(out)!r}: choose --out name.png")
    with counting("numbers of measurements tried") as note:
        report = examined(data, changes or [], out, note)
    if json_:
        typer.echo(json.dumps(report))
    else:
        _show(report, training_command(data, changes or []))
    raise typer.Exit(int(report["refusal"] is not None))


def examined(
    source: str, changes: list[str], out: Path, note: Callable[[int, int], None]
) -> dict[str, Any]:
    """Everything that the command says, and the picture; `note` is told how many are tried."""
    import torch

    from scoretune import recipes
    from scoretune.data.datasets import read_data
    from scoretune.training import compressing
    from scoretune.training.overrides import changed

    plain = ["model.source=mlp", f"data={source}", "compress.ratio=auto"]
    run = changed(recipes.named("supervised"), [*plain, *changes])
    learned, held_out = read_data(run.data, run.dataset).split(run.dataset.held_out, run.seed)
    forced = run.compress.model_copy(update={"force": True})
    square = run.model.source != "mlp"
    plan = compressing.plan(learned, forced, square=square, source=source)
    settings = run.compress
    recommended = plan.chosen.recommended(
        settings.rule, exponent=settings.exponent, steps=settings.steps
    )
    around = plan.chosen.delta if plan.decoder == "sparse" else plan.m
    states = held_out.states[:TRIED]
    rows = []
    sizes = {min(max(1, round(share * around)), plan.chosen.dimension) for share in SHARES}
    tried = sorted(sizes | {plan.m})
    for done, m in enumerate(tried):
        note(done, len(tried))
        with torch.no_grad():
            row, recovered = _tried(learned, forced, plan, m, states)
        rows.append(row)
        if m == plan.m:
            _draw(states, recovered, held_out.kind, held_out.names, out)
    return {
        "data": source,
        "states": len(learned) + len(held_out),
        "bases": [
            {
                "basis": s.name,
                "sparsity": s.average,
                "sparsity_of_nine_in_ten": s.high,
                "delta": s.delta,
                "nonnegative": s.nonnegative,
            }
            for s in plan.surveys
        ],
        "plan": plan.as_dict() | {"recommended": recommended},
        "recovery": rows,
        "picture": str(out),
        "refusal": compressing.refusal(plan, settings, source),
    }


def _tried(
    data: Data, settings: Compress, plan: Plan, m: int, states: Tensor
) -> tuple[dict[str, Any], Tensor]:
    """Recovery of held-out states from m measurements in numbers, and what was recovered."""
    from dataclasses import replace

    from scoretune.training import compressing

    compression, _, _ = compressing.compression(data, settings, replace(plan, m=m, side=0))
    start = time.perf_counter()
    error, recovered = compressing.measured_error(compression, states)
    seconds = time.perf_counter() - start
    row = {
        "m": m,
        "measured_error": error,
        "milliseconds": round(1000 * seconds / len(states), 2),
    }
    if compression.decoder == "sparse":
        row["predicted_error"] = plan.chosen.predicted_error(m)
        row["missed_precision"] = compression.certificate.missed
        row["iterations"] = compression.certificate.as_dict()["iterations"]
        if compression.linear is not None:
            linear = replace(compression, decoder="linear")
            row["linear_error"], _ = compressing.measured_error(linear, states)
    return row, recovered


def _draw(states: Tensor, recovered: Tensor, kind: str, names: tuple[str, ...], out: Path) -> None:
    """Rows of originals, each above its recoveries; points and series over each other."""
    import torch

    from scoretune.evaluate.report import gallery

    if kind != "images":
        gallery.show(recovered, kind, out, names=names, real=states, label="recovered")
        return
    side = max((k for k in (2, 4, 6, 8) if k * k // 2 <= len(states)), default=1)
    rows = [
        part[first : first + side].clamp(0, 1)
        for first in range(0, side * side // 2 or 1, side)
        for part in (states, recovered)
    ]
    gallery.show(torch.cat(rows), kind, out)


def training_command(source: str, changes: list[str]) -> str:
    """What trains with the settings that were looked at."""
    plain = {"model.source": "mlp", "compress.ratio": "auto"}
    settings = {**plain, **{name: value for name, _, value in (c.partition("=") for c in changes)}}
    words = [f"data={source}", *(f"{name}={value}" for name, value in settings.items())]
    return shlex.join(["scoretune", "train", "supervised", *words])


def _show(report: dict[str, Any], train: str) -> None:
    from rich.console import Console
    from rich.table import Table

    console, plan = Console(), report["plan"]
    tables = (
        (
            ("basis", "coefficients", "of 9 in 10", "delta"),
            [
                (b["basis"], b["sparsity"], b["sparsity_of_nine_in_ten"], b["delta"])
                for b in report["bases"]
            ],
        ),
        (
            list(COLUMNS.values()),
            [[row.get(name, "–") for name in COLUMNS] for row in report["recovery"]],
        ),
    )
    typer.echo(f"{report['data']}: {report['states']:,} states of {plan['dimension']} numbers")
    for columns, rows in tables:
        table = Table(*columns, box=None, header_style="bold", pad_edge=False)
        for row in rows:
            table.add_row(*(v if isinstance(v, str) else f"{v:.4g}" for v in row))
        console.print(table)
    kept = next(row for row in report["recovery"] if row["m"] == plan["m"])
    if missed := kept.get("missed_precision"):
        typer.echo(
            f"note: the decoder stopped early for {missed} states: raise compress.iterations"
        )
    where = f" in {plan['basis']}" if plan["decoder"] == "sparse" else ""
    typer.echo(
        f"{plan['m']} measurements{where} ({plan['m'] / plan['dimension']:.0%} of the data), "
        f"{plan['rule']}; look at {report['picture']}"
    )
    typer.echo(report["refusal"] or f"can be learned compressed: {train}")
