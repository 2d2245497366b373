"""Macroeconomic factors and ten stocks, as the finance part of arXiv 2509.03898's code has them.

`csdm_FRED-MD_2025-07.csv.gz`: monthly series in levels, their transform codes in the first row.
`csdm_monthly_stock_logret.csv`: monthly log returns of ten stocks. All here is deterministic.
"""

from __future__ import annotations

import csv
import gzip
import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scoretune.core.errors import UserError

RETURNS, MACRO = "csdm_monthly_stock_logret.csv", "csdm_FRED-MD_2025-07.csv.gz"
COMPONENTS, DAYS, WINDOW, YEAR = 6, 20, 120, 240
"""Principal components; days a month between which they are interpolated; days of a window."""
PICKED = tuple(range(0, WINDOW, DAYS))
"""Days of a window that stand for its six months."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Factors:
    """Components [T, 6] of standardised macro series, the share of variance of each [6], and log
    returns [T, 10] of the named stocks in the same months."""

    components: Array
    shares: Array
    returns: Array
    names: tuple[str, ...]

    @cached_property
    def fit(self) -> tuple[Array, float]:
        """Least squares of the mean return on the components: a constant and six slopes, R²."""
        return regression(self.components, self.returns.mean(1))


def macro_factors(folder: Path) -> Factors:
    """Both files, the macro series carried forward over gaps and taken at the returns' months."""
    returns = _rows(folder / RETURNS, gzipped=False)
    macro = _rows(folder / MACRO, gzipped=True)
    values = np.array([[_number(v) for v in row[1:]] for row in returns[1:]])
    months = {_month(row[0]): k for k, row in enumerate(macro[2:])}
    levels = _forward(np.array([[_number(v) for v in row[1:]] for row in macro[2:]]))
    wanted = [_month(row[0]) for row in returns[1:]]
    last = len(levels) - 1  # returns go on for some months after the macro series end
    aligned = levels[[months.get(month, last) for month in wanted]]
    aligned = aligned[:, np.isfinite(aligned).all(0) & (aligned.std(0) > 0)]
    standard = (aligned - aligned.mean(0)) / aligned.std(0)
    left, singular, _ = np.linalg.svd(standard, full_matrices=False)
    power = singular**2
    return Factors(
        (left * singular)[:, :COMPONENTS],
        (power / power.sum())[:COMPONENTS],
        values,
        tuple(returns[0][1:]),
    )


def factor_windows(components: Array, window: int = WINDOW) -> Tensor:
    """Windows [n, 6, window] of the components [T, 6], interpolated to twenty days a month and in
    standard deviations of each component; n = 20 T − window + 1."""
    months = len(components)
    days = np.minimum(np.arange(DAYS * months) / DAYS, months - 1)
    path = np.stack([np.interp(days, np.arange(months), c) for c in components.T])
    path /= components.std(0)[:, None]
    windows = np.lib.stride_tricks.sliding_window_view(path, window, axis=1)
    return torch.from_numpy(windows.transpose(1, 0, 2).copy()).float()


def six_months(windows: Tensor, factors: Factors) -> Array:
    """Log returns over six months [n] of windows [n, 6, 120], by `Factors.fit` at the first day of
    each month."""
    coefficients, _ = factors.fit
    picked = windows[:, :, list(PICKED)].double().numpy() * factors.components.std(0)[:, None]
    monthly = coefficients[0] + np.einsum("nkt,k->nt", picked, coefficients[1:])
    return np.asarray(monthly.sum(1))


def regression(x: Array, y: Array) -> tuple[Array, float]:
    """Least squares of y [T] on a constant and x [T, k]: coefficients [1 + k] and R²."""
    design = np.column_stack([np.ones(len(x)), x])
    coefficients, *_ = np.linalg.lstsq(design, y, rcond=None)
    missed = y - design @ coefficients
    return np.asarray(coefficients, float), float(
        1 - missed @ missed / ((y - y.mean()) @ (y - y.mean()))
    )


def rolling(returns: Array, months: int = 6) -> Array:
    """Sums [T − months + 1] of log returns [T] over windows of months."""
    return np.convolve(returns, np.ones(months), "valid")


def statistics(values: Array) -> dict[str, float]:
    """Mean, standard deviation (n − 1) and quantiles of returns."""
    quantiles = {f"q{q}": float(np.quantile(values, q / 100)) for q in (1, 5, 10, 25)}
    spread = float(values.std(ddof=1))
    return {"mean": float(values.mean()), "std": spread, **quantiles}


def minimum_variance(covariance: Array) -> Array:
    """Long-only weights [k] of least variance that sum to 1, by non-negative least squares on the
    optimality conditions' smallest active set: an asset whose weight would be negative leaves."""
    active = np.ones(len(covariance), dtype=bool)
    while True:
        inner = np.linalg.solve(covariance[np.ix_(active, active)], np.ones(active.sum()))
        weights = np.zeros(len(covariance))
        weights[active] = inner / inner.sum()
        if (weights >= 0).all():
            return weights
        active &= weights > 0


def risk_parity(covariance: Array, iterations: int = 1000) -> Array:
    """Weights [k] whose contributions w_i (Cw)_i / √(wᵀCw) to risk are equal, by the damped fixed
    point w ← w·√(target/contribution), normalised."""
    weights = np.full(len(covariance), 1 / len(covariance))
    for _ in range(iterations):
        shares = risk_contributions(weights, covariance)
        weights = weights * np.sqrt(shares.mean() / shares)
        weights /= weights.sum()
    return weights


def risk_contributions(weights: Array, covariance: Array) -> Array:
    """w_i (Cw)_i / √(wᵀCw), which sum to the portfolio's standard deviation."""
    return np.asarray(weights * (covariance @ weights) / np.sqrt(weights @ covariance @ weights))


def _rows(path: Path, *, gzipped: bool) -> list[list[str]]:
    try:
        raw = gzip.decompress(path.read_bytes()) if gzipped else path.read_bytes()
        rows = list(csv.reader(io.StringIO(raw.decode("utf-8"))))
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if len(rows) < COMPONENTS + 3:
        raise UserError(f"{path} has {len(rows)} rows: expected months of a table with a head")
    return [row for row in rows if row and row[0]] if rows[0][0] else [rows[0], *rows[1:]]


def _number(text: str) -> float:
    return float(text) if text else float("nan")


def _month(text: str) -> tuple[int, int]:
    """Year and month of 2010-09-01, or of 9/1/2010."""
    if "-" in text:
        year, month, *_ = text.split("-")
    else:
        month, _, year = text.split("/")
    return int(year), int(month)


def _forward(values: Array) -> Array:
    """Gaps of a column filled with its last number before them."""
    for t in range(1, len(values)):
        values[t] = np.where(np.isnan(values[t]), values[t - 1], values[t])
    return values
