"""Options that several verbs share, and what they do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scoretune.core.errors import UserError


def folder(text: str) -> Path:
    """A folder as it is named on the command line. Raises UserError for no name at all, which
    would be the folder one is in."""
    if not text.strip():
        raise UserError("the name of a folder is empty: give one, or leave the option out")
    return Path(text)


Changes = Annotated[list[str] | None, typer.Argument(help="Settings to change, as a.b=c.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object last.")]
Threads = Annotated[int, typer.Option(min=1, max=1024, help="Torch threads.")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of everything random.")]
Folder = Annotated[
    Path | None, typer.Option("--run", parser=folder, help="Run folder (default: below runs/).")
]
PromptFile = Annotated[
    str | None, typer.Option("--prompts", help="File of prompts, as the setting `prompts`.")
]


def set_threads(count: int) -> None:
    """How many threads torch computes with."""
    import torch

    torch.set_num_threads(count)
