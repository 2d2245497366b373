"""What a sweep draws from: `a.b=1e-4..1e-2` is a range and `a.b=x|y|z` a choice."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scoretune.core.config import Run
from scoretune.core.errors import UserError
from scoretune.training import settings_file
from scoretune.training.overrides import parsed

DECADE = 10.0
"""A range whose ends are so many times apart is drawn from on a log scale, unless it says."""


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included, even on a linear or on a log scale."""

    path: str
    low: float
    high: float
    log: bool
    whole: bool

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values that are tried beforehand."""
        return (int(self.low), int(self.high)) if self.whole else (self.low, self.high)

    def draw(self, share: float) -> Any:
        """The value at a share in [0, 1) of the range; of whole numbers each has its own part."""
        low, high = (self.low - 0.5, self.high + 0.5) if self.whole else (self.low, self.high)
        if self.log:
            value = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        else:
            value = low + share * (high - low)
        value = min(max(value, self.low), self.high)
        return round(value) if self.whole else float(f"{value:.4g}")

    def place(self, value: Any) -> float:
        """Where a value lies between the ends, in [0, 1]."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return float((value - self.low) / (self.high - self.low))


@dataclass(frozen=True)
class Choice:
    """One of several values."""

    path: str
    values: tuple[Any, ...]

    @property
    def ends(self) -> tuple[Any, ...]:
        return self.values

    def draw(self, share: float) -> Any:
        return self.values[int(share * len(self.values))]

    def place(self, value: Any) -> float:
        return self.values.index(value) / max(1, len(self.values) - 1)


Space = tuple[Range | Choice, ...]


def space_of(recipe: str, words: Sequence[str]) -> tuple[Space, list[str]]:
    """The ranges and choices among `a.b=…` words, and the words that are plain changes.

    Every end and every choice is tried on the recipe's settings. Raises UserError for a word that
    is no range, for a setting that is unknown or never read, and where nothing is to be searched.
    """
    searched = [dimension for word in words if (dimension := _dimension(word))]
    fixed = [word for word in words if _dimension(word) is None]
    settings_file.named(recipe, fixed)
    if not searched:
        raise UserError(
            "nothing is searched: give a range, as in optimiser.learning_rate=1e-4..1e-2, or "
            "choices, as in sizes.minibatch=32|64"
        )
    paths = [dimension.path for dimension in searched]
    for path in paths:
        if path == "seed":
            raise UserError("seeds are no setting to search: --seeds N runs each setting N times")
        if paths.count(path) > 1:
            raise UserError(f"{path} is searched twice: give it one range")
    # Of each dimension all ends beside the others' first ones: what never fits is told at once.
    for dimension in searched:
        for end in dimension.ends:
            settings_of(
                recipe, fixed, {d.path: d.ends[0] for d in searched} | {dimension.path: end}
            )
    return tuple(searched), fixed


def settings_of(recipe: str, fixed: Sequence[str], values: dict[str, Any]) -> Run:
    """The settings of a run of the sweep."""
    return settings_file.named(recipe, [*fixed, *words_of(values)])


def words_of(values: dict[str, Any]) -> list[str]:
    """Values by their paths as `a.b=c` words."""
    texts = {p: v if isinstance(v, str) else json.dumps(v) for p, v in values.items()}
    return [f"{path}={text}" for path, text in texts.items()]


def drawn(space: Space, seed: int, number: int) -> dict[str, Any]:
    """The values of the run of that number, which follow from (seed, number) alone."""
    generator = random.Random(f"{seed}/{number}")
    return {dimension.path: dimension.draw(generator.random()) for dimension in space}


def _dimension(word: str) -> Range | Choice | None:
    path, _, text = word.partition("=")
    if ".." in text:
        return _range(path, text)
    if "|" in text:
        values = tuple(parsed(f"{path}={part}")[1] for part in text.split("|"))
        if len({repr(value) for value in values}) < len(values) or "" in values:
            raise UserError(f"{word!r} has an empty or a double choice: write {path}=a|b|c")
        if any(isinstance(value, list | dict) for value in values):
            raise UserError(f"{word!r}: a choice is a number, a word, true, false or null")
        return Choice(path, values)
    return None


def _range(path: str, text: str) -> Range:
    ends, colon, scale = text.partition(":")
    low_text, _, high_text = ends.partition("..")
    shown = f"{path}={text}"
    try:
        low, high = float(low_text), float(high_text)
    except ValueError:
        raise UserError(
            f"cannot read the range {shown!r}: write {path}=1e-4..1e-2, perhaps with :log or "
            ":linear behind it"
        ) from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UserError(f"the range {shown!r} is empty: its first end must be the smaller one")
    if colon and scale not in ("log", "linear"):
        raise UserError(f"{shown!r}: a range is :log or :linear, not {scale!r}")
    if scale == "log" and low <= 0:
        raise UserError(f"{shown!r}: a log scale has no {low_text}: raise it above 0")
    log = scale == "log" if colon else low > 0 and high >= DECADE * low
    whole = all(part.strip().lstrip("+-").isdigit() for part in (low_text, high_text))
    return Range(path, low, high, log, whole)
