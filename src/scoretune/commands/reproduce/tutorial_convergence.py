"""The tutorial's bounds on what a sampler gets wrong, next to what it does get wrong.

arXiv 2402.07487 section 5: total variation (Thm 5.1, Cor. 5.2) and W2 (Thm 5.4, which is Thm 1 of
arXiv 2401.13115, and the theorem for log-concave data), for data N(m, s²), whose errors are exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from scoretune.commands.reproduce.base import Cell, Numbers, Page
from scoretune.commands.reproduce.drawing import COLOURS, subplots
from scoretune.diffusion.processes import OU, ContractiveOU, ContractiveVP, Process
from scoretune.diffusion.theory import contraction, gaussian

MEAN, VARIANCE = 0.5, 0.5
HORIZONS = (0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
ERRORS = (0.0, 0.05, 0.2)
STEPS = (0.02, 0.01)


def cells(seeds: int, quick: bool) -> list[Cell]:
    """Everything is exact: seeds make no difference."""
    horizons = list(HORIZONS[:3] if quick else HORIZONS)
    return [
        Cell("variation", variation, {"horizons": horizons}),
        Cell("transport", transport, {"horizons": horizons}),
        Cell("steps", by_step, {"horizons": horizons}),
    ]


def variation(horizons: list[float]) -> Numbers:
    """TV of samples and data for OU with g² = 2, and its bounds, by score error and horizon."""
    errors: Numbers = {}
    for error in ERRORS:
        rows = []
        for horizon in horizons:
            process = OU(1.0, math.sqrt(2), horizon)
            last = torch.tensor(horizon, dtype=torch.float64)
            there = gaussian.law(process, last, mean=MEAN, variance=VARIANCE)
            start = total_variation(there, (0.0, 1.0))
            shift = error * contraction.amplification(process, variance=VARIANCE, eta=1.0)
            mean, variance = gaussian.arrival(process, mean=MEAN, variance=VARIANCE, eta=1.0)
            actual = max(
                total_variation((mean + sign * shift, variance), (MEAN, VARIANCE))
                for sign in (1, -1)
            )
            second = MEAN**2 + VARIANCE
            forget = contraction.forgetting_bound(process, second_moment=second)
            bounds = [
                contraction.total_variation_bound(process, initial=i, score_error=error)
                for i in (start, forget)
            ]
            rows.append([actual, *bounds])
        errors[f"{error:g}"] = rows
    return errors


def transport(horizons: list[float]) -> Numbers:
    """W2 and its bounds for OU and two contractive processes, with a score error of 0.05."""
    distances: Numbers = {"OU": [], "COU": [], "CVP": []}
    error = 0.05
    for horizon in horizons:
        kinds: dict[str, Process] = {
            "OU": OU(1.0, math.sqrt(2), horizon),
            "COU": ContractiveOU(1.0, 10.0, horizon),
            "CVP": ContractiveVP(2.0 * horizon, 2.0 * horizon),  # a constant β = 2 for so long
        }
        for name, process in kinds.items():
            last = torch.tensor(process.horizon, dtype=torch.float64)
            start = gaussian.wasserstein(
                gaussian.law(process, last, mean=MEAN, variance=VARIANCE),
                (0.0, process.prior_std**2),
            )
            bound = contraction.wasserstein_bound(
                process, initial_error=start, score_error=error, variance=VARIANCE
            )
            mean, variance = gaussian.arrival(process, mean=MEAN, variance=VARIANCE, eta=1.0)
            shift = error * contraction.amplification(process, variance=VARIANCE, eta=1.0)
            actual = max(
                gaussian.wasserstein((mean + sign * shift, variance), (MEAN, VARIANCE))
                for sign in (1, -1)
            )
            row = [actual, bound]
            if name == "CVP":
                second = MEAN**2 + VARIANCE
                concave = contraction.log_concave_bound(
                    concavity=1 / VARIANCE, second_moment=second, score_error=error
                )
                row.append(concave)
            distances[name].append(row)
    return distances


def by_step(horizons: list[float]) -> Numbers:
    """W2 between Euler–Maruyama's law and the exact one, from the same start, by step and horizon.

    Data N(0.5, 4), θ = σ̄ = 1.
    """
    distances: Numbers = {"OU": [], "COU": []}
    for horizon in horizons:
        for name, process in (
            ("OU", OU(1.0, 1.0, horizon)),
            ("COU", ContractiveOU(1.0, 1.0, horizon)),
        ):
            distances[name].append([_discretised(process, step) for step in STEPS])
    return distances


def _discretised(process: Process, step: float) -> float:
    count = round(process.horizon / step)
    times = torch.linspace(process.horizon, 0, count + 1, dtype=torch.float64)
    t = times[:-1]
    f, g_sq = process.sde(t)  # type: ignore[union-attr]
    pull = g_sq / gaussian.state_variance(process, t, 4.0)
    alpha, v = process.alpha(t[:1]), gaussian.state_variance(process, t[:1], 4.0)
    mean, variance = float(alpha) / 2, float(v)
    kept, added = 1 - step * (f + pull), step * pull * process.alpha(t) / 2
    for rate, push, noise in zip(*(z.tolist() for z in (kept, added, step * g_sq)), strict=True):
        mean, variance = rate * mean + push, rate**2 * variance + noise
    return gaussian.wasserstein((mean, variance), (0.5, 4.0))


def total_variation(first: tuple[float, float], second: tuple[float, float]) -> float:
    """½∫|p − q| of two laws N(mean, variance), by quadrature."""
    width = 12 * max(math.sqrt(first[1]), math.sqrt(second[1])) + abs(first[0] - second[0])
    x = torch.linspace(-width, width, 200_001, dtype=torch.float64)
    densities = [
        torch.exp(-((x - mean) ** 2) / (2 * v)) / math.sqrt(2 * math.pi * v)
        for mean, v in (first, second)
    ]
    return float(torch.trapezoid((densities[0] - densities[1]).abs(), x)) / 2


# ------------------------------------------------------------------------------------ the page


def present(results: dict[str, Numbers], page: Page) -> Numbers:
    """Total variation, W2, and steps."""
    count = len(next(iter(results["variation"].values())))
    horizons = HORIZONS[:count]
    page.text(VARIATION)
    _table(["score error ε", "T", "TV", "Thm 5.1", "Cor. 5.2"], results["variation"], page)
    page.text(TRANSPORT)
    _table(["process", "T", "W2", "Thm 5.4", "log-concave"], results["transport"], page, "4g")
    page.text(BY_STEP)
    _table(["process", "T", *(f"δ = {step:g}" for step in STEPS)], results["steps"], page)
    page.figure("convergence", _draw(results, horizons), "errors and bounds by horizon")
    variation, transport = (
        [row for rows in results[name].values() for row in rows]
        for name in ("variation", "transport")
    )
    held = all(row[0] <= bound + 1e-12 for row in variation for bound in row[1:])
    held &= all(row[0] <= row[1] for row in transport)
    page.text(f"Every bound of the first two tables {'holds' if held else 'FAILS somewhere'}.")
    return results | {"bounds hold": held}


def _table(columns: Sequence[str], rows: Numbers, page: Page, form: str = "4f") -> None:
    """Numbers by name and horizon; a row may be shorter than the others."""
    table = [
        [name, f"{T:g}", *(f"{value:.{form}}" for value in row)]
        for name, by_horizon in rows.items()
        for T, row in zip(HORIZONS, by_horizon, strict=False)
    ]
    page.table(columns, [row + [""] * (len(columns) - len(row)) for row in table])


def _draw(results: dict[str, Numbers], horizons: tuple[float, ...]) -> Any:
    figure, (left, middle, right) = subplots(1, 3, size=(10.0, 3.9))
    for colour, (error, rows) in zip(COLOURS, results["variation"].items(), strict=False):
        left.plot(horizons, [row[0] for row in rows], color=colour, label=f"TV, ε = {error}")
        left.plot(horizons, [row[1] for row in rows], "--", color=colour, label="its bound")
    left.set(title="total variation, OU", xlabel="horizon T", yscale="log", ylim=(1e-4, 2))
    for colour, (name, rows) in zip(COLOURS, results["transport"].items(), strict=False):
        middle.plot(horizons, [row[0] for row in rows], color=colour, label=f"W2, {name}")
        middle.plot(horizons, [row[1] for row in rows], "--", color=colour, label="its bound")
    middle.set(title="W2, score error 0.05", xlabel="horizon T", yscale="log")
    for colour, (name, rows) in zip(COLOURS, results["steps"].items(), strict=False):
        for k, (step, dash) in enumerate(zip(STEPS, ("-", "--"), strict=True)):
            values = [row[k] for row in rows]
            right.plot(horizons, values, dash, color=colour, label=f"{name}, δ = {step:g}")
    right.set(title="W2 by Euler–Maruyama's steps", xlabel="horizon T")
    for axes in (left, middle, right):
        axes.legend(frameon=False, fontsize="x-small")
    return figure


VARIATION = """
## Total variation

Data N(0.5, ½), OU with g² = 2, a constant score error ε of the worse sign,
η = 1. Thm 5.1 with the exact distance of
p_T and the prior, and Cor. 5.2, which bounds that distance too. Bounds grow like √T, errors do not.
"""
TRANSPORT = """
## W2

The same data, score error 0.05. Thm 5.4 with the Lipschitz constant 1/v_t of each time. COU has
σ̄ = 10; CVP has a constant β = 2 for a time T, and its last column is Thm 2 of arXiv 2401.13115 for
log-concave data in the limit of a long horizon, without the term in β_min.
"""
BY_STEP = """
## Steps

W2 between Euler–Maruyama and the exact law, data N(0.5, 4), θ = σ̄ = 1, exact start and score. The
paper's Thm 3 promises an error that does not grow with T for contractive processes. For COU it does
grow, in proportion to T: states are of size e^T there, and so are the local errors.
"""
