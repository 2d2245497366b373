"""The deviation search: all that users, the miner and coalitions can do on a grid.

A mechanism is UIC if no user gains by another bid or by fakes, MIC if the miner gains nothing by
leaving out bids or by fakes, and s-SCP if the miner and s users together gain nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, combinations, combinations_with_replacement, product
from math import comb
from typing import NamedTuple

import numpy as np

from scoretune.control.problems.fee_auction.books import Books, Grid, Indices, tabulate
from scoretune.control.problems.fee_auction.deviation import Author, Deviation, Market, gain_of
from scoretune.control.problems.fee_auction.mechanisms import Array, Mechanism
from scoretune.control.problems.fee_auction.outcome import check_rules
from scoretune.core.errors import UserError

TOLERANCE = 1e-9
"""A gain of less counts as none."""
_ROWS = 200_000
"""Deviations that are looked up at a time: what a core's cache holds."""
MOST_DEVIATIONS = 5e9


@dataclass(frozen=True)
class Report:
    """The largest gain of every kind of deviation and, where it is above 0, who gains it how.

    `gains` by kind: UIC, MIC, 1-SCP, …; `deviations` is how many were looked at, `vectors` of how
    many value vectors; `burned` the least that a block burns.
    """

    mechanism: Mechanism
    market: Market
    gains: dict[str, float]
    witnesses: dict[str, Deviation]
    deviations: int
    vectors: int
    burned: float
    seconds: float
    exhaustive: bool

    def holds(self, kind: str) -> bool:
        """Whether no deviation of the kind gained anything."""
        return self.gains[kind] <= TOLERANCE


def search(mechanism: Mechanism, market: Market | None = None) -> Report:
    """Every deviation on the grid, each looked up in a table of all books of bids.

    Time is linear in the number of value vectors, C(grid + users, users): users are alike, so
    values need not increase. Raises UserError where that would take hours.
    """
    market = market or Market()
    start = time.perf_counter()
    check_rules(mechanism)
    count = deviations(market)
    if count > MOST_DEVIATIONS:
        raise UserError(
            f"{count:.1e} deviations are too many to look at: take fewer users, fakes or a smaller "
            "grid, or draw them at random (draws=…)"
        )
    space = _Space(mechanism, market)
    kinds = {"UIC": space.of_users(), "MIC": space.with_miner(0)}
    kinds |= {f"{s}-SCP": space.with_miner(s) for s in range(1, market.coalition + 1)}
    gains, witnesses = {}, {}
    for kind, each_best in kinds.items():
        best = max(each_best, key=lambda deviation: deviation.gain)
        gains[kind] = best.gain if best.gain > TOLERANCE else 0.0
        if gains[kind]:
            witnesses[kind] = replace(best, gain=gain_of(mechanism, market, best))
    return Report(
        mechanism=mechanism,
        market=market,
        gains=gains,
        witnesses=witnesses,
        deviations=count,
        vectors=len(space.values),
        burned=space.books.burned,
        seconds=time.perf_counter() - start,
        exhaustive=True,
    )


class Deviations(NamedTuple):
    """The largest gains of a user, of the miner, and of the miner with users; 0 where nobody gains.

    `witness` has, for each kind (UIC, MIC, 1-SCP, …) that somebody gains by, who does it how.
    """

    uic: float
    mic: float
    scp: float
    witness: dict[str, Deviation]


def deviation_search(mechanism: Mechanism, market: Market | None = None) -> Deviations:
    """As `search`, in three numbers."""
    report = search(mechanism, market)
    scp = max(gain for kind, gain in report.gains.items() if kind.endswith("SCP"))
    return Deviations(report.gains["UIC"], report.gains["MIC"], scp, report.witnesses)


def deviations(market: Market) -> int:
    """How many there are of all kinds, those of a coalition once for each author of the fakes."""
    users, bids = market.users, market.grid + 3
    fakes = sum(comb(market.grid + count, count) for count in range(market.fakes + 1))
    each: int = users * bids * fakes + 2**users * fakes
    for s in range(1, market.coalition + 1):
        each += comb(users, s) * 2 ** (users - s) * bids**s * fakes * 2
    return each * comb(market.grid + users, users)


class _Space:
    """All deviations of a market, a batch for each choice of members and of whom they include."""

    def __init__(self, mechanism: Mechanism, market: Market) -> None:
        self.market, self.size = market, mechanism.size
        self.grid = Grid(market.grid + 2)
        vectors = combinations_with_replacement(range(market.grid, -1, -1), market.users)
        self.values: Indices = np.array(list(vectors), dtype=np.intp)
        self.books: Books = tabulate(
            mechanism,
            self.grid,
            most=market.users + market.fakes,
            offending=max(market.coalition, 1) + market.fakes,
            tick=market.tick,
            gamma=market.gamma,
        )
        self.honest = self._book(self.values.T)
        choices = [
            [*fakes, *[self.grid.none] * (market.fakes - count)]
            for count in range(market.fakes + 1)
            for fakes in combinations_with_replacement(
                range(self.grid.levels, self.grid.none), count
            )
        ]
        self.fakes: Indices = np.array(choices, dtype=np.intp).reshape(len(choices), -1)

    def _book(self, columns: Indices) -> Indices:
        """The book of some columns of levels, each [V]."""
        book = np.zeros(len(self.values), dtype=np.intp)
        for column in columns:
            book = self.books.add[book, column]
        return book

    def of_users(self) -> Iterator[Deviation]:
        """The best deviation of every user alone, inclusion being truthful."""
        everyone = range(self.market.users)
        for user in everyone:
            others = tuple(u for u in everyone if u != user)
            yield self._best((user,), others, alone=True)

    def with_miner(self, count: int) -> Iterator[Deviation]:
        """The best of every coalition of the miner and `count` users, whomever they include."""
        everyone = range(self.market.users)
        for members in combinations(everyone, count):
            others = [u for u in everyone if u not in members]
            subsets = chain.from_iterable(
                combinations(others, size) for size in range(len(others) + 1)
            )
            for included in subsets:
                yield self._best(members, included, alone=False)

    def _best(
        self, members: tuple[int, ...], included: tuple[int, ...], *, alone: bool
    ) -> Deviation:
        """The largest gain over all values, bids of the members, fakes and their author."""
        bids = list(product(range(self.grid.levels + 1), repeat=len(members)))
        options: Indices = np.array(bids, dtype=np.intp).reshape(len(bids), len(members))
        authors: tuple[Author, ...] = ("user", "miner") if members else ("miner",)
        base = self._book(self.values[:, list(included)].T)
        rows = max(1, _ROWS // (len(options) * len(self.fakes)))
        best = (-np.inf, 0, 0, 0, authors[0])
        for first in range(0, len(self.values), rows):
            part = slice(first, first + rows)
            for author, gain in self._gains(members, options, base[part], part, alone):
                at = int(gain.argmax())
                if gain.flat[at] > best[0] + TOLERANCE:
                    v, o, f = (int(i) for i in np.unravel_index(at, gain.shape))
                    best = (float(gain.flat[at]), first + v, o, f, author)
        most, v, o, f, author = best
        return Deviation(
            values=tuple(int(x) for x in self.values[v]),
            members=members,
            bids=tuple(None if b == self.grid.levels else int(b) for b in options[o]),
            included=included,
            fakes=tuple(int(self.grid.level(b)) for b in self.fakes[f] if b != self.grid.none),
            author=author,
            with_miner=not alone,
            gain=most,
        )

    def _gains(
        self,
        members: tuple[int, ...],
        options: Indices,
        base: Indices,
        part: slice,
        alone: bool,
    ) -> Iterator[tuple[Author, Array]]:
        """Gains [v, o, f] by who pays for fakes: users first, for whom it is never worse."""
        table, values = self.books, self.values[part]
        bids = [
            self.grid.symbols(options[None, :, place], values[:, user, None])
            for place, user in enumerate(members)
        ]  # each [v, o]
        book = np.broadcast_to(base[:, None], (len(values), len(options)))
        for symbols in bids:
            book = table.add[book, symbols]
        book = np.broadcast_to(book[:, :, None], (*book.shape, len(self.fakes)))
        for column in self.fakes.T:
            book = table.add[book, column]
        honest = self.honest[part]
        users = np.zeros(book.shape)
        for symbols, user in zip(bids, members, strict=True):
            value = values[:, user]
            users += table.worth[value[:, None, None], book, symbols[:, :, None]]
            users -= table.worth[value, honest, value][:, None, None]
        fakes = np.zeros(book.shape)
        for column in self.fakes.T:
            fakes += table.worth[0, book, column]
        if alone:
            yield "user", users + fakes
            return
        users[table.entries[book] > self.size] = -np.inf
        revenue = table.revenue[book] - table.revenue[honest][:, None, None]
        if members:
            yield "user", users + fakes + self.market.miner(revenue)
        yield "miner", users + self.market.miner(revenue + fakes)
