"""The Bellman solvers on ever finer lattices: errors, orders, residuals, and strategies played."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from scoretune.commands.reproduce.base import Cell, Numbers, Page, claim_row
from scoretune.commands.reproduce.drawing import subplots
from scoretune.commands.reproduce.staking_problems import (
    CASES,
    CONCAVE,
    CONVEX,
    NOTHING,
    volatile,
)
from scoretune.control.problems.staking import Price, Staking, solve, solve_with_price
from scoretune.control.problems.staking.bellman_price import PriceSurface

STILL = (
    "P = 0.8",
    "P_β = 200",
    "P = 2.8e^{−0.3t}",
    "concave h, P = 1",
    "concave ℓ, P_β = 140",
    "share meets 0, P = 3",
)
"""Of CASES."""
WATCHED: dict[str, Staking] = {
    "linear, σ = 0.2": volatile(0.2),
    "linear, σ = 0.4": volatile(0.4),
    "linear, σ = 0.8": volatile(0.8),
    "concave h, σ = 0.4": Staking(
        price=Price(start=1, volatility=0.4), running=NOTHING, terminal=CONCAVE
    ),
    "convex h, σ = 0.4": Staking(
        price=Price(start=1, volatility=0.4), running=NOTHING, terminal=CONVEX
    ),
    "share meets 0, σ = 0.4": Staking(stake=2, price=Price(start=3, volatility=0.4)),
}
SIZES, WATCHED_SIZES = (25, 50, 100, 200, 400), (20, 40, 80, 160)
FIGURE = "concave h, σ = 0.4"


def cells(seeds: int, quick: bool) -> list[Cell]:
    """Every problem on lattices of several sizes; nothing but the played strategies is random."""
    sizes = list(SIZES[:3] if quick else SIZES)
    watched = [6, 12, 24] if quick else list(WATCHED_SIZES)
    return [
        *(Cell(f"still-{n}", still, {"name": p, "sizes": sizes}) for n, p in enumerate(STILL)),
        *(
            Cell(f"watched-{n}", watch, {"name": p, "sizes": watched, "seeds": seeds})
            for n, p in enumerate(WATCHED)
        ),
    ]


def still(name: str, sizes: list[int]) -> Numbers:
    """Errors against the closed form, and residuals, where the price does not move at random."""
    problem = CASES[name]
    best = problem.optimum().value
    surfaces = [solve(problem, steps=n) for n in sizes]
    return {
        "name": name,
        "best": best,
        "errors": [surface.value - best for surface in surfaces],
        "residuals": [surface.residual() for surface in surfaces],
    }


def watch(name: str, sizes: list[int], seeds: int) -> Numbers:
    """Values and residuals where the price is watched; the finest strategy, played."""
    problem = WATCHED[name]
    surfaces = [solve_with_price(problem, steps=n) for n in sizes]
    values = [surface.value for surface in surfaces]
    linear = problem.running.linear and problem.terminal.linear and problem.interior
    played = np.concatenate([surfaces[-1].play(paths=4000, seed=s) for s in range(seeds)])
    return {
        "name": name,
        "sizes": sizes,
        "values": values,
        "best": problem.optimum().value if linear else None,
        "residuals": [surface.residual for surface in surfaces],
        "played": [float(played.mean()), float(played.std() / math.sqrt(len(played)))],
    }


def fitted_order(sizes: Sequence[int], errors: Sequence[float]) -> float | None:
    """p of |error| ≈ C·steps^{−p} by least squares; None where an error is rounding."""
    if min(abs(e) for e in errors) < 1e-9:
        return None
    return -float(np.polyfit(np.log(sizes), np.log(np.abs(errors)), 1)[0])


def order_of(values: Sequence[float]) -> float | None:
    """p of three values on lattices of n, 2n and 4n steps: log₂ of the ratio of their differences.

    None where the differences have different signs, which is no convergence of one order.
    """
    first, second = values[-2] - values[-3], values[-1] - values[-2]
    return math.log2(first / second) if first * second > 0 else None


# ------------------------------------------------------------------ the page


def present(results: dict[str, Numbers], page: Page) -> Numbers:
    """What holds, then the tables, then a surface."""
    runs = [r for name, r in results.items() if name.startswith("still")]
    watched = [r for name, r in results.items() if name.startswith("watched")]
    rows = _claims(runs, watched)
    page.text(
        "The problems of the part `trading`, on lattices of more and more steps. The order is p of "
        "error ≈ C·steps^{−p}, fitted to all sizes; a residual is the equation's, by central "
        "differences, relative to the mean of |w_t|."
    )
    page.claims(rows)
    sizes = SIZES[: len(runs[0]["errors"])]
    page.text("## A price that is known: share alone")
    page.table(
        ["problem", *(f"error, {n} steps" for n in sizes), "order", "residual", "its order"],
        [
            [
                r["name"],
                *(f"{e:+.1e}" for e in r["errors"]),
                _shown(fitted_order(sizes, r["errors"])),
                f"{r['residuals'][0]:.0e} → {r['residuals'][-1]:.0e}",
                _shown(fitted_order(sizes, r["residuals"])),
            ]
            for r in runs
        ],
    )
    page.text(
        "Errors of bang-bang rules fall unevenly, because a switch falls on a step or between two."
    )
    steps = watched[0]["sizes"]
    page.text(
        "## A volatile price: share and price\n\nTwice as many prices as steps. Without a "
        "closed form the limit is 2·(finest) − (next), as for a method of first order, and the "
        "order that of three values. `played` is what the finest strategy earns on drawn prices: "
        "a lower bound."
    )
    page.table(
        [
            "problem",
            *(f"{n} steps" for n in steps),
            "exact or limit",
            "order",
            "played",
            "residual",
        ],
        [_watched_row(r) for r in watched],
    )
    page.figure("watched", _draw(), "what to do by share and price, at three times")
    return dict(results) | {"claims": rows}


def _watched_row(r: Numbers) -> list[str]:
    limit = _limit(r)
    errors = [v - limit for v in r["values"]]
    order = fitted_order(r["sizes"], errors) if r["best"] is not None else order_of(r["values"])
    mean, error = r["played"]
    return [
        r["name"],
        *(f"{v:.4f}" for v in r["values"]),
        f"{limit:.4f}" + (" (T6)" if r["best"] is not None else ""),
        _shown(order),
        f"{mean:.3f} ± {error:.3f}",
        f"{r['residuals'][0]:.0e} → {r['residuals'][-1]:.0e}",
    ]


def _claims(runs: Sequence[Numbers], watched: Sequence[Numbers]) -> list[Numbers]:
    worst = max(abs(r["errors"][-1]) for r in runs)
    exact = [r for r in watched if r["best"] is not None]
    off = max(abs(r["values"][-1] / r["best"] - 1) for r in exact)
    sizes = SIZES[: len(runs[0]["errors"])]
    orders = [o for r in runs if (o := fitted_order(sizes, r["errors"])) is not None]
    above = max((r["played"][0] - _limit(r)) / r["played"][1] for r in watched)
    falls = all(r["residuals"][-1] < r["residuals"][0] / 4 for r in [*runs, *watched])
    return [
        claim_row(
            "share alone: the finest error", "below 1e-3 (P-1)", f"{worst:.1e}", worst < 1e-3
        ),
        claim_row(
            "share alone: the order", "1 or more", f"{min(orders):.2f} or more", min(orders) >= 1
        ),
        claim_row(
            "share and price against the strip of straddles (T6)",
            "within 0.5 %",
            f"{100 * off:.2f} % at {exact[0]['sizes'][-1]} steps",
            off < 5e-3,
        ),
        claim_row(
            "no strategy that is played beats the limit",
            "at most 3 standard errors above",
            f"{above:+.1f}",
            above <= 3,
        ),
        claim_row("every residual falls", "to a quarter or less", "yes" if falls else "no", falls),
    ]


def _limit(r: Numbers) -> float:
    values = r["values"]
    return float(2 * values[-1] - values[-2] if r["best"] is None else r["best"])


def _shown(order: float | None) -> str:
    return "" if order is None else f"{order:.2f}"


def _draw() -> Any:
    """Trades by share and price, where the share can be."""
    surface: PriceSurface = solve_with_price(WATCHED[FIGURE], steps=60)
    figure, panels = subplots(1, 3, size=(9.6, 3.4), grid="none", sharex=True, sharey=True)
    for axes, k in zip(panels, (12, 30, 54), strict=True):
        prices, at = surface.prices(k), surface.reached(k)
        inside = (prices > 0.3) & (prices < 3)
        trades = surface.rates[k][at][:, inside].T
        colours = {"cmap": "RdBu", "vmin": -1.5, "vmax": 1.5}
        mesh = axes.pcolormesh(surface.shares[at], prices[inside], trades, **colours)
        mesh.set_rasterized(True)
        axes.set(title=f"year {surface.times[k]:.1f}", xlabel="share", yscale="log")
        axes.set_yticks([0.3, 0.5, 1, 2, 3], ["0.3", "0.5", "1", "2", "3"])
        axes.minorticks_off()
    panels[0].set_ylabel("price")
    figure.suptitle("red: sell, white: hold, blue: buy; blank: the share cannot come there")
    return figure
