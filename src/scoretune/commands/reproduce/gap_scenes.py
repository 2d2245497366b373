"""The miniature Stable Diffusion under DDPO at several stochasticities (arXiv 2510.10767 §4).

gDDIM is the training kernel: plain DDIM cannot hold more noise than η ≈ 1 (`Posterior.limit`).
"""

from __future__ import annotations

from scoretune.commands.reproduce import gap_training
from scoretune.commands.reproduce.base import Cell, Numbers, Page

DDPO = gap_training.arms_of("ddpo", ["updates=24", "evaluation.every=8"])


def cells(seeds: int, quick: bool) -> list[Cell]:
    """One run for each η and seed."""
    return gap_training.cells(DDPO, seeds, quick)


def present(results: dict[str, Numbers], page: Page) -> Numbers:
    """The gap while training, and what the ODE makes of it."""
    return gap_training.present(results, DDPO, page)
