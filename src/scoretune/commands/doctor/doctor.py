"""Is this installation sound? Laws with known answers, measured on the user's own machine.

The laws are in `laws`, a tuple for each topic. Nothing is trained and nothing is downloaded.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from scoretune.commands.doctor.laws.base import Law, Verdict
from scoretune.core.errors import UserError, unknown

if TYPE_CHECKING:
    import torch

OnLaw = Callable[[Law, int, int], None]
"""Called with the law that is measured next, how many were before it, and of how many."""

FAILS = "[bold red]FAILS[/]"


def installation_laws() -> tuple[Law, ...]:
    """The laws of an installation."""
    from scoretune.commands.doctor.laws import (
        compressed,
        installed,
        learning,
        preference,
        processes,
        reverse,
        samplers,
        stake,
        steps,
    )

    topics = (
        *(processes, reverse, samplers, steps, learning),
        *(preference, compressed, stake, installed),
    )
    return tuple(law for topic in topics for law in topic.LAWS)


def model_laws(path: str) -> tuple[Law, ...]:
    """The laws of a run folder, a model folder or a shipped model."""
    import torch

    from scoretune.commands.doctor.laws.models import laws_of
    from scoretune.training import run_folder
    from scoretune.training.build import build_policy
    from scoretune.training.run_folder import recorded

    policy, base = run_folder.load(path), None
    if policy.has_reference and (Path(path) / "run.json").exists():
        run = recorded(Path(path))
        bare = run.model_copy(update={"model": run.model.model_copy(update={"rank": 0})})
        base = build_policy(bare, torch.device("cpu"))
    return laws_of(policy, base)


def examine(
    device: str = "auto", model: str | None = None, on_law: OnLaw | None = None
) -> list[Verdict]:
    """Measure every law on `auto`, `cpu` or `cuda`, and those of a model too if one is given."""
    import torch

    place = device_named(device)
    laws = installation_laws() + (model_laws(model) if model else ())
    verdicts = []
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for done, law in enumerate(laws):
            if on_law:
                on_law(law, done, len(laws))
            verdicts.append(measure(law, place))
    return verdicts


def measure(law: Law, device: torch.device) -> Verdict:
    """One law; whatever goes wrong on the way is a verdict, not a crash."""
    try:
        return Verdict(law, float(law.measured(device)))
    except Exception as error:  # an unsound installation may raise anything
        text = " ".join(str(error).split())[:200]
        return Verdict(law, float("nan"), f"{type(error).__name__}: {text}")


def device_named(name: str) -> torch.device:
    """The device of that name; `auto` takes CUDA where there is one."""
    import torch

    if name not in ("auto", "cpu", "cuda"):
        raise unknown("device", name, ["auto", "cpu", "cuda"])
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device here, or this build of torch cannot use it: --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def watched(device: str, model: str | None) -> list[Verdict]:
    """`examine` behind a progress bar."""
    from scoretune.commands.display import CellBars

    bars = CellBars()
    task = bars.progress.add_task("laws", total=None, numbers="loading")

    def note(law: Law, done: int, total: int) -> None:
        bars.progress.update(task, completed=done, total=total, numbers=law.name)

    with bars.progress:
        verdicts = examine(device, model, note)
        bars.progress.update(task, completed=len(verdicts), total=len(verdicts), numbers="")
    return verdicts


def show(verdicts: list[Verdict], where: str) -> None:
    """A table of all laws, then one line that says what to make of it."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    table = Table("law", box=None, header_style="bold", pad_edge=False)
    for column in ("expected", "measured", "tolerance"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for verdict in verdicts:
        law = verdict.law
        outcome = "holds" if verdict.passed else "no score" if of_score(verdict) else FAILS
        numbers = f"{law.expected:.6g}", f"{verdict.measured:.6g}", f"{law.tolerance:.1g}"
        table.add_row(escape(law.name), *numbers, outcome)
    console.print(table)
    failed = failures(verdicts)
    for verdict in failed:
        because = verdict.error or f"expected by: {verdict.law.source}"
        console.print(f"FAILS: {verdict.law.name} ({because})", markup=False, soft_wrap=True)
    held = sum(verdict.passed for verdict in verdicts)
    text = f"all {held} laws hold {where}"
    if failed:
        text = (
            f"{len(failed)} of {len(verdicts)} laws fail {where}: do not trust its numbers before "
            "they hold (reinstall with the versions in constraints.txt)"
        )
    if any(of_score(verdict) for verdict in verdicts):
        text += (
            "; with noise the model draws another law than without, as a network does that is no "
            "exact score (hardly trained, guided or fine-tuned): scoretune gap says what it costs"
        )
    console.print(text, markup=False, soft_wrap=True)


def of_score(verdict: Verdict) -> bool:
    """Whether it says something of the network that is neither right nor wrong."""
    return verdict.law.of_scores and not verdict.passed and verdict.error is None


def failures(verdicts: list[Verdict]) -> list[Verdict]:
    """The laws that fail where they have to hold."""
    return [verdict for verdict in verdicts if not (verdict.passed or of_score(verdict))]


def run(device: str = "auto", model: str | None = None, json_: bool = False) -> int:
    """What the command does: measure, print a table or JSON, and return the exit code."""
    start, place = time.monotonic(), device_named(device)
    verdicts = watched(device, model)
    if json_:
        print(json.dumps([verdict.as_dict() for verdict in verdicts]))
    else:
        show(verdicts, f"on {place.type}, in {time.monotonic() - start:.0f} s")
    return int(bool(failures(verdicts)))
