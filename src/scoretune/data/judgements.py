"""What people said of two things, or of one: labels as probabilities, votes, weights, raters.

A label is the probability that the first of two is preferred (or that one is liked), so a tie is
1/2 and several raters of one pair are their mean. Whether the things are pictures or texts does not
matter here: `data.pairs` and `data.text_pairs` read their columns by this.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from scoretune.core.errors import UserError
from scoretune.data.formats import brief, missing_column, named_column

Ties = Literal["keep", "drop"]
Raters = Literal["soft", "separate"]
RATERS = ("rater", "rater_id", "user", "user_id", "annotator", "annotator_id")
WEIGHTS = ("weight",)
LARGEST = 1e30
"""Of a number in a cell: more is infinite in single precision, or soon is."""
LABELLED = ("has_label",)
"""Pick-a-Pic's column that says which rows were judged at all."""


class Judgement(NamedTuple):
    """One row: the probability that the first is preferred, and what stands behind it.

    `counts` are the raters for the first, for the second and for neither, None where one number
    stands for nobody knows how many; `weight` is that of all of them.
    """

    label: float
    weight: float = 1.0
    counts: tuple[int, int, int] | None = None
    rater: str = ""
    scores: tuple[float, ...] | None = None

    @property
    def votes(self) -> int:
        """How many raters are in it, at least one."""
        return sum(self.counts or (1,))


class Identical(UserError):
    """Two sides of a pair that are the same, of which one is said to be better."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what} are identical, and neither can be preferred: take the row out, or label it 0.5"
        )


class EmptyText(UserError):
    """A completion of no words."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} is empty: write a completion, or take the row out")


@dataclass(frozen=True)
class Columns:
    """By which columns of a table its judgements are known, None for what it does not have. With
    neither a label nor votes the first is preferred, as the names of the sides say."""

    label: Any = None
    votes: tuple[Any, Any] | None = None
    ties: Any = None
    weight: Any = None
    rater: Any = None
    scores: tuple[Any, ...] | None = None
    labelled: Any = None

    def read(self, where: str, row: Mapping[Any, Any]) -> Judgement | None:
        """The judgement of a row, None for one that says it has none. Raises UserError."""
        if self.labelled is not None and row.get(self.labelled) in (False, 0, "False", "false"):
            return None
        label, counts = 1.0, None
        if self.votes is not None:
            counts = self._counted(where, row)
            if not sum(counts):
                return None
            label = (counts[0] + 0.5 * counts[2]) / sum(counts)
        if self.label is not None:
            label = probability(where, str(self.label), row.get(self.label))
        if counts is None:
            counts = {1.0: (1, 0, 0), 0.0: (0, 1, 0), 0.5: (0, 0, 1)}.get(label)
        weight = 1.0
        if self.weight is not None:
            weight = positive(where, str(self.weight), row.get(self.weight))
        rater = "" if self.rater is None else str(row.get(self.rater) or "")
        scores = None
        if self.scores is not None:
            scores = tuple(number(where, str(name), row.get(name)) for name in self.scores)
        return Judgement(label, weight * sum(counts or (1,)), counts, rater, scores)

    def _counted(self, where: str, row: Mapping[Any, Any]) -> tuple[int, int, int]:
        """How many are for the first, for the second, and for neither."""
        assert self.votes is not None
        counts = [0, 0, 0]
        for i, name in enumerate((*self.votes, self.ties)):
            if name is not None:
                count = number(where, str(name), row.get(name))
                if count < 0 or count != int(count):
                    raise UserError(
                        f"{where}: {name!r} must count votes, and is {brief(row.get(name))}"
                    )
                counts[i] = int(count)
        return counts[0], counts[1], counts[2]


def columns_of(source: str, names: Sequence[Any], sides: tuple[str, str]) -> Columns:
    """The columns of a table of pairs whose sides are called, say, ("0", "1") in `votes_0`."""
    first, second = sides
    votes = [named_column(names, (f"votes_{side}",)) for side in sides]
    scores = [named_column(names, (f"score_{side}", f"{side}_score")) for side in sides]
    for kind, both in (("votes", votes), ("score", scores)):
        if (both[0] is None) != (both[1] is None):
            lost = first if both[0] is None else second
            raise missing_column(source, [f"{kind}_{lost}"], names)
    return Columns(
        label=named_column(names, (f"label_{first}", "label")),
        votes=None if votes[0] is None else (votes[0], votes[1]),
        ties=named_column(names, ("ties", "votes_tie")),
        weight=named_column(names, WEIGHTS),
        rater=named_column(names, RATERS),
        scores=None if scores[0] is None else tuple(scores),
        labelled=named_column(names, LABELLED),
    )


def of_one(names: Sequence[Any], liked: Any) -> Columns:
    """The columns of a table of single things, of which `liked` says how probably each is."""
    return Columns(
        label=liked, weight=named_column(names, WEIGHTS), rater=named_column(names, RATERS)
    )


def is_tie(label: float) -> bool:
    """Whether neither of two is preferred."""
    return abs(label - 0.5) < 1e-9


# ----------------------------------------------------------------------------------- cells


def number(where: str, name: str, cell: Any) -> float:
    """A cell as a finite number. Raises UserError."""
    value = math.nan
    if isinstance(cell, (int, float, str)):
        try:
            value = float(cell)
        except OverflowError:
            value = math.inf
        except ValueError:
            value = {"true": 1.0, "false": 0.0}.get(str(cell).strip().lower(), math.nan)
    if not abs(value) <= LARGEST:
        raise UserError(f"{where}: {name!r} must be a finite number, and is {brief(cell)}")
    return value


def probability(where: str, name: str, cell: Any) -> float:
    """A cell as a number in [0, 1], true or false. Raises UserError."""
    value = number(where, name, cell)
    if not 0 <= value <= 1:
        raise UserError(
            f"{where}: {name!r} must lie in [0, 1], the probability that the first is preferred, "
            f"and is {brief(cell)}"
        )
    return value


def positive(where: str, name: str, cell: Any) -> float:
    """A cell as a number above 0. Raises UserError."""
    value = number(where, name, cell)
    if value <= 0:
        raise UserError(
            f"{where}: {name!r} must be above 0, and is {brief(cell)}: leave out rows that are not "
            "wanted"
        )
    return value


# --------------------------------------------------------------------------------- raters


class Merged(NamedTuple):
    """Judgements of the same pair as one: the places of its rows in the table, the first of which
    says which side is first; `counts` as in `Judgement`, None where a row has none."""

    rows: tuple[int, ...]
    label: float
    weight: float
    votes: int
    scores: tuple[float, ...] | None
    counts: tuple[int, int, int] | None = None


def merged(
    keys: Iterable[tuple[Hashable, ...]], judgements: Sequence[Judgement], raters: Raters
) -> list[Merged]:
    """One entry a pair where `raters` is "soft", one a row where they stay "separate".

    A key is (prompt, first, second), or (prompt, thing) of single likes; two rows with the sides
    swapped are of one pair. The merged label is the mean by weight and the weight the sum. Any loss
    here is linear in the label, label L(+) + (1 − label) L(−), so both ways have one mean loss.
    """
    groups: dict[Hashable, list[tuple[int, bool]]] = {}
    for row, key in enumerate(keys):
        if raters == "separate":
            groups[row] = [(row, False)]
            continue
        swapped = (key[0], *reversed(key[1:]))
        back = swapped != key and swapped in groups
        groups.setdefault(swapped if back else key, []).append((row, back))
    return [
        _mean([(row, back, judgements[row]) for row, back in group]) for group in groups.values()
    ]


def _mean(group: Sequence[tuple[int, bool, Judgement]]) -> Merged:
    weight = math.fsum(judgement.weight for _, _, judgement in group)
    label = math.fsum(
        judgement.weight * (1 - judgement.label if back else judgement.label)
        for _, back, judgement in group
    )
    scored = [
        tuple(reversed(judgement.scores)) if back else judgement.scores
        for _, back, judgement in group
        if judgement.scores is not None
    ]
    scores = tuple(math.fsum(side) / len(scored) for side in zip(*scored, strict=True)) or None
    votes = sum(judgement.votes for _, _, judgement in group)
    rows = tuple(row for row, _, _ in group)
    return Merged(rows, label / weight, weight, votes, scores, _counted(group))


def _counted(group: Sequence[tuple[int, bool, Judgement]]) -> tuple[int, int, int] | None:
    """How many raters of all rows are for the first, for the second and for neither."""
    each = []
    for _, back, judgement in group:
        if judgement.counts is None:
            return None
        first, second, ties = judgement.counts
        each.append((second, first, ties) if back else (first, second, ties))
    first, second, ties = (sum(kind) for kind in zip(*each, strict=True))
    return first, second, ties


def relative(weights: Sequence[float]) -> Tensor:
    """Weights [n] of mean 1."""
    tensor = torch.tensor(weights, dtype=torch.float64)
    return (tensor / tensor.mean()).float()
