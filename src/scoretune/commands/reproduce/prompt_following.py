"""Fine-tuning towards prompts at equal network evaluations: the arms, and the page about them."""

from __future__ import annotations

from scoretune.commands.reproduce.base import Numbers, Page
from scoretune.commands.reproduce.fine_tuning import (
    Arm,
    Arms,
    compared,
    draw_curves,
    gain,
    labelled,
    points,
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


def follow_prompts(
    results: dict[str, Numbers], arms: Arms, page: Page, *, about: str, figure: str
) -> Numbers:
    """A text, a table by the judge, a sentence on the optimised reader, and the judge's curves."""
    runs = labelled(results, "reader", arms)
    page.text(about)
    numbers = compared(runs, "judge", page)
    gains = (f"{label} {points(gain(seeds, 'reader'))}" for label, seeds in runs.items())
    page.text(f"In the eyes of the reader, which is optimised: {', '.join(gains)}.")
    page.figure(figure, draw_curves(runs, "judge", "judge accuracy"), "judge accuracy")
    return numbers
