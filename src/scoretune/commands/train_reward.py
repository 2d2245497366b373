"""`scoretune train reward`: a reward model learns from votes; what `train` hands on to."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from scoretune.commands.options import set_threads
from scoretune.core.errors import UserError

NAME = "reward"


def going_on(resume: Path | None) -> bool:
    """Whether a folder is of such a run."""
    if resume is None:
        return False
    from scoretune.training.reward_model.run import is_reward_run

    return is_reward_run(resume)


def train_reward(
    changes: Sequence[str], run: Path | None, resume: Path | None, *, threads: int, json_: bool
) -> None:
    """Train, or go on with a folder; ends with a report to look at."""
    from scoretune.commands.display import Bars
    from scoretune.core import lock
    from scoretune.training.reward_model import run as runs
    from scoretune.training.reward_model import settings as settings_of

    if resume is not None:
        if changes:
            raise UserError("a run of train reward goes on with its own settings: leave them out")
        settings, where = runs.recorded(resume), resume
    else:
        settings = settings_of.read(changes)
        where = run or Path("runs") / f"reward-{time.strftime('%Y%m%d-%H%M%S')}"
        if (where / runs.RECORD).exists() or (where / "run.json").exists():
            raise UserError(
                f"{str(where)!r} holds a run: choose another --run, or --resume {where}"
            )
    set_threads(threads)
    bars = Bars()
    with bars.progress, lock.held(where):
        result = runs.train_reward(settings, where, bars.show)
    typer.echo(json.dumps(result)) if json_ else _conclude(result)


def _conclude(result: dict[str, Any]) -> None:
    """The result in a few lines, and what to do with it."""
    held, where = result["held_out"], result["run"]
    typer.echo(
        f"held-out votes: {held['accuracy']:.1%} [{held['low']:.1%}, {held['high']:.1%}] as the "
        f"reward says, calibration error {held.get('calibration_error', 0):.3f}",
        err=True,
    )
    if result["scale"] is None:
        typer.echo("the left-out votes do not agree with it: collect more", err=True)
    typer.echo(f"{result['seconds']:.0f} s; look at {where}/report.html", err=True)
    typer.echo(f"use it: scoretune train draft 'reward={where}'", err=True)
