"""The Bellman equation on a lattice of shares that strategies reach exactly.

In shares y = X/N and with w(t, y) the discounted value,

    w_t + e^{−βt}ℓ(Ny) + cap·|w_y/N − e^{−βt}P| = 0,   w(T, y) = e^{−βT}h(N_T y),

without transport. Time steps are equal in the clock κ(t) = ∫ds/N, so buying, holding and selling
move the share by +1, 0 and −1 cell: semi-Lagrangian steps that need no interpolation, and so no
numerical diffusion. Cells outside [0, 1] don't exist, so inventory limits hold.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scoretune.control.problems.staking.problem import Array, Leg, Trading
from scoretune.core.errors import UserError


@dataclass(frozen=True)
class Surface:
    """`values[k, j]` at `times[k]` and `shares[j]`; `rates` [K, J] is the best trade there."""

    problem: Trading
    times: Array
    shares: Array
    values: Array
    rates: NDArray[np.int64]
    start: int

    @property
    def value(self) -> float:
        """At the participant's own share, now."""
        return float(self.values[0, self.start])

    def legs(self) -> tuple[Leg, ...]:
        """The strategy from the participant's share on; it is feasible, so its value is a bound."""
        legs: list[Leg] = []
        at = self.start
        for k, t in enumerate(self.times[:-1]):
            rate = int(self.rates[k, at])
            if not legs or legs[-1].rate != rate:
                legs.append(Leg(float(t), float(rate)))
            at += rate
        return tuple(legs)

    def residual(self) -> float:
        """The mean of |w_t + …| over the inner lattice, by central differences of the solution,
        relative to the mean of |w_t|. It falls with the cells where the solution is right."""
        t, w = self.times, self.values
        step = t[2:] - t[:-2]
        w_t = (w[2:, 1:-1] - w[:-2, 1:-1]) / step[:, None]
        w_y = (w[1:-1, 2:] - w[1:-1, :-2]) / (self.shares[2:] - self.shares[:-2])
        problem, inner = self.problem, t[1:-1, None]
        fade, volume = np.exp(-problem.discount * inner), problem.supply.at(inner)
        push = problem.cap * np.abs(w_y / volume - fade * problem.prices(inner))
        rest = w_t + fade * problem.running(volume * self.shares[1:-1]) + push
        return float(np.abs(rest).mean() / np.abs(w_t).mean())


def solve(problem: Trading, *, steps: int = 400) -> Surface:
    """The value and the best trades on all shares that can be reached. O(steps²)."""
    if steps < 2:
        raise UserError(f"the Bellman equation needs at least 2 steps, got {steps}")
    if problem.price.volatility > 0:
        raise UserError("the price is volatile: the Bellman equation needs it (`solve_with_price`)")
    times, (shares, below) = lattice_times(problem, steps), lattice_shares(problem, steps)
    paid, cell = mean_prices(problem, times), problem.reach / steps
    values = np.empty((steps + 1, len(shares)))
    rates = np.zeros((steps + 1, len(shares)), dtype=np.int64)
    values[-1] = problem.final(shares)
    choices = (0, 1, -1)  # a tie is held
    for k in reversed(range(steps)):
        options = np.stack(
            [
                after_moves(values[k + 1], move)
                + step_earnings(problem, times[k : k + 2], shares, move * cell)
                - move * cell * paid[k]
                for move in choices
            ]
        )
        best = options.argmax(0)
        values[k] = options[best, np.arange(len(shares))]
        rates[k] = np.asarray(choices)[best]
    return Surface(problem, times, shares, values, rates, below)


def after_moves(values: Array, move: int) -> Array:
    """`values[j + move]` for every share j, −∞ where that is outside, [J, …]."""
    moved = np.full_like(values, -np.inf)
    count = len(values)
    moved[max(-move, 0) : count - max(move, 0)] = values[max(move, 0) : count - max(-move, 0)]
    return moved


def lattice_shares(problem: Trading, steps: int) -> tuple[Array, int]:
    """The shares that can be reached and are within [0, 1], and where the participant's own is."""
    cell = problem.reach / steps
    below = min(steps, int(problem.share / cell + 1e-9))
    above = min(steps, int((1 - problem.share) / cell + 1e-9))
    return np.asarray(problem.share + cell * np.arange(-below, above + 1), float), below


def lattice_times(problem: Trading, steps: int) -> Array:
    """Times that are equally far apart in the clock κ."""
    times = problem.time_at(np.linspace(0, problem.reach / problem.cap, steps + 1))
    times[0], times[-1] = 0.0, problem.horizon
    return times


def step_earnings(problem: Trading, step: Array, shares: Array, move: float) -> Array:
    """∫ e^{−βt}ℓ dt over a step in which shares move evenly, by Simpson's rule."""
    start, end = step
    half = (end - start) / 2
    earned = np.zeros(len(shares))
    for t, part, weight in ((start, 0.0, 1), (start + half, 0.5, 4), (end, 1.0, 1)):
        stakes = float(problem.supply.at(np.array(t))) * (shares + part * move)
        earned += half * weight / 3 * np.exp(-problem.discount * t) * problem.running(stakes)
    return earned


def mean_prices(problem: Trading, times: Array) -> Array:
    """The mean of P_β over every step, in the clock, by Simpson's rule in time."""
    low, high = times[:-1], times[1:]
    middle = (low + high) / 2

    def flow(t: Array) -> Array:
        return problem.valuation(t) / problem.supply.at(t)

    whole = (high - low) / 6 * (flow(low) + 4 * flow(middle) + flow(high))
    return np.asarray(whole / (problem.supply.clock(high) - problem.supply.clock(low)))
