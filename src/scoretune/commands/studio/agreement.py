"""What votes say of those who gave them, and of the prompts: agreement, bias, speed, dispersion.

Formulas on lists of votes; skipped ones are left out everywhere.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from scoretune.data.store import Pair, Rater, Vote
from scoretune.preference import dispersion, phi_star
from scoretune.preference.disagreement import vote_entropy

CODES = {"first": 0, "tie": 1, "both_bad": 1, "second": 2}
"""A choice as an ordered value: which of the two, with a tie between them."""
Z = 1.959963984540054
"""97.5 % of the standard normal law lie below it."""


@dataclass(frozen=True)
class Share:
    """k of n, with Wilson's 95 % interval; of none at all the share is None."""

    k: int
    n: int

    @property
    def value(self) -> float | None:
        return self.k / self.n if self.n else None

    @property
    def interval(self) -> tuple[float, float]:
        """(p + z²/2n ± z √(p(1 − p)/n + z²/4n²)) / (1 + z²/n) (Wilson 1927)."""
        if not self.n:
            return 0.0, 1.0
        p, z2 = self.k / self.n, Z**2 / self.n
        middle = p + z2 / 2
        spread = Z * math.sqrt(p * (1 - p) / self.n + z2 / (4 * self.n))
        return (middle - spread) / (1 + z2), (middle + spread) / (1 + z2)


@dataclass(frozen=True)
class RaterSummary:
    """One rater: how many votes, the median seconds of one, the share of decided ones that took the
    left picture, that agree with gold, that repeat what they said before, and with the others'
    majority; and whether the left share is farther from one half than chance explains."""

    rater: Rater
    votes: int
    seconds: float | None
    left: Share
    gold: Share
    repeats: Share
    others: Share

    @property
    def biased(self) -> bool:
        low, high = self.left.interval
        return self.left.n > 0 and not low <= 0.5 <= high


@dataclass(frozen=True)
class PromptSummary:
    """One prompt: votes that decided, how many pairs had them, the mean entropy of its pairs'
    votes over ln 2, and its dispersion −φ* ln H̄ (MallowsPO), 1 on average, where defined."""

    prompt: str
    votes: int
    pairs: int
    entropy: float
    dispersion: float | None


def counted(votes: Sequence[Vote]) -> list[Vote]:
    """The votes that say something: all but those that skip."""
    return [vote for vote in votes if vote.choice != "skip"]


def alpha(votes: Sequence[Vote]) -> float | None:
    """Krippendorff's α of the first votes of raters on pairs, ordinal (first < tie < second).

    None where no pair has two raters, or all votes are the same: then α says nothing.
    """
    import krippendorff

    firsts = {(v.rater, v.pair): v for v in reversed(counted(votes)) if not v.repeat}
    raters = sorted({rater for rater, _ in firsts})
    pairs = sorted({pair for _, pair in firsts})
    codes = {key: CODES[vote.choice] for key, vote in firsts.items()}
    table = [[codes.get((rater, pair), math.nan) for pair in pairs] for rater in raters]
    shared = [
        value
        for column in zip(*table, strict=True)
        if sum(value == value for value in column) > 1
        for value in column
        if value == value
    ]
    if len(set(shared)) < 2:
        return None
    return float(krippendorff.alpha(reliability_data=table, level_of_measurement="ordinal"))


def of_raters(
    votes: Sequence[Vote], pairs: Mapping[int, Pair], raters: Sequence[Rater]
) -> list[RaterSummary]:
    """Every rater who has voted, the busiest first."""
    votes = counted(votes)
    summaries = []
    for rater in raters:
        own = [vote for vote in votes if vote.rater == rater.id]
        if own:
            others = [vote for vote in votes if vote.rater != rater.id]
            summaries.append(_of_rater(rater, own, others, pairs))
    return sorted(summaries, key=lambda summary: -summary.votes)


def _of_rater(
    rater: Rater, own: Sequence[Vote], others: Sequence[Vote], pairs: Mapping[int, Pair]
) -> RaterSummary:
    decided = [vote for vote in own if vote.choice in ("first", "second")]
    firsts = {vote.pair: vote.choice for vote in own if not vote.repeat}
    again = [vote for vote in own if vote.repeat and vote.pair in firsts]
    gold = [vote for vote in own if vote.pair in pairs and pairs[vote.pair].gold is not None]
    majorities = _majorities(others)
    met = [vote for vote in decided if vote.pair in majorities]
    return RaterSummary(
        rater=rater,
        votes=len(own),
        seconds=statistics.median(vote.seconds for vote in own),
        left=Share(sum(vote.choice == vote.left for vote in decided), len(decided)),
        gold=Share(sum(vote.choice == pairs[vote.pair].gold for vote in gold), len(gold)),
        repeats=Share(sum(vote.choice == firsts[vote.pair] for vote in again), len(again)),
        others=Share(sum(vote.choice == majorities[vote.pair] for vote in met), len(met)),
    )


def _majorities(votes: Sequence[Vote]) -> dict[int, str]:
    """The side that more votes took, of pairs where one did."""
    scores: dict[int, int] = defaultdict(int)
    for vote in votes:
        scores[vote.pair] += (vote.choice == "first") - (vote.choice == "second")
    return {pair: "first" if score > 0 else "second" for pair, score in scores.items() if score}


def of_prompts(votes: Sequence[Vote], pairs: Mapping[int, Pair]) -> list[PromptSummary]:
    """Every prompt with decided votes, the most disputed first."""
    counts: dict[int, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for vote in counted(votes):
        if vote.pair in pairs:
            tie = 0.5 * (vote.choice not in ("first", "second"))
            counts[vote.pair][0] += tie + (vote.choice == "first")
            counts[vote.pair][1] += tie + (vote.choice == "second")
    by_prompt: dict[str, list[list[float]]] = defaultdict(list)
    for pair, count in counts.items():
        by_prompt[pairs[pair].prompt].append(count)
    means = {
        prompt: float(vote_entropy(*torch.tensor(rows, dtype=torch.float64).T).mean())
        for prompt, rows in by_prompt.items()
    }
    scales = _dispersions(list(means.values()))
    summaries = [
        PromptSummary(prompt, round(sum(map(sum, rows))), len(rows), means[prompt], scale)
        for (prompt, rows), scale in zip(by_prompt.items(), scales, strict=True)
    ]
    return sorted(summaries, key=lambda summary: -summary.entropy)


def _dispersions(entropies: list[float]) -> list[float | None]:
    """−φ* ln H̄ of each prompt; None where all are the same, and weigh nothing."""
    if len(set(entropies)) < 2:
        return [None] * len(entropies)
    values = torch.tensor(entropies, dtype=torch.float64)
    weights: list[float | None] = dispersion(values, phi_star(values)).tolist()
    return weights
