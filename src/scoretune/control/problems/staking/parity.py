"""Trading with friction and a target: risk control, and a share that is kept in parity.

Linear-quadratic, so everything is a formula. The objectives are our reconstruction of "risk
control" and "stake parity" in the abstract of arXiv 2207.12581.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from scoretune.control.problems.staking.problem import GrowingSupply, PowerSupply
from scoretune.core.errors import UserError


class Quadratic(NamedTuple):
    """V(x, p) = −½ax² + bxp + ½cp² + dx + ep + f."""

    a: float
    b: float
    c: float
    d: float
    e: float
    f: float


@dataclass(frozen=True, kw_only=True)
class RiskControl:
    """Infinite horizon: dX = (ν + λX)dt, dP = κ(p̄ − P)dt + σdW, and the reward a year

        −Pν + ℓX − (η/2)ν² − (ρ/2)(X − x̄)².

    `growth` λ < β/2 of the supply, `utility` ℓ, `friction` η > 0, `risk` ρ ≥ 0 around `target` x̄,
    `reversion` κ, `mean_price` p̄, `volatility` σ.
    """

    discount: float = 0.2
    growth: float = 0.05
    utility: float = 0.15
    friction: float = 1.0
    risk: float = 0.1
    target: float = 5.0
    reversion: float = 1.0
    mean_price: float = 0.9
    volatility: float = 0.2

    def __post_init__(self) -> None:
        if not (self.discount > 0 and self.friction > 0 and self.risk >= 0):
            raise UserError(
                "risk control: discount and friction must be > 0, risk >= 0, got "
                f"{self.discount}, {self.friction}, {self.risk}"
            )
        if not self.growth < self.discount / 2:
            raise UserError(
                f"risk control: growth must be < discount/2 = {self.discount / 2:g}, got "
                f"{self.growth}"
            )
        if self.reversion < 0 or self.volatility < 0:
            raise UserError("risk control: reversion and volatility must be >= 0")

    def solution(self) -> Quadratic:
        """The coefficients of V, a ≥ 0 being the stabilising root."""
        beta, lam, eta, rho = self.discount, self.growth, self.friction, self.risk
        kappa, mean = self.reversion, self.mean_price
        gap = beta - 2 * lam
        a = eta / 2 * (math.sqrt(gap**2 + 4 * rho / eta) - gap)
        b = a / eta / (beta + kappa - lam + a / eta)
        c = (b - 1) ** 2 / (eta * (beta + 2 * kappa))
        d = (self.utility + rho * self.target + kappa * mean * b) / (beta - lam + a / eta)
        e = ((b - 1) * d / eta + kappa * mean * c) / (beta + kappa)
        f = d**2 / (2 * eta) - rho * self.target**2 / 2 + kappa * mean * e
        return Quadratic(a, b, c, d, e, (f + self.volatility**2 * c / 2) / beta)

    def value(self, x: float, p: float) -> float:
        """V(x, p) of the best strategy."""
        v = self.solution()
        return -v.a * x**2 / 2 + v.b * x * p + v.c * p**2 / 2 + v.d * x + v.e * p + v.f

    def rate(self, x: float, p: float) -> float:
        """ν = (−ax + (b − 1)p + d)/η."""
        v = self.solution()
        return (-v.a * x + (v.b - 1) * p + v.d) / self.friction

    def residual(self, x: float, p: float) -> float:
        """The Hamilton–Jacobi–Bellman equation at (x, p), 0 for a solution."""
        v = self.solution()
        v_x, v_p = -v.a * x + v.b * p + v.d, v.b * x + v.c * p + v.e
        best = (v_x - p) ** 2 / (2 * self.friction)
        reward = self.utility * x - self.risk / 2 * (x - self.target) ** 2
        drift = self.growth * x * v_x + self.reversion * (self.mean_price - p) * v_p
        noise = self.volatility**2 * v.c / 2
        return best + reward + drift + noise - self.discount * self.value(x, p)

    def blurred(self, x: float, p: float, *, std: float) -> float:
        """The value of the best rate with fresh Gaussian noise of that std: V − η·std²/(2β)."""
        return self.value(x, p) - self.friction * std**2 / (2 * self.discount)


@dataclass(frozen=True, kw_only=True)
class StakeParity:
    """Keep Z = X − ϱN at 0: dZ = (ν + λZ)dt + σdW at the cost ∫e^{−βt}(qZ² + ην²)dt."""

    discount: float = 0.2
    growth: float = 0.05
    weight: float = 1.0
    friction: float = 0.5
    volatility: float = 0.3

    def __post_init__(self) -> None:
        if not (self.discount > 0 and self.friction > 0 and self.weight > 0):
            raise UserError("stake parity: discount, friction and weight must be > 0")

    @property
    def curvature(self) -> float:
        """K, of the cost KZ² + Kσ²/β."""
        gap = self.discount - 2 * self.growth
        root = math.sqrt(gap**2 + 4 * self.weight / self.friction)
        return self.friction / 2 * (root - gap)

    @property
    def gain(self) -> float:
        """ν = −gain·Z."""
        return self.curvature / self.friction

    @property
    def reverts(self) -> bool:
        """Whether λ − gain < 0, which is q/η > λ(β − λ)."""
        return self.weight / self.friction > self.growth * (self.discount - self.growth)

    def cost(self, z: float) -> float:
        """Of the best strategy from Z = z."""
        return self.curvature * (z**2 + self.volatility**2 / self.discount)

    def blurred_cost(self, gain: float, std: float, square: float = 1.0) -> float:
        """Of ν = −gain·Z + std·noise from E Z² = square."""
        rate = self.discount - 2 * (self.growth - gain)
        if rate <= 0:
            raise UserError(f"stake parity: a gain of {gain} has no finite cost")
        moving = (self.weight + self.friction * gain**2) * (
            square + self.volatility**2 / self.discount
        )
        return moving / rate + self.friction * std**2 / self.discount

    def curvature_at(
        self, t: float, *, horizon: float, supply: PowerSupply | GrowingSupply, steps: int = 400
    ) -> float:
        """K(t), K(T) = 0, where N′/N varies: K′ = −(q − K²/η + 2(N′/N)K − βK), by Runge–Kutta."""

        def slope(s: float, k: float) -> float:
            growth = float(supply.growth(np.array(s)))
            return -(self.weight - k**2 / self.friction + (2 * growth - self.discount) * k)

        h, s, k = (t - horizon) / steps, horizon, 0.0
        for _ in range(steps):
            k1 = slope(s, k)
            k2 = slope(s + h / 2, k + h / 2 * k1)
            k3 = slope(s + h / 2, k + h / 2 * k2)
            k4 = slope(s + h, k + h * k3)
            k, s = k + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), s + h
        return k


def time_to_parity(*, distance: float, cap: float, growth: float) -> float:
    """t* = ln(cap/(cap − λ|Z|))/λ of ν = −cap·sign(Z); ∞ if λ|Z| ≥ cap."""
    if cap <= 0:
        raise UserError(f"stake parity: cap must be > 0, got {cap}")
    if growth == 0:
        return abs(distance) / cap
    if growth * abs(distance) >= cap:
        return math.inf
    return math.log(cap / (cap - growth * abs(distance))) / growth


def capped_cost(*, distance: float, cap: float, growth: float, discount: float) -> float:
    """∫₀^{t*} e^{−βt}Z² dt of ν = −cap·sign(Z) until Z = 0, where it stays."""
    end = time_to_parity(distance=distance, cap=cap, growth=growth)
    if growth <= 0 or math.isinf(end):
        raise UserError(
            f"stake parity: it is not reached, growth·distance must be < cap = {cap}, growth > 0"
        )
    level = cap / growth
    rest = abs(distance) - level

    def faded(rate: float) -> float:
        return end if rate == 0 else -math.expm1(-rate * end) / rate

    cross = 2 * level * rest * faded(discount - growth)
    return level**2 * faded(discount) + cross + rest**2 * faded(discount - 2 * growth)
