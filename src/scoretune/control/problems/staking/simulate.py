"""What strategies earn on drawn prices."""

from __future__ import annotations

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
