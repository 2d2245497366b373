"""Options that several verbs share, and what they do."""

from __future__ import annotations

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object last.")]
Threads = Annotated[int, typer.Option(min=1, help="Torch threads.")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of everything random.")]


def set_threads(count: int) -> None:
    """How many threads torch computes with."""
    import torch

    torch.set_num_threads(count)
