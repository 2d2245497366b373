"""The watches of a guard: pure functions that return an alarm beyond a limit, None within it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scoretune.evaluate.guard.spectrum import Peaks

TAIL = 0.025
"""Of a standard normal, over all comparisons of a run together: of one comparison, z = 1.96."""

LEVEL = TAIL / (2 * math.erfc(1))
"""How likely chance alone rings over a whole run, at most: 0.079, whatever the judge's scale.

A weighted sum of fair signs, of squared weights 1, exceeds z no more than 1/(4(1 − Φ(√2))) = 3.18
times as often as a normal does (Bentkus and Dzindzalieta, Bernoulli 21, 2015, sharp). Of verdicts
of 0 and 1 the exact binary tails add up to less: 0.063 of 2 evaluations, 0.047 of 3, 0.039 of 5,
0.036 of 8. Heights of a spectrum are skewed: for patterns this is a measure, no bound."""


@dataclass(frozen=True)
class Alarm:
    """What was seen at which update, against its limit."""

    update: int
    watch: str
    value: float
    limit: float
    text: str


@dataclass(frozen=True)
class Best:
    """The evaluation to compare with: the judge's values [B] there, if there is a judge."""

    update: int
    values: Tensor | None

    @property
    def mean(self) -> float | None:
        return None if self.values is None else mean(self.values)


# ------------------------------------------------------------------------------- the judge


def fallen(
    best: Best, now: Tensor, update: int, *, evaluations: int, margin: float
) -> tuple[float, float, Alarm | None]:
    """How far a judge is below its best, what chance explains of that, and the alarm.

    An alarm where the fall is more than both chance and `margin`. Over N `evaluations`, any of
    which may have been the best, `fall` compares no more than N(N − 1)/2 pairs.
    """
    assert best.values is not None and best.mean is not None
    fell, chance = fall(best.values, now, threshold(evaluations * (evaluations - 1) // 2))
    if fell <= max(chance, margin):
        return fell, chance, None
    text = f"the judge fell from {best.mean:.3f} at update {best.update} to {mean(now):.3f}: by "
    text += f"{fell:.3f}, of which chance explains {chance:.3f} at most"
    limit = best.mean - max(chance, margin)
    return fell, chance, Alarm(update, "judge", mean(now), limit, text)


def fall(best: Tensor, now: Tensor, z: float) -> tuple[float, float]:
    """The mean of d = best − now [B], and what chance explains of it; see `by_chance`.

    For verdicts of 0 and 1, S > z is McNemar's test (Psychometrika 12, 1947).
    """
    d = best.double() - now.double()
    return float(d.mean()), float(by_chance(d, z))


def by_chance(d: Tensor, z: float) -> Tensor:
    """What chance explains of the mean of d [B, ...], z·√(Σd²)/B: beyond it Σd/√(Σd²) > z.

    Where nothing changed, d is symmetric about 0: given its sizes its signs are fair, so that
    P(S > z) of S = Σd/√(Σd²) is bounded as `LEVEL` says, for a handful of samples too: S <= √B.
    """
    return z * d.square().sum(0).sqrt() / len(d)


def threshold(comparisons: int) -> float:
    """z with comparisons · (1 − Φ(z)) = TAIL: all together ring by chance no more often than LEVEL.

    The union bound (Bonferroni), which holds whatever the comparisons have to do with each other.
    """
    tail = torch.tensor(TAIL / max(comparisons, 1), dtype=torch.float64)
    return -float(torch.special.ndtri(tail))


# ------------------------------------------------------------------------------- the others


def strayed(chain_kl: float, update: int, budget: float) -> Alarm | None:
    """The KL of the sampling chain to the base model's, in nats, beyond its budget."""
    if chain_kl <= budget:
        return None
    text = f"the chain KL is {chain_kl:.3g} nats, and its budget {budget:g}"
    return Alarm(update, "chain_kl", chain_kl, budget, text)


def diversity(features: Tensor) -> float:
    """How much samples of one prompt differ: the mean distance in features [P, S, F], P prompts.

    2/(P·S·(S−1)) · Σ_p Σ_{i<j} ‖f_pi − f_pj‖.
    """
    return float(torch.stack([torch.pdist(rows.double()).mean() for rows in features]).mean())


def collapsed(ratio: float, update: int, limit: float) -> Alarm | None:
    """Samples of one prompt that differ less than `limit` times as much as the base model's."""
    if ratio >= limit:
        return None
    text = f"samples of one prompt differ {ratio:.2f} times as much as the base model's, and "
    text += f"{limit:g} is the least"
    return Alarm(update, "diversity", ratio, limit, text)


def diverged(ratio: float, update: int, limit: float) -> Alarm | None:
    """Preferred samples whose error is `ratio` times the base model's on the same.

    A loss of pairs falls all the same when the errors of both sides run away. Neither how often
    pairs are told apart nor how far pictures have moved shows it: edits do both, and gain.
    """
    if ratio <= limit:
        return None
    text = f"the error on preferred samples is {ratio:.2g} times the base model's, and {limit:g} "
    text += "the most: raise objective.beta, lower optimiser.learning_rate, or train for fewer "
    text += "updates"
    return Alarm(update, "divergence", ratio, limit, text)


def patterned(
    peaks: Peaks, base: Tensor, update: int, *, evaluations: int, factor: float
) -> tuple[float, Alarm | None]:
    """The highest peak of a spectrum relative to the base model's, and the alarm.

    `base` [F] are the mean heights of the base model, of which one below 1 is no pattern and counts
    as 1. An alarm where a mean height is beyond chance more than `factor` times the base model's,
    at one of F frequencies and of evaluations − 1.
    """
    heights, least = peaks.heights.cpu(), base.clamp(min=1.0).double()
    z = threshold(heights.shape[1] * (evaluations - 1))
    excess = heights.double() - factor * least
    beyond = (excess.mean(0) - by_chance(excess, z)) / least
    where = int(beyond.argmax())
    height = float((heights.mean(0) / least).max())
    if float(beyond[where]) <= 0:
        return height, None
    value, limit = float(heights[:, where].mean()), factor * float(least[where])
    down, across = peaks.frequencies[where].tolist()
    text = f"a periodic pattern of {period(down, across)}: its power is {value:.1f} times that of "
    text += f"neighbouring frequencies, and the base model's {float(base[where]):.1f} times"
    return height, Alarm(update, "pattern", value, limit, text)


def period(down: float, across: float) -> str:
    """Frequencies in cycles a pixel as a period in pixels, in words."""
    both = [(down, "down"), (across, "across")]
    return " and ".join(f"{1 / f:.3g} pixels {way}" for f, way in both if f)


# ------------------------------------------------------------------------------ what is equal


def moments(values: Tensor) -> list[float]:
    """Mean and deviation of values [B]; the deviation is 1 where there is none to speak of."""
    deviation = float(values.double().std()) if len(values) > 1 else 0.0
    return [mean(values), deviation if deviation > 0 else 1.0]


def gain(values: Tensor, base: list[float]) -> float:
    """(mean − the base's mean) / the base's deviation: makes a reward and a judge comparable."""
    return (mean(values) - base[0]) / base[1]


def mean(values: Tensor) -> float:
    return float(values.double().mean())
