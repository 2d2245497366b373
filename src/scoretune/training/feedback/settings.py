"""The settings of `scoretune rpo` beside those of the recipe that learns from its pairs."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from scoretune.core.config import Strict
from scoretune.training import overrides


class PipelineSettings(Strict):
    """What is drawn, who plays the roles, and what the filter keeps."""

    prompts: str = Field("scenes", description="What is drawn: a file, as everywhere.")
    critic: str = Field("reader", description="Who says what is wrong.")
    writer: str = Field("", description="Who writes the instructions; empty: as the critic.")
    editor: str = Field("scenes", description="Who carries them out.")
    reward: str = Field("reader", description="The filter's reward.")
    agree: str = Field("", description="A second reward that must not lose; empty: none.")
    threshold: float = Field(0.0, description="The least gain of the reward.")
    least: float = Field(0.002, description="Mean change of a pixel below which nothing changed.")
    most: float = Field(0.3, description="And from which on everything did.")
    reversed: bool = Field(False, description="Keep pairs the other way around too.")
    pictures: int = Field(600, description="How many are drawn.", ge=1)
    per_prompt: int = Field(1, description="And how many of one prompt.", ge=1)


def split(assignments: Sequence[str]) -> tuple[PipelineSettings, list[str]]:
    """The pipeline's settings among `a=b` words, and the words that are the recipe's.

    Raises UserError for a word that is no assignment and a value that does not fit.
    """
    fields = PipelineSettings.model_fields
    of_pipeline = [word for word in assignments if word.partition("=")[0] in fields]
    of_recipe = [word for word in assignments if word.partition("=")[0] not in fields]
    values = overrides.words(PipelineSettings, of_pipeline)
    for word in of_recipe:
        overrides.parsed(word)
    return overrides.fitted(PipelineSettings, values), of_recipe
