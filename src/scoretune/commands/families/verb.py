"""`scoretune families`: does every family of models work here?"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from scoretune.commands.options import Json, Threads, set_threads

if TYPE_CHECKING:
    from scoretune.commands.families.families import Report

COLUMNS = ("parity", "lora", "full", "export", "resume")


def families(
    only: Annotated[
        list[str] | None, typer.Option(help="This family alone; may be repeated.")
    ] = None,
    threads: Threads = 1,
    json_: Json = False,
) -> None:
    """Measure every family of models on a miniature of it; exits with 1 if one fails."""
    from scoretune.commands.display import CellBars
    from scoretune.commands.families.families import examine, selected

    set_threads(threads)
    start = time.monotonic()
    selected(only or ())  # an unknown name needs no bar
    bars = CellBars()
    with bars.progress:
        reports = examine(only or (), bars.watcher("families"))
    if json_:
        typer.echo(json.dumps([each.as_dict() for each in reports]))
    else:
        _show(reports, time.monotonic() - start)
    raise typer.Exit(int(any(each.failed for each in reports)))


def _show(reports: Sequence[Report], seconds: float) -> None:
    """A table of all families, then one line that says what to make of it."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("family", no_wrap=True)
    for column in (*COLUMNS, "weights", "s"):
        table.add_column(column, justify="right", no_wrap=True)
    for each in reports:
        cells = [_cell(getattr(each, name), name in each.failed) for name in COLUMNS]
        table.add_row(each.family, *cells, each.weights[:8], f"{each.seconds:.0f}")
    console.print(table)
    bad = [each for each in reports if each.failed]
    for each in bad:
        line = f"FAILS: {each.family}: {each.because}"
        console.print(line, markup=False, soft_wrap=True)
    text = f"{len(reports) - len(bad)} of {len(reports)} families work, in {seconds:.0f} s"
    console.print(text, markup=False)


def _cell(value: float | bool | None, failed: bool) -> str:
    if value is None:
        text = "-"
    else:
        text = ("yes" if value else "no") if isinstance(value, bool) else f"{value:.0e}"
    return f"[bold red]{text}[/]" if failed else text
