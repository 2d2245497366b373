"""What judgements add up to: pairs, ties, labels, and how far raters agree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from scoretune.data.judged_pictures import digest
from scoretune.data.judgements import Judgement, is_tie

Z = 1.959963984540054
"""Of a two-sided interval of 95 %."""


def wilson(successes: float, count: int) -> tuple[float, float, float]:
    """A share and its 95 % interval, by Wilson's score (1927): without probabilities below 0."""
    share, z = successes / count, Z * Z / count
    middle = (share + z / 2) / (1 + z)
    half = math.sqrt(z * (share * (1 - share) + z / 4)) / (1 + z)
    return share, middle - half, middle + half


def agreement(groups: Sequence[Sequence[int]]) -> dict[str, float] | None:
    """How far raters agree, by the counts (for one side, for the other, for neither) of each pair.

    `share`: the probability that two raters of one pair say the same, weighted by how many twos of
    raters a pair has. `beyond_chance`: (share − e)/(1 − e), where e is that of raters who say
    "neither" as often as these do and else toss a coin, since which side is first means nothing:
    e = p² + (1 − p)²/2 (Scott's π with equal sides). None where no pair has two raters.
    """
    compared = sum(math.comb(sum(counts), 2) for counts in groups)
    if not compared:
        return None
    share = sum(math.comb(count, 2) for counts in groups for count in counts) / compared
    votes = sum(sum(counts) for counts in groups)
    neither = sum(counts[2] for counts in groups) / votes
    chance = neither**2 + (1 - neither) ** 2 / 2
    beyond = (share - chance) / (1 - chance) if chance < 1 else 1.0
    return {"share": share, "beyond_chance": beyond, "compared": compared}


@dataclass
class Tally:
    """Judgements as they come, by the pair (or the single thing) that each is about."""

    groups: dict[bytes, list[int]] = field(default_factory=dict)
    sums: dict[bytes, list[float]] = field(default_factory=dict)
    prompts: set[bytes] = field(default_factory=set)
    raters: set[str] = field(default_factory=set)
    judged: set[tuple[bytes, str]] = field(default_factory=set)
    repeated: int = 0
    labels: list[float] = field(default_factory=list)

    def add(self, prompt: bytes, things: Sequence[bytes], judgement: Judgement) -> None:
        """One judgement, of things known by their digests."""
        back = len(things) > 1 and things[0] > things[1]
        key = digest(b"\0".join([digest(prompt), *sorted(things)]))
        self.prompts.add(digest(prompt))
        self.repeated += (key, judgement.rater) in self.judged
        self.judged.add((key, judgement.rater))
        if judgement.rater:
            self.raters.add(judgement.rater)
        self.labels.append(judgement.label)
        counts = list(judgement.counts or (0, 0, 0))
        if back:
            counts[:2] = reversed(counts[:2])
        group = self.groups.setdefault(key, [0, 0, 0])
        total = self.sums.setdefault(key, [0.0, 0.0])
        for i, count in enumerate(counts):
            group[i] += count
        total[0] += judgement.weight * (1 - judgement.label if back else judgement.label)
        total[1] += judgement.weight

    def pairs(self) -> dict[str, Any]:
        """Of what `read_pairs` makes of the rows: pairs, ties, and those that raters dispute."""
        merged = [label / weight for label, weight in self.sums.values()]
        return {
            "pairs": len(merged),
            "prompts": len(self.prompts),
            "ties": sum(map(is_tie, merged)),
            "disputed": sum(bool(a and b) for a, b, _ in self.groups.values()),
            "repeated": self.repeated,
        }

    def balance(self) -> dict[str, Any]:
        """How the labels of the rows are spread."""
        ties = sum(map(is_tie, self.labels))
        first = sum(label > 0.5 and not is_tie(label) for label in self.labels)
        return {
            "mean": math.fsum(self.labels) / len(self.labels) if self.labels else None,
            "first": first,
            "second": len(self.labels) - ties - first,
            "ties": ties,
            "soft": sum(label not in (0.0, 0.5, 1.0) for label in self.labels),
        }

    def of_raters(self) -> dict[str, Any]:
        """How many raters are named, and how far raters of one pair agree."""
        return {"named": len(self.raters), "agreement": agreement(list(self.groups.values()))}
