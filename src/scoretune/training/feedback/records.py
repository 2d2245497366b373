"""What the roles hand on: pictures, critiques, plans and edits.

What a model answers is pydantic, and its fields are what the model is asked for; what we make
ourselves is a frozen dataclass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from torch import Tensor

Category = Literal[
    "object", "count", "attribute", "relation", "text", "anatomy", "composition", "other"
]
CATEGORIES: tuple[str, ...] = get_args(Category)
"""Of what an issue is about; models are asked for these, and any other word is `other`."""


def _category(word: Any) -> Any:
    plain = word.strip().lower() if isinstance(word, str) else word
    return plain if plain in CATEGORIES or not isinstance(plain, str) else "other"


class Issue(BaseModel):
    """One thing that is wrong with a picture. `severity` is 0 (a trifle) to 1 (it spoils it)."""

    model_config = ConfigDict(frozen=True)

    what: str = Field(min_length=1, max_length=500)
    where: str | None = None
    category: Annotated[Category, BeforeValidator(_category)] = "other"
    severity: float = Field(default=0.5, ge=0, le=1)


class Critique(BaseModel):
    """How well a picture follows its caption and how it looks, 0 to 10, and what is wrong."""

    model_config = ConfigDict(frozen=True)

    alignment: float = Field(ge=0, le=10)
    aesthetics: float | None = Field(default=None, ge=0, le=10)
    issues: list[Issue] = Field(default_factory=list, max_length=50)


Instruction = Annotated[str, Field(min_length=1, max_length=300)]


class EditPlan(BaseModel):
    """Sentences for an editor, one change each, the worst first; the caption of what comes out."""

    model_config = ConfigDict(frozen=True)

    instructions: list[Instruction] = Field(default_factory=list, max_length=50)
    edited_caption: str | None = None


@dataclass(frozen=True)
class Shown:
    """A picture [3, H, W] in [0, 1] that was made for a prompt."""

    prompt: str
    pixels: Tensor


Content = TypeVar("Content", bound=BaseModel)


@dataclass(frozen=True)
class Answer(Generic[Content]):
    """What a model said: its content, None where it could not be read, the text, and how many
    attempts it took."""

    content: Content | None
    raw: str
    attempts: int = 1


@dataclass(frozen=True)
class Edited:
    """What an editor made of a picture, as large as that was; `problem` where it is of no use."""

    pixels: Tensor
    problem: str = ""
