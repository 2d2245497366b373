"""Judged pictures of a table, taken into a store: what `data.pairs` reads, with its pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from scoretune.core.errors import UserError
from scoretune.core.records import spans
from scoretune.data.judged_pictures import (
    Judged,
    JudgedRow,
    has_pairs,
    like_columns,
    pair_columns,
    read_judged,
)
from scoretune.data.judgements import Merged
from scoretune.data.store import is_store
from scoretune.data.tables import Opened, opened

if TYPE_CHECKING:
    from scoretune.data.store import Pair, Sample
    from scoretune.data.store.records import Choice
    from scoretune.data.store.store import Store

AT_ONCE = 64
"""Pairs in one transaction."""
MOST_VOTES = 1000
"""Of one row, each of which becomes a vote; what counts more becomes a label."""


def check_source(source: str) -> None:
    """Refuse what cannot be imported, before a store is made. Raises UserError."""
    if is_store(source):
        raise UserError(f"{source!r} is a store already: export it, and import that")
    table = opened(source, "pairs")
    if has_pairs(table):
        pair_columns(table)
    else:
        like_columns(table)


@dataclass
class Import:
    """A table on its way into a store. Keys follow from the table's name and rows, so that taking
    it in again changes nothing."""

    store: Store
    source: str
    raters: dict[str, int] = field(default_factory=dict)
    voted: set[tuple[int, int]] = field(default_factory=set)
    counts: dict[str, int] = field(default_factory=dict)

    def run(self, watch: Callable[[int, int], None]) -> dict[str, int]:
        """Take all in; how many pairs, new votes and the like. Raises UserError with the row."""
        self.raters = {rater.name: rater.id for rater in self.store.raters()}
        self.voted = {(vote.pair, vote.rater) for vote in self.store.votes()}
        table = opened(self.source, "pairs")
        pairs = has_pairs(table)
        columns = pair_columns(table) if pairs else like_columns(table)
        read = read_judged(table, columns, "soft")
        names = ("pairs", "votes", "labels") if pairs else ("samples", "likes")
        self.counts = dict.fromkeys(names, 0)
        for span in spans(len(read.merged), AT_ONCE):
            with self.store.together():
                for entry in read.merged[span]:
                    if pairs:
                        self._pair(table, read, entry)
                    else:
                        self._like(table, read, entry)
            watch(span.stop, len(read.merged))
        return self.counts

    # ----------------------------------------------------------------------------------- pairs

    def _pair(self, table: Opened, read: Judged, entry: Merged) -> None:
        """One pair of pictures and all rows that judge it."""
        rows = [read.rows[place] for place in entry.rows]
        first, second = self._samples(table, read, rows[0])
        counted = all(row.judgement.counts for row in rows) and entry.votes <= MOST_VOTES
        if first.picture == second.picture:
            return  # a tie, as any other label was refused
        label = None if counted else entry.label
        pair = self.store.add_pair(first.id, second.id, source="import", label=label)
        self.counts["pairs"] += 1
        self.counts["labels"] += not counted
        for row in rows if counted else ():
            flipped = self._shas(read, row)[0] != self.store.sample(pair.first).picture
            self._votes(read, row, pair, flipped)

    def _votes(self, read: Judged, row: JudgedRow, pair: Pair, flipped: bool) -> None:
        choices: tuple[Choice, ...] = ("first", "second", "tie")
        if flipped:
            choices = ("second", "first", "tie")
        counts = zip(choices, row.judgement.counts or (), strict=False)
        number = 0
        for choice, count in counts:
            for _ in range(count):
                rater = self._rater(row.judgement.rater)
                key = self._key(read, row, f"vote {number}")
                self.counts["votes"] += self.store.add_vote(
                    key=key,
                    pair=pair.id,
                    rater=rater,
                    choice=choice,
                    seconds=0.0,
                    repeat=(pair.id, rater) in self.voted,
                )
                self.voted.add((pair.id, rater))
                number += 1

    def _like(self, table: Opened, read: Judged, entry: Merged) -> None:
        """One picture and all rows that say whether it is liked."""
        rows = [read.rows[place] for place in entry.rows]
        (sample,) = self._samples(table, read, rows[0])
        self.counts["samples"] += 1
        for row in rows:
            if row.judgement.label not in (0, 1):
                raise UserError(
                    f"{self.source!r}, {read.pictures.places[row.row]}: a like is 0 or 1, and this "
                    f"is {row.judgement.label:g}: write a row for each rater"
                )
            self.counts["likes"] += self.store.add_like(
                key=self._key(read, row, "like"),
                rater=self._rater(row.judgement.rater),
                sample=sample.id,
                liked=row.judgement.label == 1,
                seconds=0.0,
            )

    # --------------------------------------------------------------------------------- what of

    def _samples(self, table: Opened, read: Judged, row: JudgedRow) -> Sequence[Sample]:
        samples = []
        for payload in read.pictures.payloads(row.row):
            try:
                sha = self.store.add_picture(payload)
            except UserError as error:
                where = f"{table.source!r}, {read.pictures.places[row.row]}"
                raise UserError(f"{where}: {error}") from error
            name = hashlib.sha256(f"{row.caption}\n{sha}".encode()).hexdigest()
            settings = {"file": table.source}
            samples.append(
                self.store.add_sample(
                    prompt=row.caption,
                    picture=sha,
                    source="import",
                    settings=settings,
                    key=f"import:{name}",
                )
            )
        return samples

    def _shas(self, read: Judged, row: JudgedRow) -> list[str]:
        return [hashlib.sha256(payload).hexdigest() for payload in read.pictures.payloads(row.row)]

    def _rater(self, name: str) -> int:
        """The rater that a table calls so, apart from those who vote here."""
        full = f"{name or 'unnamed'} (imported)"
        if full not in self.raters:
            self.raters[full] = self.store.add_rater(full)[0].id
        return self.raters[full]

    def _key(self, read: Judged, row: JudgedRow, what: str) -> str:
        text = "\n".join((self.source, read.pictures.places[row.row], *self._shas(read, row), what))
        return "import:" + hashlib.sha256(text.encode()).hexdigest()
