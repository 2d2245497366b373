"""The settings of `scoretune train reward`, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from scoretune.core.config import Strict
from scoretune.core.errors import UserError
from scoretune.preference import TieModel
from scoretune.training.overrides import fitted, words


class RewardSettings(Strict):
    """What is learned from, on which features, and how."""

    data: str = Field("", description="Votes on pairs: a store, a folder, a file, datasets:ID.")
    rankings: str = Field("", description="Whole rankings of pictures: a file or a folder.")
    features: str = Field(
        "auto",
        description="pixels (small pictures, a network of its own), scenes (what the shipped "
        "reader sees), or the folder or hub id of a CLIP or SigLIP; auto: scenes for pictures of "
        "the shipped world, else pixels.",
    )
    revision: str | None = Field(None, description="Of the CLIP or SigLIP.")
    side: int = Field(0, description="pixels: width and height; 0: those of the data.", ge=0)
    ties: TieModel = Field("davidson", description="How ties come about.")
    members: int = Field(4, description="Of the ensemble.", ge=1, le=64)
    width: int = Field(32, description="Of the heads.", ge=8, le=4096, multiple_of=4)
    held_out: float = Field(0.2, description="Share of the prompts, only measured.", gt=0, lt=0.9)
    updates: int = Field(400, description="Of each member.", ge=1, le=10**7)
    batch: int = Field(32, description="Pairs an update.", ge=1)
    learning_rate: float = Field(2e-3, description="Of AdamW, at first; it falls to 0.", gt=0)
    weight_decay: float = Field(0.01, description="Of AdamW.", ge=0)
    checkpoint_every: int = Field(100, description="Updates.", ge=1)
    seed: int = Field(0, description="Of everything random.", ge=0, lt=2**32)


def read(changes: Sequence[str]) -> RewardSettings:
    """The settings of `a=b` words. Raises UserError for what is unknown or unfit."""
    return validated(words(RewardSettings, changes))


def validated(tree: dict[str, Any]) -> RewardSettings:
    """Settings from plain data, with one line on the first thing that does not fit."""
    settings = fitted(RewardSettings, tree)
    if not (settings.data or settings.rankings):
        raise UserError(
            "name the votes to learn from: scoretune train reward data=STORE_OR_PAIRS, or "
            "rankings=FILE"
        )
    if settings.side and settings.features not in ("auto", "pixels"):
        raise UserError("side is of features=pixels: leave it out, or change that")
    return settings
