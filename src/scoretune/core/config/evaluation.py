"""How progress is measured, and what watches over a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AliasChoices, Field

from scoretune.core.config.base import (
    ON_DATA,
    REWARDED,
    STEPS,
    UPDATES,
    Checked,
    OdeSolver,
    Strict,
    only,
)
from scoretune.core.config.objectives import Consistency
from scoretune.core.config.preferences import Preference

if TYPE_CHECKING:
    from scoretune.core.config.run import Run


SCENES = ("scenes", "scenes-held-out")


class Gap(Strict):
    """The reward-gap matrix that evaluations add: every η at every number of steps."""

    steps: tuple[Annotated[int, Field(ge=1, le=STEPS)], ...] = Field(
        (), max_length=64, description="numbers of steps; empty: no matrix"
    )
    etas: tuple[Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)], ...] = Field(
        (0.0, 0.5, 1.0, 1.5), min_length=1, max_length=64, description="0 is the ODE"
    )
    every: int = Field(1, ge=1, le=UPDATES, description="evaluations between two matrices")

    def inert(self, run: Run, on_data: bool) -> dict[str, str]:
        return {
            **only(bool(self.steps), "evaluation.gap.steps", "etas", "every"),
            **only(not on_data, Checked(REWARDED), *self.leaves()),
        }


class Guard(Strict):
    """What watches over a run for a reward that is gamed, at every evaluation."""

    action: Literal["off", "warn", "stop", "rollback"] = Field(
        "warn", description="on alarm; rollback: end with the weights of the best evaluation"
    )
    judge: str | None = Field(
        None, description="a reward that is never optimised; null: the model's own judge, if any"
    )
    margin: float = Field(
        0.0,
        ge=0,
        le=1e9,
        description="how far below its best the judge may fall, besides by chance",
    )
    chain_kl: float | None = Field(
        None,
        gt=0,
        le=1e9,
        validation_alias=AliasChoices("chain_kl", "path_kl"),
        description="budget of the chain's KL to the base model, in nats; null: none",
    )
    diversity: float = Field(0.7, ge=0, le=1, description="share of the base model's to keep")
    features: str | None = Field(
        None, description="in which diversity is measured; null: the judge's, or pixels"
    )
    pattern: float = Field(
        3.0,
        ge=1,
        le=1e9,
        description="periodic artefacts: how many times the base model's, at most",
    )
    error_ratio: float = Field(
        3.0,
        ge=1,
        le=1e9,
        description="preferences: how many times the base model's the error on preferred samples "
        "may be, since the last evaluation",
    )
    patience: int = Field(1, ge=1, le=UPDATES, description="evaluations in a row before an alarm")

    def inert(self, run: Run, on_data: bool) -> dict[str, str]:
        others = [name for name in self.leaves() if name != "action"]
        judged = isinstance(run.objective, Preference)
        return {
            **only(judged, "recipes on preferences", "error_ratio"),
            **only(self.action != "off", "guard.action=warn, stop or rollback", *others),
            **only(not on_data, REWARDED, *self.leaves()),
        }


class Evaluation(Strict):
    """How progress is measured: held-out prompts, fixed noise, the deterministic sampler."""

    gap: Gap = Gap()

    prompts: str | None = Field(
        None, description="as `prompts`; null: held-out scenes, or a user's model's own prompts"
    )
    per_task: int = Field(
        30,
        ge=0,
        le=10_000,
        description="scenes, or prompts trained on too: how many of each task; 0: all",
    )
    solver: OdeSolver = Field("ddim", description="of the deterministic sampler")
    steps: int = Field(20, ge=1, le=STEPS, description="of that sampler")
    every: int = Field(
        14, ge=0, le=UPDATES, description="updates between evaluations; 0 only at both ends"
    )
    seed: int = Field(
        20240, ge=0, le=2**32 - 1, description="of the noise, the same at every evaluation"
    )
    samples: int = Field(
        500, ge=2, le=100_000, description="networks from data: drawn at each evaluation"
    )

    def inert(self, run: Run, on_data: bool) -> dict[str, str]:
        listed = self.prompts is None or self.prompts in (*SCENES, "none")
        one_step = isinstance(run.objective, Consistency)
        return {
            **only(on_data, ON_DATA, "samples"),
            **only(listed, "evaluation.prompts=null, or scenes", "per_task"),
            **only(not on_data, REWARDED, "prompts", "per_task"),
            **only(not one_step, "a model that is no consistency model", "solver"),
        }
