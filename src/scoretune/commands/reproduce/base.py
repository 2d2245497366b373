"""What every experiment is: cells of work that can be stopped and resumed, and a page about them.

A part of an experiment is a module, or an object, with `cells(seeds, quick) -> list[Cell]` and
`present(results, page) -> dict`: the numbers of all cells, by name, become text and figures.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from scoretune.core.files import save_tensors, write_whole

if TYPE_CHECKING:
    from torch import Tensor

Numbers = dict[str, Any]
Watch = Callable[[str, int, int], None]
"""Told the cell that was finished, how many are, and how many there are."""


@dataclass(frozen=True)
class Cell:
    """A piece of work: a module's own function, and plain arguments that say all about it.

    `keeps_files` also gives it `folder`, where it may leave files and find them again.
    """

    name: str
    function: Callable[..., Numbers]
    arguments: Mapping[str, Any]
    keeps_files: bool = False


def run_cells(
    cells: Sequence[Cell], folder: Path, *, jobs: int = 1, watch: Watch | None = None
) -> dict[str, Numbers]:
    """Every cell's numbers by name. Finished ones are read from `folder`/cells, not done again."""
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    done = {cell.name: kept for cell in cells if (kept := _kept(cell, folder)) is not None}
    missing = [cell for cell in cells if cell.name not in done]

    def note(cell: Cell, numbers: Numbers) -> None:
        done[cell.name] = numbers
        if watch is not None:
            watch(cell.name, len(done), len(cells))

    if jobs == 1 or len(missing) < 2:
        for cell in missing:
            note(cell, _do(cell, folder))
    else:
        _in_processes(missing, folder, jobs, note)
    return {cell.name: done[cell.name] for cell in cells}


def _in_processes(
    cells: Sequence[Cell], folder: Path, jobs: int, note: Callable[[Cell, Numbers], None]
) -> None:
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _one_thread)
    try:
        waiting: dict[Future[Numbers], Cell] = {pool.submit(_do, c, folder): c for c in cells}
        for future in as_completed(waiting):
            note(waiting[future], future.result())
    except BaseException:  # Ctrl-C too: what is finished is kept, nobody waits for the rest
        workers = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.terminate()
        raise
    pool.shutdown()


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _do(cell: Cell, folder: Path) -> Numbers:
    start = time.monotonic()
    extra = {"folder": folder} if cell.keeps_files else {}
    numbers = cell.function(**cell.arguments, **extra)
    kept = {
        "arguments": dict(cell.arguments),
        "seconds": round(time.monotonic() - start, 1),
        "numbers": numbers,
    }
    write_whole(folder / "cells" / f"{cell.name}.json", json.dumps(kept) + "\n")
    return _plain(numbers)


def _kept(cell: Cell, folder: Path) -> Numbers | None:
    """The numbers of an earlier run of the very same cell, None if there is none."""
    path = folder / "cells" / f"{cell.name}.json"
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        same = kept["arguments"] == _plain(dict(cell.arguments))
        return kept["numbers"] if same else None
    except (OSError, ValueError, KeyError):
        return None


def spent(cells: Sequence[Cell], folder: Path) -> float:
    """Seconds that all finished cells took, one after the other, whenever they were done."""
    files = [folder / "cells" / f"{cell.name}.json" for cell in cells]
    return float(sum(json.loads(file.read_text(encoding="utf-8"))["seconds"] for file in files))


def _plain(numbers: Numbers) -> Numbers:
    """As JSON gives it back, so that fresh and kept results are alike."""
    plain: Numbers = json.loads(json.dumps(numbers))
    return plain


def kept_tensors(file: Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What `make` gives, from a file that whoever comes first writes.

    Two processes that both come first do the same work and write the same file.
    """
    from safetensors.torch import load_file

    if not file.exists():
        save_tensors(file, make())
    tensors: dict[str, Tensor] = load_file(file)
    return tensors


class Claim(NamedTuple):
    """What a paper says, what it was checked by, the figure that came out, and the verdict."""

    text: str
    checked_by: str
    figure: str
    holds: bool


@dataclass
class Page:
    """A page in markdown with tables and figures, and the numbers behind them."""

    folder: Path
    title: str
    command: str
    lines: list[str] = field(default_factory=list)

    def text(self, paragraph: str) -> None:
        self.lines += [paragraph.strip(), ""]

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        self.lines.append("| " + " | ".join(columns) + " |")
        self.lines.append("|" + "---|" * len(columns))
        self.lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
        self.lines.append("")

    def verdicts(self, claims: Sequence[Claim]) -> dict[str, bool]:
        """A table of what papers claim; which of it holds, for result.json."""
        self.table(
            ["claim", "checked by", "figure", "verdict"],
            [(*claim[:3], "holds" if claim.holds else "FAILS") for claim in claims],
        )
        return {claim.text: claim.holds for claim in claims}

    def claims(self, rows: Sequence[Numbers]) -> None:
        """A table of what was expected and measured, as `claim_row` gives it."""
        self.table(
            ["claim", "expected", "measured", "holds"],
            [
                [r["claim"], r["expected"], r["measured"], "yes" if r["holds"] else "no"]
                for r in rows
            ],
        )

    def figure(self, name: str, figure: Any, caption: str) -> None:
        """`figure` is a matplotlib Figure; it is kept as NAME.svg."""
        from matplotlib import rc_context

        self.folder.mkdir(parents=True, exist_ok=True)
        with rc_context({"svg.hashsalt": self.title}):  # the same numbers give the same file
            figure.savefig(self.folder / f"{name}.svg", metadata={"Date": None})
        self.lines += [f"![{caption}]({name}.svg)", ""]

    def write(self, numbers: Numbers, seconds: float) -> None:
        """README.md and result.json, which say the command, the machine and the work of all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        head = [f"# {self.title}", "", f"`{self.command}` on {machine()}.", ""]
        (self.folder / "README.md").write_text("\n".join(head + self.lines), encoding="utf-8")
        about = {"command": self.command, "machine": machine(), "seconds": round(seconds)}
        kept = json.dumps(about | numbers, indent=1)
        (self.folder / "result.json").write_text(kept + "\n", encoding="utf-8")


def claim_row(
    claim: str, expected: str, measured: float | str, holds: bool, digits: int = 3
) -> Numbers:
    """Something that was expected, what was measured, and whether it holds, for `Page.claims`."""
    text = measured if isinstance(measured, str) else f"{measured:.{digits}g}"
    return {"claim": claim, "expected": expected, "measured": text, "holds": holds}


def machine() -> str:
    """Where numbers were made."""
    import torch

    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    system = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    return f"{system}, {where}, torch {torch.__version__}"


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % interval over seeds, by Student's t; a lone value is its own interval."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, mean, mean
    from scipy import stats

    error = float(stats.sem(values)) * float(stats.t.ppf(0.975, len(values) - 1))
    return mean, mean - error, mean + error


def shown(spread: Sequence[float], digits: int = 3, *, scale: float = 1, sign: str = "") -> str:
    """`20.5 [16.7, 24.2]` for a mean and its interval; `sign` "+" shows signs."""
    mean, low, high = (f"{scale * value:{sign}.{digits}f}" for value in spread)
    return f"{mean} [{low}, {high}]"


def by_arm(results: Mapping[str, Numbers]) -> dict[str, list[Numbers]]:
    """The runs of every arm, in the order of their seeds, for cells that are named ARM-SEED."""
    arms: dict[str, list[Numbers]] = {}
    for name, numbers in results.items():
        arms.setdefault(name.rpartition("-")[0], []).append(numbers)
    return arms
