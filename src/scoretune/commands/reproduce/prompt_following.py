"""The miniature Stable Diffusion: score as action against its rivals at equal network evaluations.

Prompt following: the reward has a gradient, and a judge that is never optimised tells whether the
pictures are right. Same model, prompts, kernel and evaluation for all.
"""

from __future__ import annotations

from dataclasses import dataclass

from scoretune.commands.reproduce.base import Cell, Numbers, Page
from scoretune.commands.reproduce.fine_tuning import (
    Arm,
    Arms,
    cells_of,
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
        "ratio", "score_as_action", ["objective.form=ratio", "updates=67", "evaluation.every=17"]
    ),
    "DDPO": Arm("ddpo", "ddpo", ["updates=34", "evaluation.every=8"]),
    "GRPO": Arm("grpo", "grpo", ["updates=25", "evaluation.every=6"]),
    "DRaFT-3": Arm("draft", "draft", ["evaluation.every=68"]),
}


@dataclass(frozen=True)
class Following:
    """The experiment on some arms: `about` begins its page, `figure` is the name of its curves."""

    arms: Arms
    about: str
    figure: str

    def cells(self, seeds: int, quick: bool, model: str | None = None) -> list[Cell]:
        """One fine-tuning run for each arm and seed, of the shipped model or of another."""
        prompts = "evaluation.prompts=scenes-held-out"
        more = [] if model is None else [f"model.source={model}", prompts]
        return cells_of(self.arms, "reader", seeds, quick, reference="DDPO", more=more)

    def present(self, results: dict[str, Numbers], page: Page) -> Numbers:
        """A table by the judge, a sentence on the optimised reader, and the judge's curves."""
        runs = labelled(results, "reader", self.arms)
        page.text(self.about)
        numbers = compared(runs, "judge", page)
        gains = (f"{label} {points(gain(seeds, 'reader'))}" for label, seeds in runs.items())
        page.text(f"In the eyes of the reader, which is optimised: {', '.join(gains)}.")
        curves = draw_curves(runs, "judge", "judge accuracy")
        page.figure(self.figure, curves, "judge accuracy")
        return numbers


SHIPPED = Following(
    FOLLOWING,
    "Reward: the reader. Measured: the judge, which is never optimised, on held-out prompts "
    "through DDIM with 20 steps. Score as action and DRaFT follow the reward's gradient; with "
    "ratios, as DDPO and GRPO, only its values. Intervals and bands are 95 % over training "
    "seeds.",
    "following",
)
HARD = Following(
    {arm: FOLLOWING[arm] for arm in ("score as action", "DDPO")},
    "A base trained with `scoretune pretrain scenes FOLDER --caption-noise 0 --steps 9500`, "
    "whose captions were never wrong. Reward, measurement and arms as on the shipped model.",
    "hard",
)
"""A hard case on purpose. Where captions were noisy, much of what fine-tuning wins is there to be
found; where they were clean it is not."""
