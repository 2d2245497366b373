"""Deviations at random, improved step by step, for markets that are too large to enumerate."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from scoretune.control.problems.fee_auction.books import honest_blocks
from scoretune.control.problems.fee_auction.deviation import Deviation, Market, gain_of
from scoretune.control.problems.fee_auction.mechanisms import Array, Mechanism
from scoretune.control.problems.fee_auction.outcome import (
    ABSENT,
    check_burn,
    check_rules,
    expected,
    utility,
)
from scoretune.control.problems.fee_auction.search import TOLERANCE, Report
from scoretune.core.errors import UserError

Integers = NDArray[np.int64]
OUT = -1
"""The level of what is left out, or of a fake that is none."""


@dataclass
class _Crowd:
    """Many deviations at once, levels in ticks: `values` and `bids` [R, n], `member` [R, n],
    `fakes` [R, F], `by_user` [R]. Others than members bid their value or are left out."""

    values: Integers
    bids: Integers
    member: NDArray[np.bool_]
    fakes: Integers
    by_user: NDArray[np.bool_]

    def where(self, better: NDArray[np.bool_], other: _Crowd) -> _Crowd:
        """Rows of the other where `better`, else of this."""
        rows = better[:, None]
        return _Crowd(
            np.where(rows, other.values, self.values),
            np.where(rows, other.bids, self.bids),
            np.where(rows, other.member, self.member),
            np.where(rows, other.fakes, self.fakes),
            np.where(better, other.by_user, self.by_user),
        )


def draw(
    mechanism: Mechanism,
    market: Market | None = None,
    *,
    draws: int = 300,
    rounds: int = 150,
    seed: int = 0,
) -> Report:
    """`draws` random deviations of each kind, each changed `rounds` times where that gains more.

    What it finds is a violation; that it finds none is no proof. Gains are of the rules themselves,
    of any number of users and any grid.
    """
    market = market or Market()
    if draws < 1 or rounds < 0:
        raise UserError(f"draws must be at least 1 and rounds at least 0, got {draws}, {rounds}")
    start = time.perf_counter()
    check_rules(mechanism)
    random = np.random.default_rng(seed)
    gains, witnesses = {}, {}
    kinds = {"UIC": 1, "MIC": 0} | {f"{s}-SCP": s for s in range(1, market.coalition + 1)}
    burned = np.inf
    for kind, count in kinds.items():
        alone = kind == "UIC"
        crowd = _first(market, count, draws, random)
        gain = _gains(mechanism, market, crowd, alone)
        for _ in range(rounds):
            other = _changed(market, crowd, alone, random)
            changed = _gains(mechanism, market, other, alone)
            better = changed >= gain
            crowd, gain = crowd.where(better, other), np.where(better, changed, gain)
        blocks = honest_blocks(mechanism, _entries(market, crowd))
        burned = min(burned, check_burn(mechanism, blocks))
        best = int(gain.argmax())
        gains[kind] = 0.0
        if gain[best] > TOLERANCE:
            deviation = _deviation(crowd, best, float(gain[best]), alone)
            gains[kind] = gain_of(mechanism, market, deviation)
            witnesses[kind] = replace(deviation, gain=gains[kind])
    return Report(
        mechanism=mechanism,
        market=market,
        gains=gains,
        witnesses=witnesses,
        deviations=draws * (rounds + 1) * len(kinds),
        vectors=draws * len(kinds),
        burned=burned,
        seconds=time.perf_counter() - start,
        exhaustive=False,
    )


def _first(market: Market, count: int, draws: int, random: np.random.Generator) -> _Crowd:
    """Truthful rows with `count` members each."""
    top = random.integers(1, market.grid + 1, (draws, 1))
    values = -np.sort(-random.integers(0, top + 1, (draws, market.users)), axis=1)
    order = random.random((draws, market.users)).argsort(1)
    return _Crowd(
        values=values,
        bids=values.copy(),
        member=order < count,
        fakes=np.full((draws, market.fakes), OUT),
        by_user=np.full(draws, count > 0),
    )


def _changed(market: Market, crowd: _Crowd, alone: bool, random: np.random.Generator) -> _Crowd:
    """A copy in which a few numbers of every row have been drawn anew, or moved by a tick."""
    rows, users = crowd.values.shape
    chance = 1.5 / (users + market.fakes)
    top = market.grid

    def moved(levels: Integers, least: int, most: int) -> Integers:
        step = levels + random.integers(-1, 2, levels.shape)
        anew = random.integers(least, most + 1, levels.shape)
        return np.where(random.random(levels.shape) < 0.5, np.clip(step, least, most), anew)

    change = random.random((rows, users)) < chance / 2
    values = np.where(change, moved(crowd.values, 0, top), crowd.values)
    touched = (random.random((rows, users)) < chance) | change
    of_members = np.where(touched, moved(crowd.bids, OUT, top + 1), crowd.bids)
    of_members = np.where(touched & (random.random((rows, users)) < 0.3), values, of_members)
    leave = touched & (random.random((rows, users)) < 0.5) & (not alone)
    leave |= ~touched & (crowd.bids == OUT)
    of_others = np.where(leave, OUT, values)
    fakes = crowd.fakes
    if market.fakes:
        touch = random.random(fakes.shape) < chance
        new = np.where(random.random(fakes.shape) < 0.5, OUT, moved(fakes, 1, top + 1))
        fakes = np.where(touch, new, fakes)
    flip = (random.random(rows) < 0.1) & crowd.member.any(1) & (not alone)
    return _Crowd(
        values=values,
        bids=np.where(crowd.member, of_members, of_others),
        member=crowd.member,
        fakes=fakes,
        by_user=crowd.by_user ^ flip,
    )


def _entries(market: Market, crowd: _Crowd) -> Array:
    levels = np.concatenate([crowd.bids, crowd.fakes], axis=1)
    bids: Array = np.where(levels >= 0, levels * market.tick, ABSENT)
    return bids


def _gains(mechanism: Mechanism, market: Market, crowd: _Crowd, alone: bool) -> Array:
    """What every row gains, [R]."""
    values: Array = crowd.values.astype(np.float64) * market.tick
    honest = expected(mechanism, values, values)
    before = utility(honest, values, values, market.gamma)
    bids = _entries(market, crowd)
    author_values: Array = np.concatenate([values, np.zeros(crowd.fakes.shape)], axis=1)
    outcome = expected(mechanism, bids, author_values)
    after = utility(outcome, bids, author_values, market.gamma)
    users = values.shape[1]
    gain: Array = ((after[:, :users] - before) * crowd.member).sum(1)
    fakes = after[:, users:].sum(1)
    if alone:
        return np.asarray(gain + fakes)
    revenue = outcome.revenue - honest.revenue
    miner = market.miner(np.where(crowd.by_user, revenue, revenue + fakes))
    total: Array = gain + miner + np.where(crowd.by_user, fakes, 0.0)
    return total


def _deviation(crowd: _Crowd, row: int, gain: float, alone: bool) -> Deviation:
    members = tuple(int(u) for u in np.flatnonzero(crowd.member[row]))
    levels = [None if b == OUT else int(b) for b in crowd.bids[row]]
    others = [u for u in range(len(levels)) if u not in members]
    return Deviation(
        values=tuple(int(v) for v in crowd.values[row]),
        members=members,
        bids=tuple(levels[u] for u in members),
        included=tuple(u for u in others if levels[u] is not None),
        fakes=tuple(int(f) for f in crowd.fakes[row] if f != OUT),
        author="user" if crowd.by_user[row] else "miner",
        with_miner=not alone,
        gain=gain,
    )
