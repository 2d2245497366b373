"""The Bellman equation in share and price, for a GBM price and any utilities.

With P(t) = P̄(t)e^{x − σ²t/2}, P̄ the mean and x = σW, the discounted value w(t, y, x) solves

    w_t + e^{−βt}ℓ(Ny) + ½σ²w_xx + cap·|w_y/N − e^{−βt}P| = 0,   w(T, y, x) = e^{−βT}h(N_T y).

Shares are on the lattice of `bellman`, which trades of a step cross exactly; prices diffuse by
Crank–Nicolson on a sparse matrix. Where the price is far off one trades one way whatever it does,
so that w is affine in P: w_xx = w_x at both ends.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scoretune.control.problems.staking.bellman import (
    after_moves,
    lattice_shares,
    lattice_times,
    mean_prices,
    step_earnings,
)
from scoretune.control.problems.staking.problem import Array, Trading
from scoretune.core.errors import UserError

WIDTH = 4.0
"""Standard deviations of ln P at the horizon up to which the lattice goes."""
INNER = 3.0
"""Those within which the residual is looked at: beyond, paths hardly come."""
MOVES = (0, 1, -1)  # a tie is held


@dataclass(frozen=True)
class PriceSurface:
    """`values[j, m]` now at `shares[j]` and `logs[m]` = x; `rates[k, j, m]` is the best trade at
    `times[k]`; `residual` is the equation's, as `bellman.Surface.residual` has it.

    As there, shares end where the participant's own cannot come; `reached` says where it can.
    """

    problem: Trading
    times: Array
    shares: Array
    logs: Array
    values: Array
    rates: NDArray[np.int8]
    start: int
    residual: float

    @property
    def value(self) -> float:
        """At the participant's own share and today's price."""
        return float(self.values[self.start, len(self.logs) // 2])

    def reached(self, k: int) -> NDArray[np.bool_]:
        """The shares that the participant's own may have at `times[k]`, [J]."""
        return np.asarray(np.abs(np.arange(len(self.shares)) - self.start) <= k)

    def prices(self, k: int) -> Array:
        """P of every x at `times[k]`."""
        sigma, t = self.problem.price.volatility, self.times[k]
        return np.asarray(self.problem.prices(t) * np.exp(self.logs - sigma**2 * t / 2))

    def play(self, *, paths: int = 4000, seed: int = 0) -> Array:
        """What the trades of the surface earn on drawn prices, [paths]: the mean is a lower bound.

        Between two prices of the lattice the nearer one decides.
        """
        problem, random = self.problem, np.random.default_rng(seed)
        sigma, gap = problem.price.volatility, self.logs[1] - self.logs[0]
        at, x, total = np.full(paths, self.start), np.zeros(paths), np.zeros(paths)
        paid, cell = mean_prices(problem, self.times), self.shares[1] - self.shares[0]
        for k, (t, then) in enumerate(zip(self.times[:-1], self.times[1:], strict=True)):
            column = np.rint((x - self.logs[0]) / gap).astype(int).clip(0, len(self.logs) - 1)
            rate = self.rates[k, at, column].astype(int)
            for move in MOVES:
                earned = step_earnings(problem, self.times[k : k + 2], self.shares, move * cell)
                total += np.where(rate == move, earned[at], 0.0)
            total -= rate * cell * paid[k] * np.exp(x - sigma**2 * t / 2)
            at = at + rate
            x = x + sigma * math.sqrt(then - t) * random.standard_normal(paths)
        return np.asarray(total + problem.final(self.shares[at]))


def solve_with_price(problem: Trading, *, steps: int = 100) -> PriceSurface:
    """The value and the best trades by share and price, on twice as many prices as steps.

    O(steps³), seconds for 100. First order in the step of time, which is the larger error.
    """
    if steps < 4:
        raise UserError(f"the Bellman equation with a price needs at least 4 steps, got {steps}")
    sigma = problem.price.volatility
    if sigma <= 0:
        raise UserError("the price has no volatility: take `solve`, which needs no price")
    times, (shares, below) = lattice_times(problem, steps), lattice_shares(problem, steps)
    far = WIDTH * sigma * math.sqrt(problem.horizon)
    logs: Array = np.asarray(np.arange(-steps, steps + 1) * (far / steps), float)
    paid, cell = mean_prices(problem, times), problem.reach / steps
    diffuse = _Diffusion(sigma, logs)
    values = np.repeat(problem.final(shares)[:, None], len(logs), axis=1)
    rates = np.zeros((steps, len(shares), len(logs)), dtype=np.int8)
    recent, wrong, size = [values], 0.0, 0.0
    for k in reversed(range(steps)):
        ahead = diffuse(values, times[k + 1] - times[k])
        options = np.stack(
            [
                after_moves(ahead, move)
                + step_earnings(problem, times[k : k + 2], shares, move * cell)[:, None]
                - move * cell * paid[k] * np.exp(logs - sigma**2 * times[k] / 2)
                for move in MOVES
            ]
        )
        best = options.argmax(0)
        values = np.take_along_axis(options, best[None], axis=0)[0]
        rates[k] = np.asarray(MOVES, dtype=np.int8)[best]
        recent = [values, *recent[:2]]
        if len(recent) == 3:
            off, rate = _residual(problem, times[k : k + 3], (shares, logs), recent)
            wrong, size = wrong + off, size + rate
    return PriceSurface(problem, times, shares, logs, values, rates, below, wrong / size)


class _Diffusion:
    """E w(x + σ√dt·noise): one step of Crank–Nicolson for w_t + ½σ²w_xx = 0, backwards."""

    def __init__(self, sigma: float, logs: Array) -> None:
        from scipy import sparse

        count, gap = len(logs), logs[1] - logs[0]
        ones = np.ones(count)
        second = sparse.diags_array(
            [ones[1:], -2 * ones, ones[1:]], offsets=[-1, 0, 1], format="lil"
        )
        # w_xx = w_x at the ends, by one-sided differences.
        second[0, :2] = [-gap, gap]
        second[-1, -2:] = [-gap, gap]
        self.half = (sigma**2 / (4 * gap**2)) * second.tocsc()
        self.one = sparse.eye_array(count, format="csc")

    def __call__(self, values: Array, dt: float) -> Array:
        from scipy.sparse.linalg import splu

        moved = (self.one + dt * self.half) @ values.T
        return np.asarray(splu((self.one - dt * self.half).tocsc()).solve(moved)).T


def _residual(
    problem: Trading, times: Array, axes: tuple[Array, Array], values: list[Array]
) -> tuple[float, float]:
    """Sums of |w_t + …| and of |w_t| at the middle one of three times, by central differences."""
    shares, logs = axes
    sigma, t = problem.price.volatility, times[1]
    before, w, after = values
    inner = np.abs(logs[1:-1]) <= INNER * sigma * math.sqrt(problem.horizon)
    w_t = ((after - before) / (times[2] - times[0]))[1:-1, 1:-1]
    w_y = (w[2:, 1:-1] - w[:-2, 1:-1]) / (shares[2:] - shares[:-2])[:, None]
    w_xx = (w[1:-1, 2:] - 2 * w[1:-1, 1:-1] + w[1:-1, :-2]) / (logs[1] - logs[0]) ** 2
    fade, volume = math.exp(-problem.discount * t), problem.supply.at(t)
    price = problem.prices(t) * np.exp(logs[1:-1] - sigma**2 * t / 2)
    push = problem.cap * np.abs(w_y / volume - fade * price)
    kept = fade * problem.running(volume * shares[1:-1])[:, None]
    rest = (w_t + kept + sigma**2 / 2 * w_xx + push)[:, inner]
    return float(np.abs(rest).sum()), float(np.abs(w_t[:, inner]).sum())
