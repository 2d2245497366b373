"""The miniature Stable Diffusion: score as action against its rivals at equal network evaluations.

Prompt following: the reward has a gradient, and a judge that is never optimised tells whether the
pictures are right. Same model, prompts, kernel and evaluation for all.
"""

from __future__ import annotations

from scoretune.commands.reproduce.base import Cell, Numbers, Page
from scoretune.commands.reproduce.fine_tuning import cells_of
from scoretune.commands.reproduce.prompt_following import FOLLOWING, follow_prompts


def cells(seeds: int, quick: bool) -> list[Cell]:
    """One fine-tuning run for each arm and seed."""
    return cells_of(FOLLOWING, "reader", seeds, quick, reference="DDPO")


def present(results: dict[str, Numbers], page: Page) -> Numbers:
    """A table and the curves."""
    about = (
        "Reward: the reader. Measured: the judge, which is never optimised, on held-out prompts "
        "through DDIM with 20 steps. Score as action and DRaFT follow the reward's gradient; with "
        "ratios, as DDPO and GRPO, only its values. Intervals and bands are 95 % over training "
        "seeds."
    )
    return follow_prompts(results, FOLLOWING, page, about=about, figure="following")
