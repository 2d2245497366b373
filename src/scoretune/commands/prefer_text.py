"""`scoretune prefer-text`: a language model learns from pairs of completions."""

from __future__ import annotations

import json
import os
import time
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from scoretune.commands.options import Changes, Folder, Json, Threads, folder, set_threads
from scoretune.core.errors import UserError


def prefer_text(
    model: Annotated[
        str | None, typer.Argument(help="A folder or hub id of a causal language model.")
    ] = None,
    changes: Changes = None,
    resume: Annotated[
        Path | None, typer.Option(parser=folder, help="Go on with this run folder.")
    ] = None,
    run: Folder = None,
    threads: Threads = 1,
    json_: Json = False,
) -> None:
    """Tune a language model on pairs of completions: MODEL data=pairs.jsonl preset=rainbow."""
    from scoretune.commands.display import Bars
    from scoretune.core import lock
    from scoretune.training.language import run as runs
    from scoretune.training.language import settings as settings_of

    if resume is not None:
        if model is not None or run is not None:
            raise UserError(
                "--resume goes on in its own folder: leave out model, settings and --run"
            )
        where = resume
        source, settings = runs.recorded(where)
    elif model is None:
        raise UserError("name a model, and its pairs: scoretune prefer-text MODEL data=pairs.jsonl")
    else:
        source, settings = model, settings_of.read(changes or [])
        where = run or Path("runs") / f"prefer_text-{time.strftime('%Y%m%d-%H%M%S')}"
        if (where / runs.RECORD).exists():
            raise UserError(
                f"{str(where)!r} holds a run: choose another --run, or --resume {where}"
            )
    _prepare()
    set_threads(threads)
    bars = Bars()
    with bars.progress, lock.held(where):
        result = runs.prefer(source, settings, where, bars.show, resume=resume is not None)
    typer.echo(json.dumps(result)) if json_ else _conclude(result)


def _prepare() -> None:
    """Refuse to begin without TRL; have it and its libraries say nothing, here or elsewhere."""
    if find_spec("trl") is None or find_spec("datasets") is None:
        raise UserError("language models need TRL: pip install 'scoretune[language]'")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    warnings.filterwarnings("ignore", module="transformers|peft|trl")
    from datasets import disable_progress_bars

    disable_progress_bars()


def _conclude(result: dict[str, Any]) -> None:
    """The result in a few lines, and what to do with it."""
    held_out = result["held_out"]
    if "accuracy" in held_out:
        typer.echo(f"held-out pairs: accuracy {held_out['accuracy']:.1%}", err=True)
    if "accuracy" in result:
        typer.echo(f"training pairs, at the end: accuracy {result['accuracy']:.1%}", err=True)
    typer.echo(f"{result['seconds']:.0f} s; the model is in {result['model']}", err=True)
