"""What a file of preferences says, row by row, before anything is trained on it."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from scoretune.commands.data.tally import Tally, wilson
from scoretune.core.errors import UserError
from scoretune.data import images, judged_pictures, text_pairs
from scoretune.data.formats import missing_column, named_column
from scoretune.data.judged_pictures import JudgedRow, PictureColumns, digest, sizes_differ
from scoretune.data.judgements import Columns, EmptyText, Identical, is_tie
from scoretune.data.pictures import Pictures
from scoretune.data.samples import SAMPLES, SCORES
from scoretune.data.tables import Opened, opened
from scoretune.data.text_pairs import TextColumns, TextRow

Watch = Callable[[int, int], None]
"""Is told how many rows are done, and of how many."""
KINDS = ("pairs of pictures", "liked pictures", "pairs of texts", "liked texts")


@dataclass
class Checked:
    """What was understood of a table."""

    file: str
    kind: str
    columns: dict[str, Any]
    rows: int
    unjudged: int = 0
    identical: int = 0
    empty: int = 0
    broken: list[dict[str, str]] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    two_sizes: int = 0
    lengths: tuple[list[int], ...] = field(default_factory=lambda: ([], []))

    @property
    def paired(self) -> bool:
        return self.kind.startswith("pairs")

    def position(self) -> dict[str, float] | None:
        """How often the first of a pair is preferred, with its interval; None where the columns
        are called by who is preferred, and nobody knows which was shown first."""
        balance = self.tally.balance()
        count = balance["first"] + balance["second"]
        if not self.paired or self.columns["first"].lower() == "chosen" or not count:
            return None
        share, low, high = wilson(balance["first"], count)
        return {"first": share, "low": low, "high": high, "of": count}

    def longer(self) -> dict[str, float] | None:
        """How often the longer completion is the preferred one, with its interval."""
        if not self.lengths[1]:
            return None
        won = [
            (a > b) == (label > 0.5)
            for a, b, label in zip(*self.lengths, self.tally.labels, strict=True)
            if a != b and not is_tie(label)
        ]
        if not won:
            return None
        share, low, high = wilson(sum(won), len(won))
        return {"preferred": share, "low": low, "high": high, "of": len(won)}

    def refusal(self) -> str:
        """Why training would not begin; empty where it would."""
        if self.broken:
            return (
                f"{len(self.broken):,} of {self.rows:,} rows cannot be read, and training refuses "
                "the file: mend them, or take them out"
            )
        pairs = self.tally.pairs()
        if not pairs["pairs"]:
            return "no row was judged: nothing can be learned from it"
        if self.paired and pairs["ties"] == pairs["pairs"]:
            return "all pairs are ties: nothing can be learned from them"
        return ""

    def as_dict(self) -> dict[str, Any]:
        """All of it for --json."""
        told: dict[str, Any] = {
            "file": self.file,
            "kind": self.kind,
            "columns": self.columns,
            "rows": self.rows,
            "unjudged": self.unjudged,
            "broken": self.broken,
            "identical": self.identical,
            **self.tally.pairs(),
            "labels": self.tally.balance(),
            "position": self.position(),
            "raters": self.tally.of_raters(),
        }
        if "pictures" in self.kind:
            told["sizes"] = [
                {"width": w, "height": h, "count": n} for (w, h), n in self.sizes.most_common()
            ]
            told["two_sizes"] = self.two_sizes
        else:
            told["empty"] = self.empty
            told["lengths"] = [spread(side) for side in self.lengths if side]
            told["longer"] = self.longer()
        return told | {"refusal": self.refusal()}


def spread(lengths: list[int]) -> dict[str, float]:
    """Of characters: the middle, the ninth tenth, the longest."""
    ordered = sorted(lengths)
    return {
        "median": statistics.median(ordered),
        "p90": ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))],
        "longest": ordered[-1],
    }


def check(source: str, watch: Watch = lambda done, total: None) -> Checked:
    """Read every row and every picture of a table, one at a time. Raises UserError for a file that
    cannot be read at all; what is wrong with a row is noted."""
    table = opened(source, "pairs")
    kind = kind_of(table)
    look: Pictured | Written
    if kind == "pairs of pictures":
        look = Pictured.of(table, judged_pictures.pair_columns(table))
    elif kind == "liked pictures":
        look = Pictured.of(table, judged_pictures.like_columns(table))
    elif kind == "pairs of texts":
        look = Written(table, text_pairs.text_columns(table))
    else:
        look = Written(table, text_pairs.completion_columns(table))
    checked = Checked(source, kind, look.named(), table.count)
    for number, (place, row) in enumerate(table.rows()):
        watch(number, table.count)
        try:
            if not look.at(number, place, row, checked):
                checked.unjudged += 1
        except UserError as error:
            checked.identical += isinstance(error, Identical)
            checked.empty += isinstance(error, EmptyText)
            problem = str(error).removeprefix(f"{table.source!r}, {place}: ")
            checked.broken.append({"row": place, "problem": problem})
    watch(table.count, table.count)
    return checked


def kind_of(table: Opened) -> str:
    """Which of KINDS a table is, by its columns and by the first cell of a pair. Raises UserError
    for samples with scores, and for a table that is none."""
    if judged_pictures.has_pairs(table):
        side = next(
            (c for names in judged_pictures.SIDES if (c := named_column(table.names, names))), None
        )
        return KINDS[0] if _holds_pictures(table, side) else KINDS[2]
    if all(named_column(table.names, names) is not None for names in (SAMPLES, SCORES)):
        raise UserError(
            f"{table.source!r} holds scored samples, not pairs: scoretune data resample "
            f"{table.source} makes pairs of them"
        )
    if named_column(table.names, judged_pictures.IMAGES) is not None:
        return KINDS[1]
    if named_column(table.names, (*text_pairs.COMPLETIONS, *text_pairs.DIALOGUES)) is not None:
        return KINDS[3]
    raise missing_column(
        table.source, ["chosen", "image_0", "jpg_0", "image", "completion"], table.names
    )


def _holds_pictures(table: Opened, column: Any) -> bool:
    """Whether a column holds pictures: bytes, or texts that end as names of pictures do."""
    for _, row in table.rows():
        if isinstance(row, Mapping) and column not in row and table.cells is not None:
            return True
        cell = row.get(column) if isinstance(row, Mapping) else None
        if cell is not None:
            name = str(column).lower()
            return name not in ("chosen", "rejected") or str(cell).lower().endswith(
                (*images.ENDINGS, ".webp")
            )
    return False


# ------------------------------------------------------------------------------ row by row


class Look(NamedTuple):
    """What a picture looks like: its size, and a digest of its pixels."""

    height: int
    width: int
    pixels: bytes


@dataclass(frozen=True)
class Pictured:
    """Rows of pictures: each is read, looked at and dropped."""

    table: Opened
    columns: PictureColumns
    pictures: Pictures
    places: list[str]
    cells: list[tuple[Any, ...]]
    looks: dict[bytes, Look] = field(default_factory=dict)

    @staticmethod
    def of(table: Opened, columns: PictureColumns) -> Pictured:
        places: list[str] = []
        cells: list[tuple[Any, ...]] = []
        pictures = Pictures(table.source, table.folder, columns.images, places, cells, table.cells)
        return Pictured(table, columns, pictures, places, cells)

    def named(self) -> dict[str, Any]:
        return _named(self.columns.prompt, self.columns.images, self.columns.judged)

    def at(self, number: int, place: str, row: Any, checked: Checked) -> bool:
        """Whether a row was judged. Raises UserError where it cannot be learned from."""
        self.places.append(place)
        self.cells.append(())
        said: JudgedRow | None = self.columns.read(self.table, number, place, row)
        if said is None:
            return False
        self.cells[-1] = said.cells
        payloads = self.pictures.payloads(number)
        keys = [digest(payload) for payload in payloads]
        looks = [self._look(number, *each) for each in zip(range(2), keys, payloads, strict=False)]
        for look in looks:
            checked.sizes[look.width, look.height] += 1
        if len(looks) > 1:
            self._compare(f"{self.table.source!r}, {place}", looks, said.judgement.label, checked)
        checked.tally.add(said.caption.encode(), keys, said.judgement)
        return True

    def _look(self, number: int, side: int, key: bytes, payload: bytes) -> Look:
        """A picture that other rows have too is decoded once."""
        if key not in self.looks:
            with self.pictures.unreadable(number, self.columns.images[side]):
                height, width, stored = images.look(payload)
            self.looks[key] = Look(height, width, digest(stored))
        return self.looks[key]

    def _compare(self, where: str, looks: list[Look], label: float, checked: Checked) -> None:
        first, second = looks
        if first == second:
            if not is_tie(label):
                raise Identical(f"{where}: the two pictures")
            checked.identical += 1
        differ = sizes_differ(first[:2], second[:2])
        checked.two_sizes += differ == "size"
        judged_pictures.check_sizes(where, first[:2], second[:2], scaled=True)


@dataclass(frozen=True)
class Written:
    """Rows of texts."""

    table: Opened
    columns: TextColumns

    def named(self) -> dict[str, Any]:
        return _named(self.columns.prompt, self.columns.completions, self.columns.judged)

    def at(self, number: int, place: str, row: Any, checked: Checked) -> bool:
        """Whether a row was judged. Raises UserError where it cannot be learned from."""
        said: TextRow | None = self.columns.read(self.table, place, row)
        if said is None:
            return False
        prompt, *things = (str(part).encode() for part in said.key())
        checked.identical += len(things) > 1 and things[0] == things[1]
        for lengths, text in zip(checked.lengths, said.completions, strict=False):
            lengths.append(text_pairs.length(text))
        checked.tally.add(prompt, list(map(digest, things)), said.judgement)
        return True


def _named(prompt: Any, things: tuple[Any, ...], judged: Columns) -> dict[str, Any]:
    """Which columns say what."""
    names = ("first", "second") if len(things) > 1 else ("thing",)
    votes = judged.votes or (None, None)
    return {
        "prompt": prompt,
        **dict(zip(names, things, strict=True)),
        "label": judged.label,
        "votes_first": votes[0],
        "votes_second": votes[1],
        "ties": judged.ties if judged.votes else None,
        "weight": judged.weight,
        "rater": judged.rater,
    }
