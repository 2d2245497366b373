"""Stress tests from generated factors: the finance part of arXiv 2509.03898's code, with the sign
of the reverse process as it must be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from scoretune.commands.reproduce.base import Cell, Numbers, Page, claim_row, interval, shown
from scoretune.commands.reproduce.compressed_diffusion import drawn, trained
from scoretune.commands.reproduce.compressed_factors import (
    COMPONENTS,
    MACRO,
    RETURNS,
    Factors,
    factor_windows,
    macro_factors,
    minimum_variance,
    risk_contributions,
    risk_parity,
    rolling,
    six_months,
    statistics,
)
from scoretune.commands.reproduce.drawing import COLOURS, subplots
from scoretune.core.errors import UserError
from scoretune.diffusion import estimates

UPDATES, SAMPLES = 600, 300
SHARES = (0.553, 0.118, 0.116, 0.061, 0.038, 0.020)
MINIMUM = {"COST": 17.8, "KO": 28.0, "MCD": 25.3, "UNH": 11.6, "GOOGL": 9.5, "AMZN": 4.7}
MINIMUM |= {"CVX": 1.6, "JPM": 1.5, "AAPL": 0.0, "NVDA": 0.0}
"""Per cent."""
PARITY = {"AAPL": 0.0790, "AMZN": 0.0837, "COST": 0.1156, "CVX": 0.0905, "GOOGL": 0.0923}
PARITY |= {"JPM": 0.0823, "KO": 0.1467, "MCD": 0.1427, "NVDA": 0.0542, "UNH": 0.1130}
EQUAL = {"mean": 0.094319, "q1": -0.126466, "q5": -0.066397, "q10": -0.026704, "q25": 0.041709}
BALANCED = {"mean": 0.085474, "std": 0.074317, "q1": -0.113347, "q5": -0.034748}
"""Six months of equal weights, and of risk parity: what the authors' notebook prints."""


def cells(seeds: int, quick: bool, data: str | None = None) -> list[Cell]:
    """What is known exactly, then learned laws of synthetic and of real factors, by seed."""
    if data is None:
        folder = None
    else:
        folder = str(Path(data) / "series_finance")
        for file in (RETURNS, MACRO):
            if not (Path(folder) / file).is_file():
                raise UserError(f"--data {data} holds no series_finance/{file}: put it there")
    updates = 5 if quick else UPDATES
    made = [Cell("facts", facts, {"folder": folder})] if folder else []
    for seed in range(seeds):
        plan = {"seed": seed, "updates": updates, "samples": 40 if quick else SAMPLES}
        made.append(Cell(f"synthetic-{seed}", generated, {"folder": None, **plan}))
        if folder:
            made.append(Cell(f"real-{seed}", generated, {"folder": folder, **plan}))
    return made


def facts(folder: str) -> Numbers:
    """Regression, portfolios and rolling statistics of the files."""
    factors = macro_factors(Path(folder))
    coefficients, r_squared = factors.fit
    covariance = np.cov(factors.returns.T)
    parity = risk_parity(covariance)
    weights = minimum_variance(covariance)
    equal = rolling(factors.returns.mean(1))
    return {
        "shares": factors.shares.tolist(),
        "constant": float(coefficients[0]),
        "r_squared": r_squared,
        "minimum": dict(zip(factors.names, (100 * weights).tolist(), strict=True)),
        "parity": dict(zip(factors.names, parity.tolist(), strict=True)),
        "contribution": risk_contributions(parity, covariance).tolist(),
        "equal": statistics(equal) | {"median": float(np.median(equal))},
        "balanced": statistics(rolling(factors.returns @ parity)),
        "spread": float(equal.std()),
    }


def synthetic_factors(seed: int, months: int = 180) -> Factors:
    """AR(1) components, f' = 0.9 f + ε, and ten stocks that follow them with noise."""
    random = np.random.default_rng(seed)
    components = np.zeros((months, COMPONENTS))
    for t in range(1, months):
        components[t] = 0.9 * components[t - 1] + random.standard_normal(COMPONENTS)
    slopes = random.normal(0, 0.01, (COMPONENTS, 10))
    returns = 0.01 + components @ slopes + random.normal(0, 0.05, (months, 10))
    names = tuple(f"stock {k}" for k in range(10))
    return Factors(components, np.full(COMPONENTS, 1 / COMPONENTS), returns, names)


def generated(folder: str | None, seed: int, updates: int, samples: int) -> Numbers:
    """Six-month returns of windows that a diffusion of factors draws, beside the fitted law's."""
    from scipy.stats import ks_2samp

    factors = synthetic_factors(seed) if folder is None else macro_factors(Path(folder))
    windows = factor_windows(factors.components)
    z = windows.flatten(1)
    scorer = trained(z, estimates.data, updates, seed)
    x, _ = drawn(scorer, z.shape[1], samples, "DPM 20", seed)
    fitted, drawn_law = (six_months(p, factors) for p in (windows, x.view(-1, *windows.shape[1:])))
    return {
        "distance": float(ks_2samp(fitted, drawn_law).statistic),
        "fitted": statistics(fitted),
        "generated": statistics(drawn_law),
        "quantiles": [
            np.quantile(part, np.linspace(0.01, 0.99, 50)).tolist() for part in (fitted, drawn_law)
        ],
    }


# ------------------------------------------------------------------------------------- the page


def present(results: dict[str, Numbers], page: Page) -> Numbers:
    """What is exact beside what the notebook prints, the learned laws, and a figure."""
    page.text(ABOUT)
    numbers: Numbers = {}
    if "facts" in results:
        numbers["facts"] = results["facts"]
        numbers["claims"] = _fact_claims(results["facts"])
        page.claims(numbers["claims"])
    page.text(LEARNED.format(updates=UPDATES, samples=SAMPLES))
    rows = []
    laws = {
        kind: [r for name, r in results.items() if name.startswith(f"{kind}-")]
        for kind in ("synthetic", "real")
    }
    for kind, runs in laws.items():
        if not runs:
            continue
        spread = interval([run["distance"] for run in runs])
        numbers[kind] = {"distance": spread}
        rows.append(
            claim_row(f"KS distance, {kind} factors", "< 0.2", shown(spread), spread[0] < 0.2)
        )
    page.claims(rows)
    page.table(
        ["six months", "mean", "std", "1 %", "5 %", "10 %", "25 %"],
        [
            [f"{kind}, {part}", *(_shown(runs, part, key) for key in runs[0][part])]
            for kind, runs in laws.items()
            for part in ("fitted", "generated")
            if runs
        ],
    )
    page.figure("laws", _figure(laws), "quantiles of six-month returns, generated against fitted")
    return numbers


def _shown(runs: list[Numbers], part: str, key: str) -> str:
    return shown(interval([run[part][key] for run in runs]))


def _fact_claims(facts: Numbers) -> list[Numbers]:
    """Figures of the notebook, to its printed digits."""

    def near(claim: str, expected: float, measured: float, within: float) -> Numbers:
        holds = abs(expected - measured) <= within
        return claim_row(claim, f"{expected:g}", measured, holds, digits=6)

    claims = [
        near("variance of six components", 0.9058, sum(facts["shares"]), 1e-4),
        near("constant of the regression", 0.015933, facts["constant"], 1e-6),
        near("R² of the regression", 0.07518, facts["r_squared"], 1e-5),
        *(
            near(f"equal weights, six months: {k}", v, facts["equal"][k], 1e-6)
            for k, v in EQUAL.items()
        ),
        near("equal weights: median", 0.103768, facts["equal"]["median"], 1e-6),
        near("equal weights: std (of n)", 0.088271, facts["spread"], 1e-6),
        *(
            near(f"risk parity, six months: {k}", v, facts["balanced"][k], 1e-6)
            for k, v in BALANCED.items()
        ),
        near("risk parity: contribution of each", 0.004072, max(facts["contribution"]), 1e-6),
    ]
    for title, expected, measured, within in (
        ("risk parity: largest error of a weight", PARITY, facts["parity"], 1e-4),
        ("least variance: largest error of a weight, points", MINIMUM, facts["minimum"], 0.5),
    ):
        worst = max(abs(expected[name] - measured[name]) for name in expected)
        claims.append(claim_row(title, f"≤ {within:g}", worst, worst <= within, digits=2))
    return claims


def _figure(laws: dict[str, list[Numbers]]) -> Any:
    kinds = [kind for kind, runs in laws.items() if runs]
    figure, panels = subplots(1, len(kinds), squeeze=False, size=(4.4 * len(kinds), 4.0))
    for axes, kind in zip(panels[0], kinds, strict=True):
        for colour, run in zip(COLOURS, laws[kind], strict=False):
            axes.plot(*run["quantiles"], color=colour)
        ends = [min(run["quantiles"][0][0] for run in laws[kind])]
        ends.append(max(run["quantiles"][0][-1] for run in laws[kind]))
        axes.plot(ends, ends, ":", color="#777777")
        axes.set(title=f"{kind} factors", xlabel="fitted", ylabel="generated")
    return figure


ABOUT = """
Monthly log returns of ten stocks, 2010 to 2025, on six principal components of the FRED-MD series
of the same months, in levels. The compression is PCA: there is no sparse recovery in this part.
Left out of the authors' notebook: samples divided by ten, and a drift of the wrong sign.
"""
LEARNED = """
A diffusion of windows of 120 days of the components (twenty days a month between months; {updates}
updates, {samples} samples, 20 steps of DPM-Solver++(2M)). Six monthly components of a window give
six monthly returns by the regression, and their sum is compared with that of the windows themselves
(Kolmogorov–Smirnov). Synthetic factors are AR(1), six of them, of 180 months, drawn by the seed.
"""
