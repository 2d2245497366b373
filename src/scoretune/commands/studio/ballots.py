"""Which pair a rater sees next, on which side its pictures stand, and what becomes of a vote.

A ballot is one showing of a pair to a rater. Its text is signed, so that a page can give nobody
else's; it is the vote's key, so that a vote that is sent twice counts once; and its signature says
which picture stands on the left.
"""

from __future__ import annotations

import random
import secrets
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Literal, NamedTuple

from scoretune.commands.studio.keys import Keys
from scoretune.commands.studio.security import Refused
from scoretune.core.errors import UserError
from scoretune.data.store import Pair, Sample
from scoretune.data.store.records import Choice, Side

if TYPE_CHECKING:
    from scoretune.data.store.store import Store

GOLD = 1 / 10
"""Share of ballots that show a pair with an answer that is agreed on, while there are such."""
REPEATS = 1 / 20
"""Share of ballots that show a pair once more, to see whether a rater agrees with themselves."""
APART = 10
"""Votes that lie between a pair and its repeat, at least."""
SPREAD = 4
"""Of the pairs that are to be asked about first one of so many is drawn, so that raters who vote at
once are not all asked the same."""
FRESH = 1.0
"""Seconds after which pairs are looked up anew."""
LATE = 1000
"""Pairs that are looked up again: of two writers to PostgreSQL the later one may come first."""
LONGEST = 600.0
"""Seconds of a vote that count as voting; what takes longer was a break."""

Shown = Literal["left", "right", "tie", "both_bad", "skip"]
"""A choice as the rater sees it."""


class Ballot(NamedTuple):
    """One showing of a pair to a rater."""

    pair: Pair
    repeat: bool
    text: str
    left: Side


class Cast(NamedTuple):
    """A vote as its rater's desk remembers it."""

    key: str
    pair: int
    seconds: float
    repeat: bool


class Progress(NamedTuple):
    """How many of how many pairs a rater has seen, and the seconds that are left, if they can be
    told."""

    done: int
    total: int
    seconds: float | None


@dataclass
class Desk:
    """What a rater has voted, in order, and the ballot on the table."""

    votes: list[Cast]
    ballot: Ballot | None = None
    lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def seen(self) -> set[int]:
        return {vote.pair for vote in self.votes if not vote.repeat}

    def clear(self, pair: Pair) -> None:
        """Take the ballot of a pair off the table, if that is there."""
        if self.ballot is not None and self.ballot.pair.id == pair.id:
            self.ballot = None


@dataclass
class Ballots:
    """The ballots of everybody who votes on a store. `order` gives the ids of pairs, those to ask
    about first at the front; what it does not name is drawn at random."""

    store: Store
    keys: Keys
    order: Callable[[], Sequence[int]] = tuple
    rng: random.Random = field(default_factory=secrets.SystemRandom)
    _desks: dict[int, Desk] = field(default_factory=dict, init=False)
    _pairs: dict[int, Pair] = field(default_factory=dict, init=False)
    _samples: dict[int, Sample] = field(default_factory=dict, init=False)
    _names: dict[int, str] = field(default_factory=dict, init=False)
    _looked: float = field(default=float("-inf"), init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def pairs(self) -> dict[int, Pair]:
        """The pairs that people vote on, by their ids, as they were at most a second ago."""
        with self._lock:
            if time.monotonic() - self._looked > FRESH:
                after = max(self._pairs, default=0) - LATE
                new = {pair.id: pair for pair in self.store.pairs(source="human", after=after)}
                if not new.keys() <= self._pairs.keys():
                    self._samples = {one.id: one for one in self.store.samples()}
                    self._pairs = self._pairs | new
                self._looked = time.monotonic()
            return self._pairs

    def sample(self, number: int) -> Sample:
        """A sample; they never change. Raises KeyError for one that the store has not."""
        return self._samples.get(number) or self.store.sample(number)

    def name(self, rater: int) -> str:
        """A rater's name, which never changes."""
        if rater not in self._names:
            self._names[rater] = self.store.rater(rater).name
        return self._names[rater]

    def current(self, rater: int) -> Ballot | None:
        """What lies before a rater: the same until they vote. None when they have seen all."""
        desk = self._desk(rater)
        with desk.lock:
            if desk.ballot is None:
                desk.ballot = self._drawn(rater, desk)
            return desk.ballot

    def vote(self, rater: int, text: str, choice: Shown, seconds: float) -> bool:
        """Store a vote of `left`, `right`, `tie`, `both_bad` or `skip`; whether it counted now.

        One that was stored before, or of a pair that this rater has judged by another ballot, does
        not count again. Raises Refused for a ballot that is not this rater's.
        """
        ballot = self.read(rater, text)
        desk = self._desk(rater)
        with desk.lock:
            if not ballot.repeat and ballot.pair.id in desk.seen:
                desk.clear(ballot.pair)
                return False
            cast = Cast(text, ballot.pair.id, clamped(seconds), ballot.repeat)
            try:
                stored = self.store.add_vote(
                    key=text,
                    pair=cast.pair,
                    rater=rater,
                    choice=meant(choice, ballot.left),
                    left=ballot.left,
                    seconds=cast.seconds,
                    repeat=cast.repeat,
                )
            except UserError:
                desk.votes = self._cast(rater)
                if cast.pair in desk.seen:  # by another studio on this store
                    desk.clear(ballot.pair)
                    return False
                raise
            desk.clear(ballot.pair)
            if stored:
                desk.votes.append(cast)
            return stored

    def undo(self, rater: int) -> Ballot | None:
        """Take the last vote back and show its pair again; None where there is none."""
        desk = self._desk(rater)
        with desk.lock:
            if not desk.votes:
                return None
            last = desk.votes.pop()
            self.store.undo_vote(last.key, rater)
            desk.ballot = self.made(rater, self.store.pair(last.pair), last.repeat)
            return desk.ballot

    def lay(self, rater: int, pair: Pair) -> None:
        """Put a pair before a rater, unless they have voted on it: what they asked for comes next.
        A ballot that they have before them still counts."""
        desk = self._desk(rater)
        with desk.lock:
            if pair.id not in desk.seen:
                desk.ballot = self.made(rater, pair)

    def progress(self, rater: int) -> Progress:
        """How far a rater has come; the time from the median of their last votes."""
        votes, pairs = self._desk(rater).votes, self.pairs()
        done = len({vote.pair for vote in votes} & pairs.keys())
        pace = [vote.seconds for vote in votes[-30:]]
        left = len(pairs) - done
        return Progress(done, len(pairs), statistics.median(pace) * left if pace else None)

    def made(self, rater: int, pair: Pair, repeat: bool = False) -> Ballot:
        """A new ballot of a pair for a rater, its side drawn at random."""
        text = self.keys.ticket("ballot", rater, f"{pair.id}.{int(repeat)}")
        return Ballot(pair, repeat, text, _side(text))

    def read(self, rater: int, text: str) -> Ballot:
        """The ballot of a text. Raises Refused for one that was not made for this rater."""
        body = self.keys.body("ballot", rater, text)
        if body is None:
            raise Refused(403, "this ballot is not yours: reload the page")
        number, repeat = body.split(".")
        try:
            pair = self._pairs.get(int(number)) or self.store.pair(int(number))
        except KeyError as error:
            raise Refused(404, "this pair is gone: reload the page") from error
        return Ballot(pair, repeat == "1", text, _side(text))

    def _desk(self, rater: int) -> Desk:
        with self._lock:
            if rater not in self._desks:
                self._desks[rater] = Desk(self._cast(rater))
            return self._desks[rater]

    def _cast(self, rater: int) -> list[Cast]:
        votes = self.store.votes(rater=rater)
        return [Cast(vote.key, vote.pair, vote.seconds, vote.repeat) for vote in votes]

    def _drawn(self, rater: int, desk: Desk) -> Ballot | None:
        pairs, seen = self.pairs(), desk.seen
        unseen = [pair for pair in pairs.values() if pair.id not in seen]
        twice = {vote.pair for vote in desk.votes if vote.repeat}
        old = [vote.pair for vote in desk.votes[:-APART] if vote.pair in pairs]
        again = [pair for pair in old if pair not in twice]
        if not unseen:
            return None
        if again and self.rng.random() < REPEATS:
            return self.made(rater, pairs[self.rng.choice(again)], repeat=True)
        gold = [pair for pair in unseen if pair.gold is not None]
        plain = [pair for pair in unseen if pair.gold is None]
        if not plain or (gold and self.rng.random() < GOLD):
            return self.made(rater, self.rng.choice(gold))
        free = {pair.id for pair in plain}
        first = list(islice((number for number in self.order() if number in free), SPREAD))
        return self.made(rater, pairs[self.rng.choice(first)] if first else self.rng.choice(plain))


def meant(choice: Shown, left: Side) -> Choice:
    """The choice of a ballot with this picture on the left, as the store keeps it."""
    if choice == "left":
        return left
    if choice == "right":
        return "second" if left == "first" else "first"
    return choice


def _side(text: str) -> Side:
    """The picture on the left of a ballot: a bit of its signature, which nobody can foretell."""
    return "first" if int(text[-1], 16) % 2 == 0 else "second"


def clamped(seconds: float) -> float:
    """Seconds that a page says a vote took, within what can be; 0 for what is no number."""
    return min(max(seconds, 0.0), LONGEST) if seconds == seconds else 0.0
