"""A hard case on purpose: a base that was trained on clean captions and draws what it can.

Where captions were noisy, much of what fine-tuning wins is there to be found. Here it is not.
"""

from __future__ import annotations

from scoretune.commands.reproduce.base import Cell, Numbers, Page
from scoretune.commands.reproduce.fine_tuning import cells_of
from scoretune.commands.reproduce.prompt_following import FOLLOWING, follow_prompts

ARMS = {arm: FOLLOWING[arm] for arm in ("score as action", "DDPO")}


def cells(seeds: int, quick: bool, model: str) -> list[Cell]:
    """One run for each arm and seed on the model in that folder."""
    source = [f"model.source={model}", "evaluation.prompts=scenes-held-out"]
    return cells_of(ARMS, "reader", seeds, quick, reference="DDPO", more=source)


def present(results: dict[str, Numbers], page: Page) -> Numbers:
    """Does the value gradient move what the policy gradient does not?"""
    about = (
        "A base trained with `scoretune pretrain scenes FOLDER --caption-noise 0 --steps 9500`, "
        "whose captions were never wrong. Reward, measurement and arms as on the shipped model."
    )
    return follow_prompts(results, ARMS, page, about=about, figure="hard")
