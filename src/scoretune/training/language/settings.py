"""The settings of `scoretune prefer-text`, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from scoretune.core.config import Strict
from scoretune.core.errors import UserError, unknown
from scoretune.preference import PRESETS, Preset
from scoretune.training.overrides import fitted, words

NO_FIXED_REFERENCE = "presets that are compared with a fixed reference"


class PreferText(Strict):
    """What is learned from, by which loss, and how."""

    data: str = Field("", description="Pairs: .jsonl, .json, .csv, .parquet, datasets:ID.")
    held_out: str = Field("", description="Pairs that are only measured, at the end.")
    ties: Literal["keep", "drop"] = Field("keep", description="Pairs with label 0.5.")
    raters: Literal["soft", "separate"] = Field(
        "soft", description="Rows of one pair: one soft label, or rows of their own."
    )
    preset: str = Field("rainbow", description="The loss, by its name in scoretune.preference.")
    beta: float | None = Field(
        None, description="Null: 10 for losses per token, 0.1 for those of whole completions."
    )
    offset: float = Field(1.0, description="odpo: margin for a difference of scores of 1.", ge=0)
    rank: int = Field(16, description="Of LoRA; 0 trains every weight.", ge=0, le=4096)
    learning_rate: float | None = Field(
        None, description="Null: 1e-5 for LoRA, 1e-6 for every weight.", gt=0
    )
    epochs: float = Field(1.0, description="Passes over the pairs.", gt=0)
    updates: int | None = Field(None, description="Instead of epochs.", ge=1)
    batch: int = Field(8, description="Pairs at once.", ge=1)
    accumulate: int = Field(1, description="Batches an update.", ge=1)
    warm_up: float = Field(0.1, description="Share of the updates.", ge=0, lt=1)
    max_length: int | None = Field(
        None,
        description="Tokens of prompt and completion. Null: 1024, or as many as the model takes.",
        ge=2,
    )
    precision: Literal["float32", "bfloat16"] = Field("float32", description="Of activations.")
    gradient_checkpointing: bool = Field(False, description="Memory for a fifth more time.")
    reference_cache: str = Field(
        "", description="Folder of the reference's terms, for many runs; empty: in the run's."
    )
    reference_every: int = Field(512, description="trdpo, sdpo: updates between moves.", ge=1)
    checkpoint_every: int = Field(100, description="Updates.", ge=1)
    seed: int = Field(0, description="Of everything random.", ge=0, lt=2**32)

    @property
    def method(self) -> Preset:
        return PRESETS[self.preset]

    @property
    def temperature(self) -> float:
        """β."""
        per_token = self.method.length_normalised and not self.method.beta_outside
        return self.beta if self.beta is not None else 10.0 if per_token else 0.1

    @property
    def rate(self) -> float:
        """The learning rate."""
        return self.learning_rate or (1e-5 if self.rank else 1e-6)

    def unread(self) -> dict[str, str]:  # type: ignore[override]
        """Settings that a run never reads, and with what it would."""
        preset, unread = self.method, {}
        cached = preset.kind == "pair" and preset.reference_update is None
        if not cached or not (preset.needs_reference or preset.needs_scale):
            unread["reference_cache"] = NO_FIXED_REFERENCE
        if not preset.offset:
            unread["offset"] = "odpo"
        if preset.reference_update is None:
            unread["reference_every"] = "trdpo and sdpo"
        if self.updates is not None:
            unread["epochs"] = "runs without updates"
        return unread


def read(changes: Sequence[str]) -> PreferText:
    """The settings of `a=b` words. Raises UserError for what is unknown, unfit or never read."""
    given = words(PreferText, changes)
    settings = validated(given)
    defaults = PreferText().model_dump()
    for name, use in settings.unread().items():
        if name in given and given[name] != defaults[name]:
            raise UserError(
                f"{name}={given[name]} is of no use here: it is for {use}; leave it out, or change "
                "that"
            )
    return settings


def validated(tree: dict[str, Any]) -> PreferText:
    """Settings from plain data, with one line on the first thing that does not fit."""
    settings = fitted(PreferText, tree)
    if settings.preset not in PRESETS:
        raise unknown("preset", settings.preset, PRESETS)
    if settings.beta is not None and not settings.beta > 0:
        raise UserError(
            f"beta={settings.beta:g}: it is how much the reference counts, and must be above 0"
        )
    if not settings.data:
        raise UserError("name the pairs to learn from: data=pairs.jsonl")
    if settings.method.reference_update is not None and settings.rank:
        raise UserError(
            f"{settings.preset} moves its reference, which under LoRA is the model without its "
            "adapter: set rank=0"
        )
    return settings
