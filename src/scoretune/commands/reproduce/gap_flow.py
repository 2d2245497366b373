"""The rectified-flow miniature under MixGRPO at several stochasticities (arXiv 2510.10767 §4).

gDDIM inside the window, DDIM outside it. The gap is measured with noise on every step.
"""

from __future__ import annotations

from scoretune.commands.reproduce import gap_training
from scoretune.commands.reproduce.base import Cell, Numbers, Page
from scoretune.commands.reproduce.mix_grpo import ACTING, BATCH, WINDOW

MIX = gap_training.arms_of(
    "mix_grpo",
    [*ACTING, *WINDOW, *BATCH, "updates=28", "evaluation.every=14", "evaluation.per_task=20"],
)


def cells(seeds: int, quick: bool) -> list[Cell]:
    """One run for each η and seed."""
    return gap_training.cells(MIX, seeds, quick)


def present(results: dict[str, Numbers], page: Page) -> Numbers:
    """The gap while training, and what the ODE makes of it."""
    return gap_training.present(results, MIX, page)
