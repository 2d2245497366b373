"""What votes say of their raters, on votes whose answers are known."""

from __future__ import annotations

import math
import random

import pytest

from scoretune.commands.studio import agreement
from scoretune.commands.studio.agreement import Share
from scoretune.data.store import Pair, Rater, Vote

PAIRS = {
    n: Pair(n, f"prompt {n % 3}", 2 * n, 2 * n + 1, "human", None, None, 0.0) for n in range(60)
}


def vote(pair: int, rater: int, choice: str, **fields) -> Vote:
    values = {"left": "first", "seconds": 1.0, "repeat": False, "created": 0.0} | fields
    return Vote(
        id=0, key=f"{pair}.{rater}.{values}", pair=pair, rater=rater, choice=choice, **values
    )


def rater(number: int) -> Rater:
    return Rater(number, f"rater {number}", "person", "", 0.0)


def test_alpha_is_one_for_agreement_near_zero_for_chance_and_knows_a_published_number():
    sides = {n: "first" if n % 2 else "second" for n in PAIRS}
    assert agreement.alpha([vote(n, r, sides[n]) for n in PAIRS for r in (1, 2, 3)]) == 1.0
    rng = random.Random(0)
    chance = [vote(n, r, rng.choice(["first", "second"])) for n in PAIRS for r in range(8)]
    assert abs(agreement.alpha(chance)) < 0.1
    # Two coders and two values: 1 − (n − 1) o₀₁/(n₀ n₁) = 1 − 19·4/(14·6) (Krippendorff 2011).
    coders = ("0100000000", "1110010010")
    names = {"0": "first", "1": "second"}
    votes = [vote(n, r, names[c]) for r, row in enumerate(coders) for n, c in enumerate(row)]
    assert agreement.alpha(votes) == pytest.approx(1 - 19 * 4 / (14 * 6))


def test_alpha_says_nothing_where_nothing_can_be_said():
    assert agreement.alpha([]) is None
    assert agreement.alpha([vote(1, 1, "first"), vote(2, 2, "second")]) is None
    assert agreement.alpha([vote(1, 1, "first"), vote(1, 2, "first")]) is None
    assert agreement.alpha([vote(1, 1, "first"), vote(1, 2, "skip")]) is None


def test_wilsons_interval():
    low, high = Share(8, 10).interval  # Wilson 1927; Brown, Cai and DasGupta 2001
    assert (low, high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert Share(0, 0).value is None and Share(0, 0).interval == (0.0, 1.0)
    assert Share(0, 20).interval[0] == pytest.approx(0.0, abs=1e-12)


def test_a_rater_who_takes_the_left_is_seen():
    lefts = {n: "first" if n % 2 else "second" for n in PAIRS}
    votes = [vote(n, 1, lefts[n], left=lefts[n], seconds=0.5) for n in PAIRS]
    votes += [vote(n, 2, "first", left=lefts[n], seconds=3.0) for n in PAIRS]
    votes += [vote(0, 3, "skip")]
    biased, fair = agreement.of_raters(votes, PAIRS, [rater(n) for n in (1, 2, 3)])
    assert (biased.left.value, biased.biased, biased.seconds) == (1.0, True, 0.5)
    assert (fair.left.value, fair.biased, fair.seconds) == (0.5, False, 3.0)
    assert biased.others.value == fair.others.value == 0.5


def test_gold_and_repeats():
    pairs = PAIRS | {n: Pair(n, "p", 1, 2, "human", "first", None, 0.0) for n in range(4)}
    votes = [vote(n, 1, "first" if n else "second") for n in range(10)]
    votes += [vote(n, 1, "first", repeat=True) for n in range(3)]
    (one,) = agreement.of_raters(votes, pairs, [rater(1)])
    assert (one.repeats.k, one.repeats.n) == (2, 3)
    assert (one.gold.k, one.gold.n) == (6, 7)


def test_disputed_prompts_weigh_less():
    votes = [vote(n, r, "first") for n in PAIRS if n % 3 for r in range(4)]
    votes += [
        vote(n, r, "first" if r % 2 else "second") for n in PAIRS if not n % 3 for r in range(4)
    ]
    disputed, *agreed = agreement.of_prompts(votes, PAIRS)
    assert disputed.prompt == "prompt 0" and disputed.entropy == pytest.approx(1.0)
    p = 4.5 / 5
    expected = -(p * math.log2(p) + (1 - p) * math.log2(1 - p))
    assert [one.entropy for one in agreed] == pytest.approx([expected, expected])
    assert disputed.dispersion == pytest.approx(0.0, abs=1e-5)
    assert [one.dispersion for one in agreed] == pytest.approx([1.5, 1.5], rel=1e-4)  # 1 on average
    assert agreement.of_prompts([vote(0, 1, "tie")], PAIRS)[0].dispersion is None
