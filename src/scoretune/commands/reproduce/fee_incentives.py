"""Fee mechanisms under proof of stake: every promise searched, the long run, and what mends it.

After arXiv 2308.13881, of which only the abstract could be read: the long-run utility and BSP(θ)
are our reconstruction.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from scoretune.commands.reproduce.base import Cell, Claim, Numbers, Page
from scoretune.commands.reproduce.drawing import COLOURS, subplots
from scoretune.control.problems.fee_auction import (
    Jumps,
    Market,
    Mechanism,
    Urn,
    admissible,
    bsp,
    coalition_gain,
    eip1559,
    first_price,
    least_tick,
    search,
    second_price,
)

SOUND: list[tuple[int, dict[str, Any]]] = [
    (4, {"k": 2, "extra": 2, "c": 1, "gamma": 1.0}),
    (4, {"k": 2, "extra": 1, "c": 2, "gamma": 1.0}),
    (4, {"k": 2, "extra": 2, "c": 1, "gamma": 0.5}),
    (5, {"k": 3, "extra": 1, "c": 2, "gamma": 1.0}),
]
"""Users, and the settings of `bsp`."""
THRESHOLDS: list[tuple[int, float, dict[str, Any]]] = [
    (4, 0.3, {"k": 2, "extra": 2, "c": 1, "gamma": 1.0, "theta": 0.5}),
    (5, 0.3, {"k": 3, "extra": 1, "c": 2, "gamma": 1.0, "theta": 2 / 3}),
    (5, 0.15, {"k": 3, "extra": 2, "c": 1, "gamma": 0.8, "theta": 0.5}),
]
"""Users, the upward jump, and the settings of `bsp`."""
RATIOS = (0.5, 0.9, 0.99, 1.0, 1.2)
"""Ticks, in units of the threshold."""
GAINS = (-0.2, -0.05, 0.0, 0.05, 0.2)
HORIZONS = (10, 100, 1000, 10_000)
FAR = (1e6, 1e9, 1e12, 1e15)


def cells(seeds: int, quick: bool) -> list[Cell]:
    """Searches, exact urns, and simulated ones for each seed."""
    grid, blocks = (2, 100) if quick else (4, 10_000)
    paths = 200 if quick else 2000
    return [
        Cell("one-shot", one_shot, {"grid": grid}),
        Cell("broken", broken, {"grid": grid}),
        Cell("thresholds", thresholds, {"grid": min(grid, 3)}),
        Cell("planted", planted, {"every": 20 if quick else 1}),
        Cell("urn", urn, {"blocks": blocks}),
        *(Cell(f"drawn-{s}", drawn_urns, {"seed": s, "paths": paths}) for s in range(seeds)),
    ]


def one_shot(grid: int) -> Numbers:
    """Sound designs: their gains, the least burned, and seconds of the search."""
    rows = {}
    for users, design in SOUND:
        market = Market(users=users, grid=grid, gamma=design["gamma"], coalition=design["c"])
        report = search(bsp(**design), market)
        rows[report.mechanism.name] = {
            "users": users,
            "gains": report.gains,
            "burned": report.burned,
            "deviations": report.deviations,
            "seconds": report.seconds,
        }
    return rows


def broken(grid: int) -> Numbers:
    """Designs that are known to fail, and a jump, on γ = 1 unless said."""
    jump = Jumps(up=0.3, down=0.7)
    cases = {
        "BSP(1), made for one user, two join": (bsp(), Market(grid=grid, coalition=2)),
        "BSP(½) with q > γ/c": (bsp(gamma=0.5, confirmed=2), Market(grid=grid, gamma=0.5)),
        "BSP(1) where γ = ½": (bsp(), Market(grid=grid, gamma=0.5)),
        "second price": (second_price(), Market(grid=grid)),
        "first price": (first_price(), Market(grid=grid)),
        "EIP-1559-style, room for all": (eip1559(k=4), Market(grid=grid)),
        "EIP-1559-style, crowded": (eip1559(k=2), Market(grid=grid)),
    } | {
        f"BSP(1), jump 0.3, tick {tick:g}": (bsp(), Market(grid=grid, tick=tick, miner=jump))
        for tick in (0.1, 1, 10)
    }
    return {name: search(mechanism, market).gains for name, (mechanism, market) in cases.items()}


def thresholds(grid: int) -> Numbers:
    """Gains around the threshold tick, searched and by formula."""
    rows = {}
    for users, up, design in THRESHOLDS:
        gamma, theta, c = design["gamma"], design["theta"], design["c"]
        least = least_tick(gamma=gamma, theta=theta, up=up)
        jumps = Jumps(up=up, down=1 - up)
        market = Market(users=users, grid=grid, gamma=gamma, coalition=c, miner=jumps)
        measured, claimed = [], []
        for tick in (ratio * least for ratio in RATIOS):
            report = search(bsp(**design), replace(market, tick=tick))
            measured.append(max(report.gains.values()))
            claimed.append(coalition_gain(gamma=gamma, theta=theta, tick=tick, up=up))
        name = f"θ = {theta:.3g}, γ = {gamma:g}, J⁺ = {up:g}, c = {c}"
        rows[name] = {"least": least, "measured": measured, "claimed": claimed}
    return rows


def planted(every: int) -> Numbers:
    """A bonus of one tick for one book of bids, planted in turn: how often the search finds it."""
    start = time.perf_counter()
    books = list(itertools.combinations_with_replacement(range(4, -1, -1), 4))[::every]
    gains = [max(search(with_bonus(bsp(), book), Market()).gains.values()) for book in books]
    return {
        "found": sum(gain >= 1 - 1e-9 for gain in gains),
        "tried": len(books),
        "seconds": time.perf_counter() - start,
    }


def with_bonus(mechanism: Mechanism, book: Sequence[int]) -> Mechanism:
    """The mechanism whose miner gets 1 more where exactly these bids are included; all who are
    confirmed pay 1 more there, so that nothing is burned below 0."""

    def bonus(block: Any) -> Any:
        return 1.0 * (np.asarray(block) == book).all(-1)

    return replace(
        mechanism,
        revenue=lambda block: mechanism.revenue(block) + bonus(block),
        price=lambda block: mechanism.price(block) + bonus(block)[..., None],
    )


def urn(blocks: int) -> Numbers:
    """Expected shares at all horizons, and the slope of ln(1 − E π_T) against ln T."""
    shares = {}
    for gain in GAINS:
        stakes = Urn(gain=gain)
        near = [stakes.mean_share(t) for t in HORIZONS if t <= blocks]
        shares[f"{gain:g}"] = {"near": near, "far": [stakes.far_share(t) for t in FAR]}
    gaining = Urn(gain=0.2)
    left = [math.log(1 - gaining.far_share(t)) for t in (1e4, *FAR)]
    wide = [math.log(b / a) for a, b in itertools.pairwise((1e4, *FAR))]
    slopes = [(b - a) / w for (a, b), w in zip(itertools.pairwise(left), wide, strict=True)]
    return {"shares": shares, "slopes": slopes, "limit": -0.2 / 1.2}


def drawn_urns(seed: int, paths: int) -> Numbers:
    """The digamma martingale and the share after 1000 drawn blocks."""
    gaining = Urn(gain=0.2)
    won = gaining.simulate(1000, paths=paths, seed=seed)[-1]
    values = gaining.martingale(won, 1000)
    return {
        "mean": float(values.mean()),
        "error": float(values.std() / math.sqrt(paths)),
        "first": float(gaining.martingale(np.zeros(1), 0)[0]),
        "share": float(gaining.shares(won, 1000).mean()),
    }


# ------------------------------------------------------------------ the page


def present(results: dict[str, Numbers], page: Page) -> Numbers:
    """Claims with verdicts, tables, and three figures."""
    page.text(
        "Claims of the abstract of arXiv 2308.13881. Its text could not be read: the long-run "
        "utility and BSP(θ) are our reconstruction, so what holds is a theorem of ours that agrees "
        "with the abstract. Searches look at every deviation of a grid."
    )
    claims = page.verdicts(_claims(results))
    sound, edge, long_run = results["one-shot"], results["thresholds"], results["urn"]
    _tables(sound, results["broken"], edge, page)
    page.figure("threshold", _draw_thresholds(edge), "gain of the miner with users by tick")
    ends = _last_shares(long_run)
    slopes = ", ".join(f"{slope:.3f}" for slope in long_run["slopes"])
    page.text(
        "The expected share of a miner with 3 of 10 stakes, whose own blocks bring Δ more than the "
        "others' 1: exact up to 10⁴ blocks, by Yule processes beyond. The jump is of the limit, "
        f"and slow: with Δ = ±0.05 the share is {ends['0.05']:.3f} and {ends['-0.05']:.3f} after "
        f"10¹⁵ blocks. At Δ = 0.2 the slope of ln(1 − E π_T) is {slopes} in four stretches from "
        f"10⁴ to 10¹⁵, on its way to {long_run['limit']:.4f}."
    )
    page.figure("horizon", _draw_horizon(long_run), "expected share by horizon")
    page.figure("region", _draw_region(), "admissible θ by tick")
    seconds = next(iter(sound.values()))["seconds"]
    return dict(results) | {"claims": claims, "seconds_of_4_4_1": seconds}


def _claims(results: dict[str, Numbers]) -> list[Claim]:
    worst = max(max(row["gains"].values()) for row in results["one-shot"].values())
    jumps = [row["1-SCP"] for name, row in results["broken"].items() if "jump" in name]
    off = max(
        abs(m - c)
        for row in results["thresholds"].values()
        for m, c in zip(row["measured"], row["claimed"], strict=True)
    )
    runs = [r for name, r in results.items() if name.startswith("drawn")]
    away = max(abs(r["mean"] - r["first"]) / r["error"] for r in runs)
    ends, bonus = _last_shares(results["urn"]), results["planted"]
    return [
        Claim(
            "BSP(γ) is UIC, MIC and c-SCP in one block",
            "search",
            f"largest gain {worst:g}",
            worst == 0,
        ),
        Claim(
            "the long-run share is a martingale's limit",
            "drawn urns against ψ(W/a)/a − ψ(B/b)/b",
            f"{away:.1f} standard errors",
            away < 4,
        ),
        Claim(
            "an arbitrarily small gain or loss makes the utility jump",
            "E π after 10¹⁵ blocks, Δ = ±0.2, π₀ = 0.3",
            f"{ends['0.2']:.4f}, {ends['-0.2']:.4f}",
            ends["0.2"] > 0.98 and ends["-0.2"] < 0.02,
        ),
        Claim(
            "so BSP(γ) fails c-SCP at every tick",
            "search, δ = 0.1, 1, 10",
            ", ".join(f"{gain:.3f}" for gain in jumps),
            all(abs(gain - 0.3) < 1e-9 for gain in jumps),
        ),
        Claim(
            "BSP(θ) is safe for θ in a range and a proper tick",
            "search around δ* = J⁺/(γ − θ)",
            f"formula of the gain off by {off:.1g}",
            off < 1e-9,
        ),
        Claim(
            "a violation of one tick is found",
            "planted in every book of four bids",
            f"{bonus['found']} of {bonus['tried']}",
            bonus["found"] == bonus["tried"],
        ),
    ]


def _last_shares(long_run: Numbers) -> dict[str, float]:
    """E π_T at the longest horizon, by gain."""
    return {gain: row["far"][-1] for gain, row in long_run["shares"].items()}


def _tables(sound: Numbers, broken: Numbers, edge: Numbers, page: Page) -> None:
    page.text("## One block")
    page.table(
        ["design", "users", "largest gain", "least burned", "deviations", "seconds"],
        [
            [
                name,
                row["users"],
                f"{max(row['gains'].values()):g}",
                f"{row['burned']:g}",
                f"{row['deviations']:,}",
                f"{row['seconds']:.2f}",
            ]
            for name, row in sound.items()
        ],
    )
    page.text("## What fails, and by how much")
    kinds = ("UIC", "MIC", "1-SCP", "2-SCP")
    page.table(
        ["mechanism", *kinds],
        [
            [name, *(f"{row[k]:.4g}" if k in row else "" for k in kinds)]
            for name, row in broken.items()
        ],
    )
    page.text("## BSP(θ) around its least tick: searched gain, formula")
    page.table(
        ["design", "δ*", *(f"{ratio:g} δ*" for ratio in RATIOS)],
        [
            [
                name,
                f"{row['least']:.4g}",
                *(
                    f"{m:.4f}, {c:.4f}"
                    for m, c in zip(row["measured"], row["claimed"], strict=True)
                ),
            ]
            for name, row in edge.items()
        ],
    )


def _draw_thresholds(edge: Numbers) -> Any:
    figure, axes = subplots(size=(6.4, 3.6))
    for (name, row), colour in zip(edge.items(), COLOURS, strict=False):
        ticks = [ratio * row["least"] for ratio in RATIOS]
        axes.plot(ticks, row["measured"], "o", color=colour, label=name)
        axes.plot(ticks, row["claimed"], color=colour)
    axes.set(xlabel="tick δ", ylabel="largest gain (lines: formula)")
    axes.legend(fontsize="small", frameon=False)
    return figure


def _draw_horizon(long_run: Numbers) -> Any:
    figure, axes = subplots(size=(6.4, 3.6))
    for (gain, row), colour in zip(long_run["shares"].items(), COLOURS, strict=False):
        x = [*HORIZONS[: len(row["near"])], *FAR]
        axes.plot(
            x, row["near"] + row["far"], "o-", color=colour, label=f"Δ = {gain}", markersize=3
        )
    axes.set(xscale="log", xlabel="blocks T", ylabel="E π_T", ylim=(0, 1))
    axes.legend(fontsize="small", frameon=False)
    return figure


def _draw_region() -> Any:
    figure, axes = subplots(size=(6.4, 3.6))
    ticks = np.linspace(0.02, 3, 300)
    for up, colour in zip((0.1, 0.3, 0.6), COLOURS, strict=False):
        ranges = [admissible(k=10, c=1, gamma=1, tick=t, up=up) for t in ticks]
        low = [r[0] if r else np.nan for r in ranges]
        high = [r[1] if r else np.nan for r in ranges]
        axes.fill_between(ticks, low, high, color=colour, alpha=0.25, label=f"J⁺ = {up:g}")
        axes.plot(ticks, high, color=colour)
    axes.set(xlabel="tick δ", ylabel="θ (γ = 1, k = 10, c = 1)", ylim=(0, 1))
    axes.legend(fontsize="small", frameon=False, loc="lower right")
    return figure
