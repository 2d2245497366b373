"""The miniature Stable Diffusion, and a reward without a gradient: how well the picture compresses.

Score as action takes its ratio form; DRaFT cannot take part. A model that draws nothing compresses
best, so this reward, optimised alone, costs prompt following (arXiv 2305.13301 chose it for that).
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
)

COMPRESSING: Arms = {
    # About 33,000 each. The reward is in kilobytes and hardly varies: κ has its unit, and the
    # critic must first learn what x̂0 does not say.
    "score as action": Arm(
        "score_as_action",
        "score_as_action",
        [
            *("updates=34", "evaluation.every=16", "evaluation.per_task=10"),
            *("objective.critic.warmup=3", "objective.critic.learning_rate=0.004"),
            "objective.kl_weight=0.0003",
        ],
    ),
    "DDPO": Arm("ddpo", "ddpo", ["updates=17", "evaluation.every=8", "evaluation.per_task=10"]),
    "GRPO": Arm("grpo", "grpo", ["updates=10", "evaluation.every=5", "evaluation.per_task=10"]),
}


def cells(seeds: int, quick: bool) -> list[Cell]:
    """One fine-tuning run for each arm and seed."""
    return cells_of(COMPRESSING, "compressibility", seeds, quick, reference="DDPO")


def present(results: dict[str, Numbers], page: Page) -> Numbers:
    """A table and the curves."""
    arms = labelled(results, "compressibility", COMPRESSING)
    page.text(
        "Reward: minus the kilobytes of the picture as JPEG at quality 95, on held-out prompts "
        "through DDIM with 20 steps. Intervals and bands are 95 % over training seeds."
    )
    numbers = compared(arms, "reward", page, scale=1, digits=3)
    page.figure("compressing", draw_curves(arms, "reward", "−kilobytes"), "minus kilobytes")
    return numbers
