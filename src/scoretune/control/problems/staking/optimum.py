"""The best strategy and its value: a closed form where there is one, else the Bellman equation.

Formulas T1 to T6 are derived and checked against the Bellman equation; they agree with what the
abstract of arXiv 2207.12581 says. The stake's worth to its owner is A(t) = he^{−βT}N(T) +
ℓ∫_t^T e^{−βs}N(s)ds, and P_β(t) = e^{−βt}N(t)P(t) is its price.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from scoretune.control.problems.staking.bellman import solve
from scoretune.control.problems.staking.bellman_price import solve_with_price
from scoretune.control.problems.staking.problem import Array, Leg, Trading, integral

STRADDLES = "linear utilities, a GBM price (T6)"


@dataclass(frozen=True)
class Optimum:
    """`value` in cash today; `legs` of the best strategy, none where it depends on a random price;
    `method` says by which formula; `error` of the value, 0 for a closed form up to rounding.
    """

    problem: Trading
    value: float
    legs: tuple[Leg, ...]
    method: str
    error: float = 0.0

    @property
    def switches(self) -> tuple[float, ...]:
        """When the strategy changes, in years."""
        return tuple(leg.start for leg in self.legs[1:])

    @property
    def strategy(self) -> str:
        """Such as `buy, then sell from 2.553`."""
        if not self.legs:
            if self.method == STRADDLES:
                return "buy while the stake is worth more than its price, else sell"
            return "by the share and the price, which are watched"
        words = [_word(leg.rate) for leg in self.legs]
        later = [
            f"{word} from {leg.start:.4g}"
            for word, leg in zip(words[1:], self.legs[1:], strict=True)
        ]
        return ", then ".join([words[0], *later])


def _word(rate: float) -> str:
    """Such as `buy`, or `buy at 10 % of the cap`."""
    if rate == 0:
        return "hold"
    word = "buy" if rate > 0 else "sell"
    return word if abs(rate) == 1 else f"{word} at {abs(rate):.0%} of the cap"


def optimum(problem: Trading) -> Optimum:
    """The largest value over all feasible strategies."""
    linear = problem.running.linear and problem.terminal.linear
    if problem.price.volatility > 0:
        return _adapted(problem) if linear and problem.interior else _watched(problem)
    if problem.interior and linear:
        return _linear(problem)
    if problem.interior and problem.running.weight == 0:
        return _legendre(problem)
    if sub_martingale(problem):
        return _largest_path(problem)
    return _numerical(problem)


def worth(problem: Trading, t: Array) -> Array:
    """A(t), for linear utilities: what a share is worth to the participant from t on, if held."""
    end, beta = problem.horizon, problem.discount
    final = problem.terminal.weight * math.exp(-beta * end) * problem.supply.at(np.array(end))
    earned = integral(lambda s: np.exp(-beta * s) * problem.supply.at(s), np.asarray(t), end)
    return np.asarray(final + problem.running.weight * earned)


def sub_martingale(problem: Trading) -> bool:
    """Whether the valuation P_β never falls, a martingale included."""
    values = problem.valuation(np.linspace(0, problem.horizon, 2001))
    return bool((np.diff(values) >= -1e-9 * values[0]).all())


def _legs(problem: Trading, sign: Callable[[Array], Array]) -> tuple[Leg, ...]:
    """Legs of the rate sign(t) = ±1, with the switches found by bisection."""
    times = np.linspace(0, problem.horizon, 2001)
    signs = np.where(sign(times) >= 0, 1, -1)
    signs[0], signs[-1] = signs[1], signs[-2]  # a zero at an end is no leg
    legs = [Leg(0.0, float(signs[0]))]
    for at in np.flatnonzero(np.diff(signs)):
        low, high = float(times[at]), float(times[at + 1])
        for _ in range(60):
            middle = (low + high) / 2
            same = (float(sign(np.array(middle))) >= 0) == (signs[at] > 0)
            low, high = (middle, high) if same else (low, middle)
        legs.append(Leg(low, float(signs[at + 1])))
    return tuple(legs)


def _linear(problem: Trading) -> Optimum:
    """T1: ν = cap·sign(A − P_β), V = y₀A(0) + cap·∫|A − P_β|/N."""
    level = 1e-12 * float(worth(problem, np.array(0.0)))  # a tie is bought, rounding is no switch
    legs = _legs(problem, lambda t: worth(problem, t) - problem.valuation(t) + level)

    def gain(t: Array) -> Array:
        return np.abs(worth(problem, t) - problem.valuation(t)) / problem.supply.at(t)

    value = problem.share * float(worth(problem, np.array(0.0)))
    edges = [leg.start for leg in legs] + [problem.horizon]
    for low, high in pairwise(edges):
        value += problem.cap * float(integral(gain, np.array(low), high))
    return Optimum(problem, value, legs, "linear utilities (T1)")


def _adapted(problem: Trading) -> Optimum:
    """T6: V = y₀A(0) + cap·∫E|A(s) − P_β(s)|/N ds: a strip of straddles, which grows with σ."""
    from scipy.special import ndtr

    sigma = problem.price.volatility

    def straddles(root: Array) -> Array:
        s = root**2  # so that what behaves as √s is smooth
        strike, mean = worth(problem, s), problem.valuation(s)
        spread = sigma * root
        d1 = np.log(mean / strike) / spread + spread / 2
        loss = 2 * (mean * ndtr(d1) - strike * ndtr(d1 - spread)) - mean + strike
        return np.asarray(2 * root * loss / problem.supply.at(s))

    value = problem.share * float(worth(problem, np.array(0.0)))
    value += problem.cap * float(integral(straddles, np.array(0.0), math.sqrt(problem.horizon)))
    return Optimum(problem, value, (), STRADDLES)


def _legendre(problem: Trading) -> Optimum:
    """T4, T5: V = max or min over p of py₀ + cap·∫|p − P_β|/N − or + the conjugate of H at p.

    H(y) = e^{−βT}h(N(T)y); convex h takes the largest, concave the least; ν = cap·sign(p − P_β).
    """
    q = problem.terminal.power
    scale = float(problem.final(np.array(1.0)))
    times = np.linspace(0, problem.horizon, 4001)
    prices, rates = problem.valuation(times), 1 / problem.supply.at(times)

    def dual(p: Array) -> Array:
        share = (p / (scale * q)) ** (1 / (q - 1))
        away = np.abs(p[:, None] - prices) * rates
        paths = np.trapezoid(away, times, axis=1)
        return np.asarray(p * problem.share + problem.cap * paths + scale * share**q - p * share)

    ends = np.array([problem.share - problem.reach, problem.share + problem.reach])
    slopes = scale * q * ends ** (q - 1)
    low = float(min(slopes.min(), prices.min() if q < 1 else np.inf))
    high = float(max(slopes.max(), prices.max() if q < 1 else -np.inf))
    sign = 1.0 if q > 1 else -1.0
    price, value = _refined(lambda p: sign * dual(p), low, high)
    value *= sign
    if q < 1 and np.ptp(prices) < 1e-9 * prices[0]:
        return Optimum(problem, value, _to(problem, price), "concave utility, a martingale (T5)")
    legs = _legs(problem, lambda t: price - problem.valuation(t))
    return Optimum(problem, value, legs, f"{'convex' if q > 1 else 'concave'} utility (T4, T5)")


def _to(problem: Trading, price: float) -> tuple[Leg, ...]:
    """At a constant rate to the share where the terminal utility's slope is the price."""
    q, scale = problem.terminal.power, float(problem.final(np.array(1.0)))
    goal = (price / (scale * q)) ** (1 / (q - 1))
    return (Leg(0.0, float(np.clip((goal - problem.share) / problem.reach, -1, 1))),)


def _largest_path(problem: Trading) -> Optimum:
    """T3: for each final share the largest feasible path is best if P_β never falls.

    −∫P_β dy = P_β(0)y₀ − P_β(T)y_T + ∫y dP_β, and the running utility increases. So one number is
    looked for; the share stays in [0, 1].
    """
    times = np.linspace(0, problem.horizon, 4001)
    clock = problem.cap * problem.supply.clock(times)
    prices, volume = problem.valuation(times), problem.supply.at(times)
    slope = np.gradient(prices, times, edge_order=2)
    fade = np.exp(-problem.discount * times)

    def worth_of(final: Array) -> Array:
        path = np.minimum(problem.share + clock, final[:, None] + clock[-1] - clock)
        path = np.minimum(path, 1)
        flow = path * slope + fade * problem.running(volume * path)
        ends = problem.share * prices[0] - final * prices[-1] + problem.final(final)
        return np.asarray(np.trapezoid(flow, times, axis=1) + ends)

    low, high = max(problem.share - problem.reach, 0.0), min(problem.share + problem.reach, 1.0)
    final, _ = _refined(worth_of, low, high)
    legs = _up_and_down(problem, final)
    return Optimum(problem, problem.value(legs), legs, "the largest path to the best end (T3)")


def _up_and_down(problem: Trading, final: float) -> tuple[Leg, ...]:
    """Buy until the way down to the final share must begin; hold at share 1 in between."""
    top = (problem.share + final + problem.reach) / 2
    ways = np.array([min(top, 1.0) - problem.share, problem.reach - (min(top, 1.0) - final)])
    up, down = (float(t) for t in problem.time_at(ways / problem.cap))
    legs = [Leg(0.0, 1.0)] if up > 1e-9 else []
    if top > 1:
        legs.append(Leg(up, 0.0))
    if down < problem.horizon - 1e-9:
        legs.append(Leg(down if legs else 0.0, -1.0))
    return tuple(legs)


def _watched(problem: Trading) -> Optimum:
    """No formula and a volatile price: the Bellman equation on two grids. It is of first order, so
    that twice the finer value less the coarser is closer; their difference is the error."""
    coarse, fine = (solve_with_price(problem, steps=n).value for n in (40, 80))
    error = abs(fine - coarse)
    return Optimum(problem, 2 * fine - coarse, (), "the Bellman equation in share and price", error)


def _numerical(problem: Trading) -> Optimum:
    """No formula: the Bellman equation, on two grids, whose difference is the error."""
    coarse, fine = solve(problem, steps=200), solve(problem, steps=400)
    legs = fine.legs()
    error = abs(fine.value - coarse.value)
    return Optimum(problem, problem.value(legs), legs, "the Bellman equation", error)


def _refined(function: Callable[[Array], Array], low: float, high: float) -> tuple[float, float]:
    """The place of the largest value in [low, high] and the value, by ever finer grids."""
    for _ in range(5):
        grid = np.linspace(low, high, 41)
        best = int(np.argmax(function(grid)))
        low, high = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, 40)])
    middle = (low + high) / 2
    candidates = np.array([low, middle, high])
    values = function(candidates)
    at = int(np.argmax(values))
    return float(candidates[at]), float(values[at])


@dataclass(frozen=True, kw_only=True)
class Staking(Trading):
    """The problem of trading, with its known answer."""

    def optimum(self) -> Optimum:
        """The best strategy and its value, as `optimum`."""
        return optimum(self)
