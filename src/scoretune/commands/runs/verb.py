"""`scoretune runs`: what became of runs, and some of them side by side."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from scoretune.core.errors import UserError

PIPED = 200  # characters a line, where nobody looks at a terminal


def runs(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            help="A folder (default: runs); or compare RUN RUN …; or open RUN.",
            metavar="[FOLDER] | compare RUN RUN … | open RUN",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="compare: write the curves of all to this page, .html.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object last.")] = False,
) -> None:
    """List runs, newest first; compare some; or open the report of one."""
    first, *rest = words or ["runs"]
    if out is not None and first != "compare":
        raise UserError("--out is for scoretune runs compare RUN RUN: leave it out")
    if first == "compare":
        _compare([Path(name) for name in rest], out, json_)
    elif first == "open":
        _open(rest)
    elif rest:
        raise UserError(
            f"one folder at a time, got {' '.join(words or [])!r}: compare puts side "
            "by side what follows it"
        )
    else:
        _list(Path(first), json_)


def _list(folder: Path, json_: bool) -> None:
    from scoretune.commands.runs import index
    from scoretune.evaluate.report import record

    found = index.listed(folder)
    if json_:
        typer.echo(json.dumps([one.as_dict() for one in found]))
        return
    if not found:
        typer.echo(f"no runs below {folder}")
        return
    heads = (
        "run",
        "recipe",
        "model",
        "reward",
        "updates",
        "before → after",
        "judge",
        "time",
        "state",
    )
    rows = []
    for one in found:
        reward = _change(one.reward)
        told = reward if one.measure == "reward" or not reward else f"{one.measure} {reward}"
        alarms = f", {one.alarms} alarm{'s' * (one.alarms > 1)}" if one.alarms else ""
        of = record.NOTHING if one.updates is None else str(one.updates)
        rows.append(
            (
                _below(one.run, folder),
                one.recipe or record.NOTHING,
                one.model or record.NOTHING,
                index.shortened(one.reward_name or record.NOTHING),
                f"{one.done}/{of}",
                told or record.NOTHING,
                _change(one.judge) or record.NOTHING,
                _time(one.seconds),
                one.state + alarms,
            )
        )
    _show(heads, rows)


def _compare(folders: Sequence[Path], out: Path | None, json_: bool) -> None:
    from scoretune.commands.runs import index

    compared = index.compare(folders)
    if out is not None:
        from scoretune.commands.runs.page import write_page

        write_page(compared, out)
    if json_:
        typer.echo(json.dumps(compared.as_dict() | ({"page": str(out)} if out else {})))
        return
    _rows("settings that differ", compared.names, compared.settings)
    if not compared.settings:
        typer.echo("all settings are the same")
    _rows("results, with 95 % intervals over prompts", compared.names, compared.results)
    if out is not None:
        typer.echo(f"look at {out}")


def _open(names: Sequence[str]) -> None:
    import webbrowser

    if len(names) != 1:
        raise UserError("name one run: scoretune runs open RUN")
    page = Path(names[0]) / "report.html"
    if not page.is_file():
        raise UserError(
            f"{str(page)!r} is not there: a report is written when a run ends; scoretune train "
            f"--resume {names[0]} goes on with it"
        )
    try:
        opened = webbrowser.open(page.resolve().as_uri())
    except webbrowser.Error:
        opened = False
    typer.echo(str(page) if opened else f"no browser opened: look at {page}")


def _rows(title: str, names: Sequence[str], rows: Mapping[str, Sequence[Any]]) -> None:
    if rows:
        from scoretune.evaluate.report.record import NOTHING

        told = [(n, *(NOTHING if v is None else str(v) for v in row)) for n, row in rows.items()]
        _show((title, *names), told)


def _show(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console() if sys.stdout.isatty() else Console(width=PIPED)
    table = Table()
    for head in heads:
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table, markup=False)


def _below(run: str, folder: Path) -> str:
    inside = Path(run).relative_to(folder)
    return run if str(inside) == "." else str(inside)


def _change(ends: tuple[float | None, float | None] | None) -> str:
    from scoretune.evaluate.report.record import plain

    if ends is None or ends == (None, None):
        return ""
    return f"{plain(ends[0])} → {plain(ends[1])}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
