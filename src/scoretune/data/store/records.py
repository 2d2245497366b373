"""What a store gives back: one record a row of each table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from scoretune.data.prompts import Prompt

SampleSource = Literal["model", "import", "edit", "upload"]
PairSource = Literal["human", "reward", "rpo-edit", "import"]
RaterKind = Literal["person", "simulated", "model"]
Side = Literal["first", "second"]
Choice = Literal["first", "second", "tie", "both_bad", "skip"]


@dataclass(frozen=True)
class Sample:
    """A picture of a prompt, by the sha256 of its file, and how it was made.

    `metadata` is what the prompt's file says beside its text, `parent` the sample that it was
    edited from, `round` the round of collecting, `key` what makes adding it twice one sample.
    """

    id: int
    prompt: str
    picture: str
    source: SampleSource
    model: str
    seed: int | None
    settings: dict[str, Any]
    parent: int | None
    round: int
    key: str
    created: float
    metadata: dict[str, Any]

    @property
    def full_prompt(self) -> Prompt:
        """The prompt with its metadata, as rewards want it."""
        from scoretune.data.prompts import Prompt

        return Prompt(self.prompt, self.metadata)


@dataclass(frozen=True)
class Pair:
    """Two samples of one prompt. `gold` is the right answer of a pair that checks raters; `label`
    the probability that the first is preferred, by whoever made the pair, None where votes say."""

    id: int
    prompt: str
    first: int
    second: int
    source: PairSource
    gold: Choice | None
    label: float | None
    created: float


@dataclass(frozen=True)
class Rater:
    """Who votes; of the token that proves it the store has the sha256 alone."""

    id: int
    name: str
    kind: RaterKind
    token_hash: str
    created: float


@dataclass(frozen=True)
class Vote:
    """What a rater said of a pair: `left` is the side that was shown on the left, `seconds` the
    time it took, `repeat` whether the rater had been shown the pair before."""

    id: int
    key: str
    pair: int
    rater: int
    choice: Choice
    left: Side
    seconds: float
    repeat: bool
    created: float


@dataclass(frozen=True)
class Ranking:
    """Samples of a prompt, best first; those of one place share a list."""

    id: int
    key: str
    rater: int
    prompt: str
    order: list[list[int]]
    seconds: float
    created: float


@dataclass(frozen=True)
class Like:
    """Whether a rater likes a sample."""

    id: int
    key: str
    rater: int
    sample: int
    liked: bool
    seconds: float
    created: float


@dataclass(frozen=True)
class Reason:
    """Why: tags, words, and a box (left, top, right, bottom) in [0, 1] of the picture's sides."""

    id: int
    key: str
    rater: int
    sample: int
    tags: list[str]
    text: str
    box: tuple[float, float, float, float] | None
    created: float


@dataclass(frozen=True)
class StoredCritique:
    """What a critic said of a sample: `raw` as it answered, `payload` what was understood."""

    id: int
    key: str
    sample: int
    critic: str
    payload: dict[str, Any]
    raw: str
    created: float


@dataclass(frozen=True)
class StoredEdit:
    """A sample edited by instructions: `edited` is the sample that came out, if one did, and
    `verdict` what the filter said of it."""

    id: int
    key: str
    sample: int
    critique: int | None
    editor: str
    instructions: list[str]
    seed: int | None
    edited: int | None
    verdict: dict[str, Any]
    created: float
