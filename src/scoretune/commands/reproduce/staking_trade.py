"""Trading under proof of stake: closed forms against the Bellman equation, shapes, limits, data.

After arXiv 2207.12581, of which only the abstract could be read: objective and constants are our
reconstruction, with which every claim of the abstract is checked.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from scoretune.commands.reproduce.base import Cell, Claim, Numbers, Page
from scoretune.commands.reproduce.drawing import COLOURS, subplots
from scoretune.commands.reproduce.staking_history import (
    check_folder,
    history,
    present_history,
)
from scoretune.commands.reproduce.staking_problems import CASES, volatile
from scoretune.control.problems.staking import (
    PowerSupply,
    Price,
    RiskControl,
    StakeParity,
    Staking,
    Utility,
    simulate,
    solve,
    worth,
)

STEPS = (50, 100, 200, 400)
VOLATILITIES = (0.2, 0.4, 0.8)


def cells(seeds: int, quick: bool, data: str | None = None) -> list[Cell]:
    """Closed forms and lattices, drawn shapes and prices, and data if a folder has them."""
    steps = list(STEPS[:2] if quick else STEPS)
    folder = str(check_folder(data)) if data else ""
    return [
        *(Cell(f"case-{n}", case, {"name": name, "steps": steps}) for n, name in enumerate(CASES)),
        Cell("shapes", shapes, {"count": 100 if quick else 2000}),
        Cell("quadratic", quadratic, {"count": 50 if quick else 1000}),
        *(
            Cell(f"drawn-{s}", drawn_prices, {"seed": s, "paths": 500 if quick else 20_000})
            for s in range(seeds)
        ),
        *([Cell("data", history, {"folder": folder})] if data else []),
    ]


def case(name: str, steps: list[int]) -> Numbers:
    """The closed form, the lattice at several sizes, and its residuals."""
    problem = CASES[name]
    best = problem.optimum()
    surfaces = [solve(problem, steps=n) for n in steps]
    return {
        "name": name,
        "value": best.value,
        "strategy": best.strategy,
        "lattice": [s.value for s in surfaces],
        "residual": [s.residual() for s in surfaces],
    }


def shapes(count: int) -> Numbers:
    """How often the sign of A − P_β changes otherwise than the bracket says, on drawn problems."""
    random, t = np.random.default_rng(0), np.linspace(0, 5, 401)
    tally = {"rising": 0, "falling": 0, "violations": 0}
    for _ in range(count):
        problem = Staking(
            supply=PowerSupply(exponent=random.uniform(0.5, 3)),
            price=Price(start=random.uniform(0.2, 4), growth=random.uniform(-0.4, 0.4)),
            discount=random.uniform(0.02, 0.3),
            running=Utility(weight=random.uniform(0, 0.5)),
            terminal=Utility(weight=random.uniform(0.2, 3)),
        )
        bracket = problem.bracket(t)
        signs = np.sign(worth(problem, t) - problem.valuation(t))
        changes = np.diff(signs)[np.diff(signs) != 0]
        for kind, holds, way in (("rising", bracket >= 0, -1), ("falling", bracket <= 0, 1)):
            if holds.all():
                tally[kind] += 1
                tally["violations"] += bool(len(changes) > 1 or (changes * way < 0).any())
    return tally


def quadratic(count: int) -> Numbers:
    """Residuals of risk control on drawn parameters, and of parity's equivalence."""
    random, worst, wrong = np.random.default_rng(1), 0.0, 0
    for _ in range(count):
        beta = random.uniform(0.05, 0.5)
        growth, friction = random.uniform(0, 0.45 * beta), random.uniform(0.3, 3)
        problem = RiskControl(
            discount=beta,
            growth=growth,
            friction=friction,
            risk=random.uniform(0, 2),
            reversion=random.uniform(0.1, 3),
        )
        x, p = random.uniform(-5, 5, 2)
        worst = max(worst, abs(problem.residual(x, p)) / (1 + abs(problem.value(x, p))))
        parity = StakeParity(
            discount=beta,
            growth=random.uniform(0, 0.9 * beta),
            friction=friction,
            weight=10 ** random.uniform(-5, 1),
        )
        wrong += parity.reverts != (parity.growth < parity.gain)
    return {"residual": worst, "wrong": wrong, "drawn": count, "gain": StakeParity().gain}


def drawn_prices(seed: int, paths: int) -> Numbers:
    """Means over drawn prices at three volatilities, and their standard errors."""
    means = {}
    for sigma in VOLATILITIES:
        values = simulate(volatile(sigma), paths=paths, steps=250, seed=seed)
        means[f"{sigma:g}"] = [float(values.mean()), float(values.std() / math.sqrt(paths))]
    return means


# ------------------------------------------------------------------ the page


def present(results: dict[str, Numbers], page: Page) -> Numbers:
    """Claims with verdicts, closed forms beside lattices, figures of strategies and a surface."""
    page.text(
        "Claims of the abstract of arXiv 2207.12581, on a supply of (10 + t)² stakes of which 20 "
        "are one's own, 2 a year at most, β = 0.1, five years, ℓ = 0.2x and h = x unless said. The "
        "paper's text could not be read: objective and constants are our reconstruction."
    )
    cases = [r for name, r in results.items() if name.startswith("case")]
    runs = [r for name, r in results.items() if name.startswith("drawn")]
    shape, quad = results["shapes"], results["quadratic"]
    prices = {name: _price(runs, name) for name in map("{:g}".format, VOLATILITIES)}
    claims = page.verdicts(_claims(cases, shape, quad, prices))
    page.text("## Closed forms and the Bellman equation")
    sizes = STEPS[: len(cases[0]["lattice"])]
    page.table(
        ["problem", "strategy", "value", *(f"error, {n} steps" for n in sizes), "residual"],
        [
            [
                r["name"],
                r["strategy"],
                f"{r['value']:.6f}",
                *(f"{value - r['value']:+.1e}" for value in r["lattice"]),
                " → ".join(f"{x:.0e}" for x in (r["residual"][0], r["residual"][-1])),
            ]
            for r in cases
        ],
    )
    page.text("## Prices that move, watched")
    page.table(
        ["σ", "formula", "drawn", "standard errors apart"],
        [
            [
                name,
                f"{row['claimed']:.5f}",
                f"{row['mean']:.4f} ± {row['error']:.4f}",
                f"{row['apart']:+.2f}",
            ]
            for name, row in prices.items()
        ],
    )
    page.figure("shares", _draw_shares(), "share of all stakes under the best strategies")
    page.figure("surface", _draw_surface(), "where to buy and where to sell")
    if "data" in results:
        present_history(results["data"], page)
    return dict(results) | {"claims": claims, "prices": prices}


def _claims(cases: list[Numbers], shape: Numbers, quad: Numbers, prices: Numbers) -> list[Claim]:
    off = max(abs(r["lattice"][-1] - r["value"]) for r in cases)
    linear = [r["strategy"] for r in cases[:6]]
    full = not any("hold" in s or "%" in s for s in linear)
    count = shape["rising"] + shape["falling"]
    values = [row["claimed"] for row in prices.values()]
    return [
        Claim(
            "dynamic programming solves it; closed forms for linear and convex utilities",
            "the Bellman equation on a lattice",
            f"largest difference {off:.1g}",
            off < 1e-2,
        ),
        Claim(
            "linear or convex: full capacity throughout",
            "six optima",
            "no leg holds" if full else "a leg holds",
            full,
        ),
        Claim(
            "a (sub-)martingale valuation: buy, sell, or buy then sell",
            f"{count} of the drawn problems, both signs",
            f"{shape['violations']} violations",
            shape["violations"] == 0,
        ),
        Claim(
            "the value of watching a price grows with its volatility",
            "formula and drawn prices",
            " < ".join(f"{v:.3f}" for v in values),
            values == sorted(values) and all(abs(r["apart"]) < 4 for r in prices.values()),
        ),
        Claim(
            "risk control has a solution in closed form",
            f"the equation's residual, {quad['drawn']} draws",
            f"{quad['residual']:.1g}",
            quad["residual"] < 1e-10,
        ),
        Claim(
            "stake parity: mean-reverting",
            "q/η > λ(β − λ) against the closed loop",
            f"{quad['wrong']} of {quad['drawn']} differ; gain {quad['gain']:.6f}",
            quad["wrong"] == 0,
        ),
    ]


def _price(runs: list[Numbers], name: str) -> Numbers:
    """Means over seeds and the formula."""
    mean = sum(r[name][0] for r in runs) / len(runs)
    error = math.sqrt(sum(r[name][1] ** 2 for r in runs)) / len(runs)
    claimed = volatile(float(name)).optimum().value
    return {"mean": mean, "error": error, "claimed": claimed, "apart": (mean - claimed) / error}


def _draw_shares() -> Any:
    figure, axes = subplots(size=(6.6, 3.8))
    t = np.linspace(0, 5, 200)
    names = [name for name in CASES if not name.startswith("share meets")][:6]
    for name, colour in zip(names, COLOURS, strict=False):
        best = CASES[name].optimum()
        style = (0, (2, 2)) if name == names[0] else "-"  # under another line
        shares = CASES[name].shares(best.legs, t)
        order = 3 if name == names[0] else 2
        axes.plot(t, shares, linestyle=style, color=colour, label=name, zorder=order)
    axes.set(xlabel="years", ylabel="share of all stakes")
    axes.legend(fontsize="small", frameon=False)
    return figure


def _draw_surface() -> Any:
    """The best trade by time and share, in a problem in which it depends on both."""
    problem = replace(CASES["concave h, P = 1"], cap=8.0, stake=30.0)
    surface = solve(problem, steps=120)
    figure, axes = subplots(size=(6.6, 3.8), grid="none")
    trades, colours = surface.rates[:-1].T, {"cmap": "RdBu", "vmin": -1.5, "vmax": 1.5}
    mesh = axes.pcolormesh(surface.times[:-1], surface.shares, trades, **colours)
    mesh.set_rasterized(True)
    best = problem.optimum()
    axes.plot(surface.times, problem.shares(best.legs, surface.times), color="black")
    axes.set(xlabel="years", ylabel="share", title="red: sell, white: hold, blue: buy")
    return figure
