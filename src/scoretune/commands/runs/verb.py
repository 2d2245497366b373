"""`scoretune runs`: what became of runs, and some of them side by side."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scoretune.commands.options import Json
from scoretune.core.errors import UserError
from scoretune.evaluate.report.format import NOTHING, duration, plain

if TYPE_CHECKING:
    from scoretune.commands.runs.index import Ends, Summary

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
    json_: Json = False,
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


COLUMNS: Mapping[str, Callable[[Summary], str | None]] = {
    "recipe": lambda run: run.recipe,
    "model": lambda run: run.model,
    "reward": lambda run: shortened(run.reward_name or ""),
    "updates": lambda run: f"{run.done}/{NOTHING if run.updates is None else run.updates}",
    "before → after": lambda run: _change(run.reward, run.measure.removeprefix("reward")),
    "judge": lambda run: _change(run.judge),
    "time": lambda run: None if run.seconds is None else duration(run.seconds),
    "state": lambda run: run.state + _alarms(run.alarms),
}
"""What the list says of a run beside its name; a dash where that is nothing."""


def _list(folder: Path, json_: bool) -> None:
    from scoretune.commands.runs import index

    summaries = index.listed(folder)
    if json_:
        typer.echo(json.dumps([run.as_dict() for run in summaries]))
    elif not summaries:
        typer.echo(f"no runs below {folder}")
    else:
        columns = COLUMNS.values()
        rows = [(_below(run.run, folder), *(c(run) for c in columns)) for run in summaries]
        _show(("run", *COLUMNS), rows)


def _compare(folders: Sequence[Path], out: Path | None, json_: bool) -> None:
    from scoretune.commands.runs import index

    comparison = index.compare(folders)
    if out is not None:
        from scoretune.commands.runs.page import write_page

        write_page(comparison, out)
    if json_:
        typer.echo(json.dumps(comparison.as_dict() | ({"page": str(out)} if out else {})))
        return
    tables: tuple[tuple[str, Mapping[str, Sequence[Any]]], ...] = (
        ("settings that differ", comparison.settings),
        ("results, with 95 % intervals over prompts", comparison.results),
    )
    for title, rows in tables:
        if rows:
            _show((title, *comparison.names), [(name, *row) for name, row in rows.items()])
        elif rows is comparison.settings:
            typer.echo("all settings are the same")
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


def _show(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table in the terminal; a dash stands for nothing."""
    from rich.console import Console
    from rich.table import Table

    console = Console() if sys.stdout.isatty() else Console(width=PIPED)
    table = Table()
    for head in heads:
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(*(NOTHING if cell in (None, "") else str(cell) for cell in row))
    console.print(table, markup=False)


def _below(run: str, folder: Path) -> str:
    return run if Path(run) == folder else str(Path(run).relative_to(folder))


def shortened(name: str, most: int = 24) -> str:
    """A name of at most `most` characters; an ellipsis stands for what was cut off its end."""
    return name if len(name) <= most else name[: most - 1] + "\u2026"


def _change(ends: Ends | None, measure: str = "") -> str:
    if ends is None or ends == (None, None):
        return ""
    return f"{measure} {plain(ends[0])} → {plain(ends[1])}".strip()


def _alarms(count: int) -> str:
    return f", {count} alarm{'s' * (count > 1)}" if count else ""
