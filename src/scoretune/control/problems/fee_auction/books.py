"""Every book of bids on a small grid, each with its outcome, so that deviations are look-ups."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations_with_replacement
from math import comb

import numpy as np
from numpy.typing import NDArray

from scoretune.control.problems.fee_auction.mechanisms import Array, Mechanism
from scoretune.control.problems.fee_auction.outcome import (
    ABSENT,
    Expected,
    check_burn,
    expected,
    utility,
)
from scoretune.core.errors import UserError

Indices = NDArray[np.intp]
MOST_BOOKS = 100_000


@dataclass(frozen=True)
class Grid:
    """Symbols of bids: levels 0 … L−1 of those up to their value, then 1 … L−1 of those above it,
    and `none`. Levels are in ticks."""

    levels: int

    @property
    def none(self) -> int:
        """The symbol of no bid."""
        return 2 * self.levels - 1

    def above(self, level: Indices) -> Indices:
        """Of bids above their value, such as fakes."""
        return level + self.levels - 1

    def symbols(self, bids: Indices, values: Indices) -> Indices:
        """Of bids in levels, `levels` standing for none, of authors with these values."""
        symbols: Indices = np.where(bids > values, self.above(bids), bids)
        return np.where(bids == self.levels, self.none, symbols)

    def level(self, symbol: Indices) -> Indices:
        """In ticks, of all symbols but none."""
        return np.where(symbol < self.levels, symbol, symbol - self.levels + 1)


@dataclass(frozen=True)
class Books:
    """Multisets of up to E bids, book 0 being the empty one, of which few are above their value.

    `add[book, symbol]` is the book with one bid more (−1 where it would be too large); `entries`
    and `revenue` [books]; `worth[value, book, symbol]` what that entry is worth to an author with
    that value, none nothing. `burned` is the least that any block burns.
    """

    grid: Grid
    add: Indices
    entries: Indices
    revenue: Array
    worth: Array
    burned: float


def tabulate(
    mechanism: Mechanism, grid: Grid, *, most: int, offending: int, tick: float, gamma: float
) -> Books:
    """All books of up to `most` bids with up to `offending` above their value.

    Raises UserError where there are too many, or the mechanism burns a negative amount.
    """
    books = _multisets(grid, most, offending)
    add = _additions(books, grid)
    symbols = np.full((len(books), most), grid.none, dtype=np.intp)
    for index, book in enumerate(books):
        symbols[index, : len(book)] = book
    there = symbols != grid.none
    bids = np.where(there, grid.level(symbols) * tick, ABSENT)
    # A value that says which kind a bid is: the least for one above its value, else the bid itself.
    outcome = expected(mechanism, bids, np.where(symbols >= grid.levels, ABSENT, bids))
    confirmed = np.zeros((len(books), grid.none + 1))
    paid = np.zeros_like(confirmed)
    for place in range(most):
        row = np.flatnonzero(there[:, place])
        confirmed[row, symbols[row, place]] = outcome.confirmed[row, place]
        paid[row, symbols[row, place]] = outcome.paid[row, place]
    values: Array = np.arange(grid.levels - 1, dtype=np.float64)[:, None, None] * tick
    bid_of_symbol = np.append(grid.level(np.arange(grid.none)) * tick, ABSENT)
    by_symbol = Expected(confirmed, paid, outcome.revenue)
    worth = utility(by_symbol, bid_of_symbol, values, gamma)
    entries = there.sum(1)
    burned = check_burn(mechanism, honest_blocks(mechanism, bids))
    return Books(grid, add, entries, outcome.revenue, worth, burned)


def honest_blocks(mechanism: Mechanism, bids: Array) -> Array:
    """What a truthful miner makes of bids [N, E]: the highest, [N, size]."""
    ranked = -np.sort(-np.maximum(bids, 0), axis=-1)[:, : mechanism.size]
    block = np.zeros((len(bids), mechanism.size))
    block[:, : ranked.shape[1]] = ranked
    return block


def _multisets(grid: Grid, most: int, offending: int) -> list[tuple[int, ...]]:
    """Of symbols in increasing order, the smallest first."""
    truthful, above = range(grid.levels), range(grid.levels, grid.none)
    few = range(min(most, offending) + 1)
    count = sum(
        comb(len(above) + o - 1, o) * comb(most - o + grid.levels, grid.levels) for o in few
    )
    if count > MOST_BOOKS:
        raise UserError(
            f"{count} books of bids are too many to search: take fewer users, fakes or a smaller "
            "grid, or draw deviations at random (draws=…)"
        )
    return [
        (*low, *high)
        for size in range(most + 1)
        for o in few
        if o <= size
        for low in combinations_with_replacement(truthful, size - o)
        for high in combinations_with_replacement(above, o)
    ]


def _additions(books: list[tuple[int, ...]], grid: Grid) -> Indices:
    number = {book: index for index, book in enumerate(books)}
    add = np.full((len(books), grid.none + 1), -1, dtype=np.intp)
    add[:, grid.none] = np.arange(len(books))
    for book, index in number.items():
        for place, symbol in enumerate(book):
            if place == 0 or book[place - 1] != symbol:
                add[number[book[:place] + book[place + 1 :]], symbol] = index
    return add
