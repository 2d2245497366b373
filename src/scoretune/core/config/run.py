"""The whole of the settings."""

from __future__ import annotations

from pydantic import Field

from scoretune.core.config.base import ON_POLICY, REWARDED, UPDATES, Strict, only
from scoretune.core.config.compression import Compress
from scoretune.core.config.evaluation import SCENES, Evaluation, Guard
from scoretune.core.config.machine import Checkpoints, Hardware, Optimiser, Tracking
from scoretune.core.config.model import SHIPPED_MODELS, Dataset, Model
from scoretune.core.config.objectives import (
    Adjoint,
    Consistency,
    Direct,
    Energy,
    Guidance,
    Matching,
    PolicyGradient,
    ScoreAction,
)
from scoretune.core.config.preferences import Preference, RankedPreference, StepPreference
from scoretune.core.config.sampling import Sampling, Sizes


class Run(Strict):
    """Everything that decides what a run does."""

    recipe: str = Field(description="the method that the settings began with")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="of everything random")
    updates: int = Field(50, ge=1, le=UPDATES, description="rounds of sampling and learning")
    model: Model = Model()
    prompts: str = Field(
        "scenes",
        description="'scenes', a file (txt, csv, tsv, jsonl, parquet), datasets:ID, or 'none'",
    )
    prompts_per_task: int = Field(
        200, ge=0, le=10_000, description="scenes: as many of each task; 0 takes all"
    )
    data: str = Field(
        "scenes",
        description="matching: 'scenes' or a folder of images and captions; for a network of one's "
        "own also an array, a table, 'digits', 'swiss-roll' or 'moons'; preference: pairs",
    )
    dataset: Dataset = Dataset()
    compress: Compress = Compress()
    reward: str = Field(
        "reader",
        description="its name, name(setting=value), http://…, module:function, or a weighted sum: "
        "reader + 0.5*brightness",
    )
    objective: (
        Matching
        | Consistency
        | Preference
        | RankedPreference
        | StepPreference
        | PolicyGradient
        | ScoreAction
        | Direct
        | Adjoint
        | Energy
        | Guidance
    ) = Field(discriminator="kind")
    sampling: Sampling = Sampling()
    sizes: Sizes = Sizes()
    optimiser: Optimiser = Optimiser()
    hardware: Hardware = Hardware()
    tracking: Tracking = Tracking()
    evaluation: Evaluation = Evaluation()
    guard: Guard = Guard()
    checkpoints: Checkpoints = Checkpoints()

    def inert(self, run: Run, on_data: bool) -> dict[str, str]:
        acts, objective = not self.objective.on_data, self.objective
        shipped = self.model.source in SHIPPED_MODELS
        held_out = self.evaluation.prompts is None and not shipped
        listed = self.prompts in (*SCENES, "none")
        reads = isinstance(objective, Energy) or objective.on_data
        return {
            **only(listed, "prompts=scenes or none", "prompts_per_task"),
            **only(acts, ON_POLICY, "prompts_per_task"),
            **only(acts or held_out, ON_POLICY, "prompts"),
            **only(not on_data, REWARDED, "reward", "prompts"),
            **only(reads, "supervised, consistency, dxmi or recipes on preferences", "data"),
        }
