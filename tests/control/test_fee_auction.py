"""Fee mechanisms: known gains, the search against brute force, planted violations, the long run."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from scoretune.commands.reproduce.fee_incentives import with_bonus
from scoretune.control.problems.fee_auction import (
    Jumps,
    Market,
    Mechanism,
    Urn,
    admissible,
    bsp,
    coalition_gain,
    draw,
    eip1559,
    expected,
    first_price,
    gain_of,
    largest_theta,
    least_tick,
    long_run,
    search,
    second_price,
    story,
    utility,
)
from scoretune.core.errors import UserError

JUMPS = Jumps(up=0.3, down=0.7)


def gains(mechanism, **settings):
    """By kind, and every witness gains as much when it is played out by the rules."""
    market = Market(**settings)
    report = search(mechanism, market)
    for kind, witness in report.witnesses.items():
        assert witness.kind == kind
        assert gain_of(mechanism, market, witness) == pytest.approx(report.gains[kind])
    return report.gains


# ---------------------------------------------------------------------------- one shot


@pytest.mark.parametrize(
    ("users", "k", "extra", "c", "gamma", "confirmed"),
    [(4, 2, 2, 1, 1.0, 2), (4, 2, 1, 2, 1.0, 1), (4, 2, 2, 1, 0.5, 1), (5, 3, 1, 2, 1.0, 1)],
)
def test_bsp_of_one_shot_keeps_its_three_promises(users, k, extra, c, gamma, confirmed):
    auction = bsp(k=k, extra=extra, c=c, gamma=gamma)
    assert auction.confirm(np.zeros(k + extra)).sum() == pytest.approx(confirmed)
    report = search(auction, Market(users=users, grid=3, gamma=gamma, coalition=c))
    assert set(report.gains.values()) == {0.0}
    assert report.burned >= 0
    assert not report.witnesses


def test_designs_that_are_not_sound_gain_what_is_known():
    assert gains(bsp(), coalition=2)["2-SCP"] == pytest.approx(4)  # made for one user
    assert gains(bsp(gamma=0.5, confirmed=2), gamma=0.5)["1-SCP"] == pytest.approx(2)  # q > γ/c
    dear = gains(bsp(gamma=1), gamma=0.5)  # pays the miner more than an over-bid costs
    assert (dear["MIC"], dear["1-SCP"]) == pytest.approx((2, 4))
    assert gains(bsp(theta=0.5, confirmed=2))["1-SCP"] == pytest.approx(2)  # cq > θ
    assert gains(second_price())["MIC"] == pytest.approx(4)
    assert gains(first_price()) == {"UIC": 3, "MIC": 0, "1-SCP": 0}


def test_a_posted_price_is_safe_while_there_is_room():
    assert set(gains(eip1559(k=4)).values()) == {0}
    crowded = gains(eip1559(k=2))
    assert crowded["UIC"] > 0 and crowded["1-SCP"] > 0
    assert gains(eip1559(k=4, tip=1))["UIC"] == pytest.approx(1)  # a tip is shaded away


# ---------------------------------------------------------------------------- the search


def by_hand(auction, market):
    """The largest gain of any coalition of the miner and one user, from the rules, one by one."""
    best = 0.0
    bids = range(market.grid + 2)
    levels = range(market.grid, -1, -1)
    for values in itertools.combinations_with_replacement(levels, market.users):
        v = np.array(values, float) * market.tick
        honest = expected(auction, v, v)
        before = utility(honest, v, v, market.gamma)
        for user in range(market.users):
            others = [u for u in range(market.users) if u != user]
            for keep in itertools.product([False, True], repeat=len(others)):
                for bid, fake in itertools.product([None, *bids], [None, *bids[1:]]):
                    kept = [v[u] for u, kept in zip(others, keep, strict=True) if kept]
                    offers = [
                        *((value, value) for value in kept),
                        *([] if bid is None else [(bid * market.tick, v[user])]),
                        *([] if fake is None else [(fake * market.tick, 0.0)]),
                    ]
                    if len(offers) > auction.size:
                        continue
                    offered, worth = np.array(offers, float).reshape(-1, 2).T
                    after = expected(auction, offered, worth)
                    each = utility(after, offered, worth, market.gamma)
                    member = each[len(kept)] if bid is not None else 0.0
                    fakes = each[-1] if fake is not None else 0.0
                    net = float(after.revenue - honest.revenue)
                    for by_miner in (False, True):
                        miner = float(market.miner(np.array(net + fakes * by_miner)))
                        gain = member - before[user] + miner + fakes * (not by_miner)
                        best = max(best, gain)
    return best


@pytest.mark.parametrize(
    "auction", [bsp(k=1, extra=1), eip1559(k=1, base_fee=0.5, tip=0.5), second_price(k=1)]
)
def test_the_table_finds_what_brute_force_finds(auction):
    market = Market(users=2, grid=2, gamma=0.75, tick=0.5, miner=Jumps(up=0.2, down=0.1))
    assert search(auction, market).gains["1-SCP"] == pytest.approx(by_hand(auction, market))


def test_a_violation_of_one_tick_is_found():
    """A sound auction whose miner gets a bonus where exactly one book of bids is included."""
    market = Market(users=4, grid=4, fakes=1)
    for book in list(itertools.combinations_with_replacement(range(4, -1, -1), 4))[::12]:
        report = search(with_bonus(bsp(), book), market)
        assert max(report.gains.values()) >= 1 - 1e-9, book


def test_every_deviation_is_looked_at_once():
    report = search(bsp(), Market(users=4, grid=4, fakes=1))
    assert report.vectors == math.comb(8, 4)
    # alone: 4 users · 7 bids · 6 fakes; miner: 2⁴ · 6; with one user: 4 · 2³ · 7 · 6 · 2 authors
    assert report.deviations == 70 * (4 * 7 * 6 + 16 * 6 + 4 * 8 * 7 * 6 * 2)


def test_equal_bids_share_and_what_offends_comes_last():
    auction = second_price(k=1)
    bids, values = np.array([3.0, 3.0, -1.0]), np.array([3.0, 3.0, 0.0])
    assert expected(auction, bids, values).confirmed.tolist() == [0.5, 0.5, 0]
    late = expected(auction, bids, np.array([3.0, 2.0, 0.0]))
    assert late.confirmed.tolist() == [1, 0, 0]


def test_drawing_finds_the_same_violations_in_a_market_too_large_to_enumerate():
    market = Market(users=9, grid=6, fakes=1, coalition=2)
    report = draw(bsp(k=3, extra=2), market, draws=50, rounds=30, seed=1)
    assert (report.gains["UIC"], report.gains["MIC"], report.gains["1-SCP"]) == (0, 0, 0)
    assert report.gains["2-SCP"] > 0.9
    assert not report.exhaustive
    jumps = replace(market, coalition=1, miner=JUMPS)
    assert draw(bsp(k=3, extra=2), jumps, draws=50, rounds=30).gains["1-SCP"] == pytest.approx(0.3)


# ---------------------------------------------------------------------------- the long run


@pytest.mark.parametrize("tick", [0.1, 1.0, 10.0])
def test_a_jump_breaks_bsp_at_every_tick(tick):
    gained = gains(bsp(), grid=3, tick=tick, miner=JUMPS)
    assert (gained["UIC"], gained["MIC"]) == (0, 0)
    assert gained["1-SCP"] == pytest.approx(0.3)


THETA = [
    (4, {"theta": 0.5}, 1, 1.0, 0.3, (0.3, 0.55, 0.599, 0.6), (0.15, 0.025, 0.0005, 0)),
    (5, {"k": 3, "extra": 1, "c": 2, "theta": 2 / 3}, 2, 1.0, 0.3, (0.89, 0.9), (0.1 / 30, 0)),
    (5, {"k": 3, "theta": 0.5, "gamma": 0.8}, 1, 0.8, 0.15, (0.49, 0.5), (0.003, 0)),
]


@pytest.mark.parametrize(("users", "design", "c", "gamma", "up", "ticks", "known"), THETA)
def test_bsp_theta_is_safe_from_the_threshold_on(users, design, c, gamma, up, ticks, known):
    auction = bsp(**design)
    theta = design["theta"]
    for tick, gain in zip(ticks, known, strict=True):
        miner = Jumps(up=up, down=1 - up)
        market = {"users": users, "grid": 2, "coalition": c, "gamma": gamma}
        gained = gains(auction, **market, tick=tick, miner=miner)
        assert (gained["UIC"], gained["MIC"]) == (0, 0)
        assert gained["1-SCP"] == pytest.approx(gain, abs=1e-9)
        law = coalition_gain(gamma=gamma, theta=theta, tick=tick, up=up)
        assert max(gained.values()) == pytest.approx(law, abs=1e-9)


def test_three_values_alone_are_safe_at_no_tick():
    pure = Jumps(up=0.3, down=0.7, one_shot=False)
    assert gains(bsp(theta=0.5), grid=4, tick=10, miner=pure)["1-SCP"] > 5


def test_range_and_revenue_of_theta():
    low, high = admissible(k=10, c=1, gamma=1, tick=1, up=0.3)
    assert (low, high) == pytest.approx((0.1, 0.7))
    assert largest_theta(gamma=1, tick=1, up=0.3) == pytest.approx(0.7)
    whole, part = bsp(k=10, extra=5), bsp(k=10, extra=5, theta=0.7)
    block = np.arange(15.0)[::-1].copy()
    assert part.revenue(block) / whole.revenue(block) == pytest.approx(0.7)
    assert admissible(k=10, c=1, gamma=1, tick=0.3334, up=0.3)
    assert admissible(k=10, c=1, gamma=1, tick=0.3333, up=0.3) is None
    assert least_tick(gamma=1, theta=0.5, up=0.3) == pytest.approx(0.6)
    assert least_tick(gamma=1, theta=1, up=0.3) == math.inf
    assert long_run(worth=1, share=0.75) == Jumps(up=0.25, down=0.75)


def test_shares_of_the_urn():
    known = {
        0.0: (0.3, 0.3, 0.3),
        0.2: (0.325182, 0.390417, 0.479500),
        -0.2: (0.274183, 0.213795, 0.149226),
    }
    for gain, shares in known.items():
        urn = Urn(gain=gain)
        assert [urn.mean_share(t) for t in (10, 100, 1000)] == pytest.approx(shares, abs=1e-6)
    far = [Urn(gain=0.2).far_share(t, points=80) for t in (1e4, 1e6, 1e9, 1e15)]
    assert far == pytest.approx([0.573, 0.735, 0.893, 0.988], abs=3e-3)
    assert [Urn(gain=g).final_share for g in (-0.2, 0, 0.2)] == [0, 0.3, 1]


def test_the_martingale_of_the_urn_never_moves():
    for gain in (-0.5, 0.0, 0.2, 3.0):
        urn = Urn(miner=2, others=5, gain=gain)
        for blocks in (1, 7, 60):
            won = np.arange(blocks + 1.0)
            mean = urn.law(blocks) @ urn.martingale(won, blocks)
            assert mean == pytest.approx(float(urn.martingale(np.zeros(1), 0)[0]), abs=1e-11)


def test_the_simulated_urn_follows_its_law():
    urn, blocks = Urn(gain=0.5), 30
    won = urn.simulate(blocks, paths=4000, seed=3)[-1]
    counts = np.bincount(won.astype(int), minlength=blocks + 1) / len(won)
    assert np.abs(counts - urn.law(blocks)).max() < 0.02


# ---------------------------------------------------------------------------- the story, the words


def test_the_story_says_who_bids_and_who_gains():
    market = Market(grid=3, miner=JUMPS)
    auction = bsp()
    (witness,) = search(auction, market).witnesses.values()
    text = story(auction, market, witness)
    assert "Values: user 1" in text
    assert "The miner's net gain is above 0: the long run adds +0.3." in text
    assert text.endswith("Together they gain +0.3.")


def printing():
    return Mechanism(
        name="printing",
        size=2,
        confirm=np.ones_like,
        price=lambda block: block,
        revenue=lambda block: 2 * block.sum(-1),
    )


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: bsp(k=1, c=2), r"k = 1 must be at least the coalition c = 2"),
        (lambda: bsp(k=4, c=1, theta=0.1), r"theta must be in \[c/k, gamma\] = \[0.25, 1\]"),
        (lambda: bsp(gamma=0.8, theta=0.9), r"theta must be in .* \[0.5, 0.8\]"),
        (lambda: bsp(extra=4), "burn a negative amount"),
        (lambda: bsp(gamma=0), r"gamma must be in \(0, 1\]"),
        (lambda: Market(tick=0), "tick must be finite and > 0"),
        (lambda: Market(users=2, coalition=3), "coalition must be from 0 to the 2 users"),
        (lambda: eip1559(base_fee=-1), "base_fee and tip must be finite and >= 0"),
        (lambda: search(printing()), "printing burns a negative amount"),
        (lambda: draw(printing(), draws=5, rounds=3), "printing burns a negative amount"),
        (lambda: search(replace(printing(), confirm=lambda b: b)), "from 0 to 1"),
        (lambda: search(replace(printing(), revenue=lambda b: b)), r"revenue must map \[3, 2\]"),
        (lambda: search(bsp(), Market(users=12, grid=12)), "too many"),
        (lambda: Jumps(up=-1), "jumps must be finite and >= 0"),
        (lambda: long_run(worth=1, share=1), "share must be between 0 and 1"),
        (lambda: Urn(miner=-1), "stakes must be > 0"),
        (lambda: Urn(gain=-1), "must add to the winner's stake"),
        (lambda: admissible(k=1, c=1, gamma=1, tick=0, up=0.3), "tick must be > 0"),
    ],
)
def test_what_is_wrong_is_one_line(wrong, says):
    with pytest.raises(UserError, match=says) as caught:
        wrong()
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 300
