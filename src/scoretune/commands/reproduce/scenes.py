"""The miniature Stable Diffusion: score as action against its rivals at equal network evaluations.

Prompt following: the reward has a gradient, and a judge that is never optimised tells whether the
pictures are right. Same model, prompts, kernel and evaluation for all.
"""

from __future__ import annotations

from scoretune.commands.reproduce.base import Cell, Numbers, Page
from scoretune.commands.reproduce.fine_tuning import (
    Arm,
    Arms,
    cells_of,
    compared,
    draw_curves,
    labelled,
    readers_gains,
)

FOLLOWING: Arms = {
    # About 65,000 network evaluations each: rollouts, references, slopes and learning all count.
    "score as action": Arm("score_as_action", "score_as_action"),
    "score as action, ratios": Arm(
        "ratio", "score_as_action", ["objective.form=ratio", "updates=71", "evaluation.every=18"]
    ),
    "DDPO": Arm("ddpo", "ddpo", ["updates=34", "evaluation.every=8"]),
    "GRPO": Arm("grpo", "grpo", ["updates=20", "evaluation.every=5"]),
    "DRaFT-3": Arm("draft", "draft", ["evaluation.every=68"]),
}


def cells(seeds: int, quick: bool) -> list[Cell]:
    """One fine-tuning run for each arm and seed."""
    return cells_of(FOLLOWING, "reader", seeds, quick)


def present(results: dict[str, Numbers], page: Page) -> Numbers:
    """A table and the curves."""
    following = labelled(results, "reader", FOLLOWING)
    page.text(
        "Reward: the reader. Measured: the judge, which is never optimised, on held-out prompts "
        "through DDIM with 20 steps. Score as action and DRaFT follow the reward's gradient; with "
        "ratios, as DDPO and GRPO, only its values. Intervals and bands are 95 % over training "
        "seeds."
    )
    numbers = compared(following, "judge", page)
    page.text(readers_gains(following))
    page.figure("following", draw_curves(following, "judge", "judge accuracy"), "judge accuracy")
    return numbers
