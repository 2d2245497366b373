"""What strategies earn on drawn prices, and on prices that were."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from scoretune.control.problems.staking.optimum import worth
from scoretune.control.problems.staking.problem import Array, Price, Trading
from scoretune.core.errors import UserError


def simulate(problem: Trading, *, paths: int = 10_000, steps: int = 500, seed: int = 0) -> Array:
    """The value on every path of ν = cap·sign(A(t) − e^{−βt}N P), for linear utilities, [paths].

    Prices are exact at the ends of steps; a step's trade is decided at its start and paid at the
    mean of its two prices.
    """
    if paths < 1 or steps < 1:
        raise UserError(f"paths and steps must be at least 1, got {paths}, {steps}")
    price = problem.price
    if not isinstance(price, Price) or not (problem.running.linear and problem.terminal.linear):
        raise UserError("simulate draws GBM prices, with linear utilities")
    if not problem.interior:
        raise UserError("simulate: the share might leave (0, 1); take a smaller cap or horizon")
    random = np.random.default_rng(seed)
    times = np.linspace(0, problem.horizon, steps + 1)
    clock, fade = problem.supply.clock(times), np.exp(-problem.discount * times)
    volume, levels = problem.supply.at(times), worth(problem, times)
    width = problem.horizon / steps
    p, total = np.full(paths, price.start), np.full(paths, problem.share * levels[0])
    for k in range(steps):
        noise = random.standard_normal(paths)
        spread = price.volatility * np.sqrt(width)
        after = p * np.exp(price.growth * width + spread * noise - spread**2 / 2)
        now, then = fade[k] * volume[k] * p, fade[k + 1] * volume[k + 1] * after
        rate = np.where(levels[k] >= now, problem.cap, -problem.cap)
        surplus = (levels[k] + levels[k + 1] - now - then) / 2
        total += rate * surplus * (clock[k + 1] - clock[k])
        p = after
    return total


class Walk(NamedTuple):
    """A strategy along prices that were: `rates` [K] and `shares` [K + 1] by step, the discounted
    cash `paid` for stakes (below 0: received) and `earned` from them in running utility."""

    rates: Array
    shares: Array
    paid: float
    earned: float

    def value(self, problem: Trading, price: float | None = None) -> float:
        """With the final stakes at the terminal utility, or sold at a price."""
        share = self.shares[-1]
        end = np.array(problem.horizon)
        final = float(problem.final(share))
        if price is not None:
            final = float(np.exp(-problem.discount * end) * problem.supply.at(end) * share) * price
        return self.earned - self.paid + final


def walk(problem: Trading, times: Array, prices: Array, rates: Array | None = None) -> Walk:
    """Trade along `prices` [K + 1] at `times` from 0 to the horizon, by ν = cap·sign(A − P_β).

    A step is decided by the price at its start, and paid at the mean of its two prices. `rates`
    [K], from −1 to 1 of the cap, are another strategy. Linear utilities; a share that stays inside.
    """
    if not (problem.running.linear and problem.terminal.linear and problem.interior):
        raise UserError("walk trades for linear utilities and a share that stays inside (0, 1)")
    if len(times) != len(prices) or not (np.diff(times) > 0).all() or not (prices > 0).all():
        raise UserError("walk needs a price > 0 for each of the times, which increase")
    fade, volume = np.exp(-problem.discount * times), problem.supply.at(times)
    if rates is None:
        rates = np.where(worth(problem, times) >= fade * volume * prices, 1.0, -1.0)[:-1]
    moves = rates * problem.cap * np.diff(problem.supply.clock(times))
    shares = problem.share + np.concatenate([[0.0], np.cumsum(moves)])
    value = fade * volume * prices
    paid = float((moves * (value[1:] + value[:-1]) / 2).sum())
    stakes = fade * problem.running(volume * shares)
    earned = float(((stakes[1:] + stakes[:-1]) / 2 * np.diff(times)).sum())
    return Walk(rates, shares, paid, earned)
