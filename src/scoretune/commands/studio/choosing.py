"""Which pairs come first: by chance, by what the votes leave open, or by a reward's ensemble.

The order is made beside the answers, in a thread, when votes or pairs have come: a rater waits for
nothing, and the order is a few seconds old.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from scoretune.commands.studio.agreement import CODES, counted
from scoretune.core.errors import one_line
from scoretune.data.store import Pair, Vote

if TYPE_CHECKING:
    from torch import Tensor

    from scoretune.data.store.store import Store

RANDOM, VOTES = "random", "votes"
"""Ways to choose; any other is the folder of a reward that `scoretune train reward` made."""
MEMBERS = 32
"""Draws of the scores that the votes leave possible."""
RIDGE = 1.0
"""Of the fit: scores have a deviation of 1 before a vote."""
BATCH, MOST = 8, 64
"""Pairs between which no sample is shared, and pairs that are put in order."""
PAUSE = 3.0
"""Seconds between two orders."""


@dataclass
class Choosing:
    """The order in which the pairs of a store are asked about, `how` as above."""

    store: Store
    how: str = RANDOM
    problem: str = field(default="", init=False)
    current: list[int] = field(default_factory=list, init=False)
    _made_of: tuple[str, int, list[int]] | None = field(default=None, init=False)
    _looked: float = field(default=-math.inf, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)
    _fits: dict[str, tuple[bytes, Tensor]] = field(default_factory=dict, init=False)
    _scores: dict[tuple[str, int], Tensor] = field(default_factory=dict, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def choose(self, how: str) -> None:
        """Choose by something else from now on."""
        with self._lock:
            self.how, self.problem, self.current, self._looked = how, "", [], -math.inf

    def order(self) -> Sequence[int]:
        """The ids of pairs, those to ask about first at the front; empty for chance."""
        if self.how == RANDOM:
            return ()
        with self._lock:
            idle = self._thread is None or not self._thread.is_alive()
            if idle and time.monotonic() - self._looked > PAUSE:
                self._looked = time.monotonic()
                self._thread = threading.Thread(target=self.look, daemon=True)
                self._thread.start()
            return self.current

    def look(self) -> None:
        """Make the order anew, if votes or pairs have come."""
        how = self.how
        try:
            pairs = [pair for pair in self.store.pairs(source="human") if pair.gold is None]
            votes = counted(self.store.votes())
            state = how, len(pairs), [vote.id for vote in votes]
            if state == self._made_of and self.current:
                return
            by_votes = how == VOTES
            order = self._by_votes(pairs, votes) if by_votes else self._by_reward(how, pairs, votes)
        except Exception as error:  # of a reward that somebody made: chance goes on
            self.problem = one_line(str(error) or type(error).__name__)
            return
        with self._lock:
            if how == self.how:
                self.current, self._made_of, self.problem = order, state, ""

    def _by_votes(self, pairs: Sequence[Pair], votes: Sequence[Vote]) -> list[int]:
        """By a Bradley–Terry fit of each prompt's votes, made anew where these have changed."""
        import torch

        counts = outcomes(pairs, votes)
        groups: dict[str, list[int]] = {}
        for place, pair in enumerate(pairs):
            groups.setdefault(pair.prompt, []).append(place)
        column: dict[int, Tensor] = {}
        for prompt, places in groups.items():
            ids = sorted({n for p in places for n in (pairs[p].first, pairs[p].second)})
            two = torch.tensor(
                [[ids.index(pairs[p].first), ids.index(pairs[p].second)] for p in places]
            )
            state = counts[places].numpy().tobytes() + bytes(str(ids), "ascii")
            if self._fits.get(prompt, (b"",))[0] != state:
                self._fits[prompt] = state, possible_scores(two, counts[places], len(ids))
            column |= dict(zip(ids, self._fits[prompt][1].T, strict=True))
        return ordered(pairs, column)

    def _by_reward(self, folder: str, pairs: Sequence[Pair], votes: Sequence[Vote]) -> list[int]:
        """By the members of a reward; pairs that have a vote come last."""
        import torch

        from scoretune.rewards.reward_model import RewardModel

        wanted = {n for pair in pairs for n in (pair.first, pair.second)}
        new = sorted(n for n in wanted if (folder, n) not in self._scores)
        reward = RewardModel(folder)
        for number in new:
            sample = self.store.sample(number)
            pixels = self.store.pixels(sample.picture)
            with torch.no_grad():
                scores = reward.members(pixels[None], [sample.full_prompt])[:, 0]
            self._scores[folder, number] = scores.double()
        column = {number: self._scores[folder, number] for number in wanted}
        voted = {vote.pair for vote in votes}
        fresh = [pair for pair in pairs if pair.id not in voted]
        rest = [pair for pair in pairs if pair.id in voted]
        return ordered(fresh, column) + ordered(rest, column)


def outcomes(pairs: Sequence[Pair], votes: Sequence[Vote]) -> Tensor:
    """Votes for the first, for neither and for the second of each pair, [n, 3]."""
    import torch

    places = {pair.id: place for place, pair in enumerate(pairs)}
    counts = torch.zeros(len(pairs), 3, dtype=torch.float64)
    for vote in votes:
        if vote.pair in places:
            counts[places[vote.pair], CODES[vote.choice]] += 1
    return counts


def possible_scores(pairs: Tensor, counts: Tensor, items: int) -> Tensor:
    """Scores of items by votes on pairs of them, [MEMBERS, items]: draws from their law given the
    votes."""
    import torch

    from scoretune.preference import fit_scores

    generator = torch.Generator().manual_seed(0)
    voted = counts.sum(1) > 0
    if not bool(voted.any()):
        noise = torch.randn(MEMBERS, items, generator=generator, dtype=torch.float64)
        drawn: Tensor = noise / RIDGE**0.5
        return drawn
    fit = fit_scores(pairs[voted], counts[voted], items, model="bradley_terry", ridge=RIDGE)
    return fit.draw(MEMBERS, generator)


def ordered(pairs: Sequence[Pair], scores: Mapping[int, Tensor]) -> list[int]:
    """The ids of `MOST` pairs, the most informative by an ensemble's scores [K] of each sample
    first; in batches, within which no sample comes twice while there are others."""
    import torch

    from scoretune.preference import next_pairs

    if not pairs:
        return []
    ids = sorted({n for pair in pairs for n in (pair.first, pair.second)})
    place = {number: at for at, number in enumerate(ids)}
    table = torch.stack([scores[number] for number in ids], 1)
    two = torch.tensor([[place[pair.first], place[pair.second]] for pair in pairs])
    taken, order = torch.zeros(len(pairs), dtype=torch.bool), list[int]()
    while len(order) < min(MOST, len(pairs)):
        batch = next_pairs(table, two, BATCH, seen=taken)
        taken[batch] = True
        order += [pairs[at].id for at in batch.tolist()]
    return order


def is_way(how: str) -> bool:
    """Whether pairs can be chosen so."""
    from scoretune.rewards.reward_model import is_reward_model

    return how in (RANDOM, VOTES) or is_reward_model(how)


def named(how: str) -> str:
    """A way in words."""
    names = {RANDOM: "at random", VOTES: "what the votes leave open"}
    return names.get(how, f"where the reward {Path(how).name} is unsure")
