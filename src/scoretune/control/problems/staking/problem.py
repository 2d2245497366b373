"""Trading under proof of stake: stakes that earn stakes, a price, utilities, and what trading pays.

After arXiv 2207.12581, of which only the abstract could be read: that a participant buys, sells or
does both at full capacity, and that it depends on whether the risk-adjusted valuation
e^{−βt}N(t)P(t) is a martingale, is the paper's; notation, objective and constants are our
reconstruction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from scoretune.core.errors import UserError

Array: TypeAlias = NDArray[np.float64]
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)


@dataclass(frozen=True, kw_only=True)
class PowerSupply:
    """N(t) = (start^{1/α} + t)^α stakes at time t (years): rewards grow, stay or shrink with α."""

    start: float = 100.0
    exponent: float = 2.0

    def __post_init__(self) -> None:
        _positive("supply", start=self.start, exponent=self.exponent)

    def at(self, t: Array) -> Array:
        """N(t)."""
        volume: Array = (self.start ** (1 / self.exponent) + t) ** self.exponent
        return volume

    def growth(self, t: Array) -> Array:
        """N′/N at time t, a year."""
        return np.asarray(self.exponent / (self.start ** (1 / self.exponent) + t))

    def clock(self, t: Array) -> Array:
        """κ(t) = ∫₀ᵗ ds/N(s): what one stake a year adds to a share by time t."""
        first, power = self.start ** (1 / self.exponent), 1 - self.exponent
        if power == 0:
            return np.asarray(np.log1p(np.asarray(t) / first))
        clock: Array = ((first + np.asarray(t)) ** power - first**power) / power
        return clock


@dataclass(frozen=True, kw_only=True)
class GrowingSupply:
    """N(t) = start·e^{rate·t}."""

    start: float = 100.0
    rate: float = 0.05

    def __post_init__(self) -> None:
        _positive("supply", start=self.start)
        if not 0 <= self.rate < math.inf:
            raise UserError(f"supply: rate must be finite and >= 0, got {self.rate}")

    def at(self, t: Array) -> Array:
        """N(t)."""
        return self.start * np.exp(self.rate * np.asarray(t))

    def growth(self, t: Array) -> Array:
        """N′/N at time t, a year."""
        return np.full(np.shape(t), self.rate)

    def clock(self, t: Array) -> Array:
        """κ(t) = ∫₀ᵗ ds/N(s)."""
        if self.rate == 0:
            return np.asarray(t) / self.start
        clock: Array = -np.expm1(-self.rate * np.asarray(t)) / (self.rate * self.start)
        return clock


@dataclass(frozen=True, kw_only=True)
class Price:
    """P(t) = start·e^{growth·t} in cash; with a volatility a GBM of that mean."""

    start: float = 0.8
    growth: float = 0.0
    volatility: float = 0.0

    def __post_init__(self) -> None:
        _positive("price", start=self.start)
        if not math.isfinite(self.growth) or not 0 <= self.volatility < math.inf:
            raise UserError("price: growth must be finite, volatility finite and >= 0")


@dataclass(frozen=True, kw_only=True)
class Valuation:
    """The price at which e^{−βt}N(t)P(t) = level·e^{growth·t}: a martingale where growth is 0."""

    level: float = 200.0
    growth: float = 0.0
    volatility: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        _positive("valuation", level=self.level)
        if not math.isfinite(self.growth):
            raise UserError("valuation: growth must be finite")


@dataclass(frozen=True, kw_only=True)
class Utility:
    """u(x) = weight·x^power of stakes, in cash: linear, convex (power > 1) or concave."""

    weight: float = 1.0
    power: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise UserError(f"utility: weight must be finite and >= 0, got {self.weight}")
        _positive("utility", power=self.power)

    @property
    def linear(self) -> bool:
        """Whether it is, 0 included."""
        return self.power == 1 or self.weight == 0

    def __call__(self, x: Array) -> Array:
        value: Array = self.weight * np.maximum(x, 0) ** self.power
        return value


class Leg(NamedTuple):
    """From a time on, trade at `rate` times the cap: 1 buys, −1 sells, 0 holds."""

    start: float
    rate: float


@dataclass(frozen=True, kw_only=True)
class Trading:
    """Choose the trading rate |ν| ≤ `cap` (stakes a year) of a participant with `stake` stakes.

    Stakes earn stakes, dX = ν dt + X dN/N, so that the share X/N moves by ν/N alone. Wanted is the
    largest ∫₀^T e^{−βt}(−P(t)ν + running(X)) dt + e^{−βT} terminal(X_T) with 0 ≤ X ≤ N: consumption
    minus what is paid, in the reading in which cash may be borrowed. `discount` β a year, `horizon`
    T in years, running utility in cash a year.
    """

    stake: float = 20.0
    supply: PowerSupply | GrowingSupply = field(default_factory=PowerSupply)
    price: Price | Valuation = field(default_factory=Price)
    cap: float = 2.0
    discount: float = 0.1
    horizon: float = 5.0
    running: Utility = field(default_factory=lambda: Utility(weight=0.2))
    terminal: Utility = field(default_factory=Utility)

    def __post_init__(self) -> None:
        _positive("staking", cap=self.cap, discount=self.discount, horizon=self.horizon)
        if not 0 <= self.stake <= self.supply.start:
            raise UserError(
                f"staking: stake must be from 0 to the supply {self.supply.start:g}, got "
                f"{self.stake}"
            )

    @property
    def share(self) -> float:
        """y₀ = X/N at the beginning."""
        return self.stake / self.supply.start

    @property
    def reach(self) -> float:
        """How far the share can move until the horizon: cap·κ(T)."""
        return self.cap * float(self.supply.clock(np.array(self.horizon)))

    @property
    def interior(self) -> bool:
        """Whether no strategy can take the share to 0 or to 1."""
        return self.share - self.reach > 0 and self.share + self.reach < 1

    def prices(self, t: Array) -> Array:
        """P(t), or its mean."""
        price = self.price
        if isinstance(price, Price):
            return price.start * np.exp(price.growth * t)
        grown = price.level * np.exp((price.growth + self.discount) * t)
        return np.asarray(grown / self.supply.at(t))

    def valuation(self, t: Array) -> Array:
        """P_β(t) = e^{−βt}N(t)P(t): the share's price today, risk-adjusted."""
        return np.exp(-self.discount * t) * self.supply.at(t) * self.prices(t)

    def bracket(self, t: Array) -> Array:
        """P′ + (N′/N − β)P + ℓ of a linear running utility: the sign that shapes the strategy."""
        growth: Array = np.asarray(self.price.growth)
        if isinstance(self.price, Price):
            growth = growth + self.supply.growth(t) - self.discount
        return self.prices(t) * growth + self.running.weight

    def time_at(self, clock: Array) -> Array:
        """The time t ≤ T at which κ(t) is `clock`, by bisection."""
        low, high = np.zeros(np.shape(clock)), np.full(np.shape(clock), self.horizon)
        for _ in range(60):
            middle = (low + high) / 2
            below = self.supply.clock(middle) < clock
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return np.asarray(low)

    def final(self, share: Array) -> Array:
        """e^{−βT}·terminal utility of a share at the horizon."""
        end = np.array(self.horizon)
        return math.exp(-self.discount * self.horizon) * self.terminal(self.supply.at(end) * share)

    def shares(self, legs: Sequence[Leg], t: Array) -> Array:
        """The share over time under a strategy."""
        share = np.full(np.shape(t), self.share)
        for leg, end in zip(legs, _ends(legs, self.horizon), strict=True):
            moved = self.supply.clock(np.clip(t, leg.start, end)) - self.supply.clock(
                np.array(leg.start)
            )
            share = share + leg.rate * self.cap * moved
        return share

    def value(self, legs: Sequence[Leg]) -> float:
        """What a strategy of legs is worth, by quadrature. Raises UserError if it is infeasible."""
        total = 0.0
        for leg, end in zip(legs, _ends(legs, self.horizon), strict=True):
            if abs(leg.rate) > 1 + 1e-12:
                raise UserError(f"staking: a rate must be from -1 to 1 of the cap, got {leg.rate}")

            def gains(t: Array, rate: float = leg.rate) -> Array:
                stakes = self.supply.at(t) * self.shares(legs, t)
                paid = rate * self.cap * self.prices(t)
                return np.exp(-self.discount * t) * (self.running(stakes) - paid)

            total += float(integral(gains, np.array(leg.start), end))
        edges = self.shares(legs, np.array([*(leg.start for leg in legs), self.horizon]))
        if edges.min() < -1e-9 or edges.max() > 1 + 1e-9:
            worst = edges.min() if edges.min() < -1e-9 else edges.max()
            raise UserError(
                f"staking: this strategy is infeasible, it takes the share to {worst:.4g}: no "
                "value is reported for it"
            )
        return total + float(self.final(edges[-1]))


def integral(function: Callable[[Array], Array], low: Array, high: float) -> Array:
    """∫ of a smooth function from every `low` on, by 64 Gauss–Legendre nodes."""
    half = (high - low) / 2
    return np.asarray(function(low[..., None] + half[..., None] * (_NODES + 1)) @ _WEIGHTS * half)


def _ends(legs: Sequence[Leg], horizon: float) -> list[float]:
    return [*(leg.start for leg in legs[1:]), horizon]


def _positive(kind: str, **numbers: float) -> None:
    for name, number in numbers.items():
        if not 0 < number < math.inf:
            raise UserError(f"{kind}: {name} must be finite and > 0, got {number}")
