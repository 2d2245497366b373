"""Trading with friction and a target: risk control, and a share that is kept in parity.

Linear-quadratic, so everything is a formula. Both are `ControlledSDE`s that can be learned. The
objectives are our reconstruction of "risk control" and "stake parity" in the abstract of
arXiv 2207.12581.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from scoretune.control.policies import GaussianLinear
from scoretune.control.problems.quadratic_value import Array, Linear
from scoretune.control.problems.staking.problem import GrowingSupply, PowerSupply
from scoretune.control.sde import ControlledSDE
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
class RiskControl(ControlledSDE):
    """Infinite horizon: dX = (ν + λX)dt, dP = κ(p̄ − P)dt + σdW, and the reward a year

        −Pν + ℓX − (η/2)ν² − (ρ/2)(X − x̄)².

    `growth` λ < β/2 of the supply, `utility` ℓ, `friction` η > 0, `risk` ρ ≥ 0 around `target` x̄,
    `reversion` κ, `mean_price` p̄, `volatility` σ. As something to learn, the state is (X, P), the
    action ν; X_0 is normal around x̄ with the std `start_spread`, P_0 stationary.
    """

    state_dim = 2

    discount: float = 0.2
    growth: float = 0.05
    utility: float = 0.15
    friction: float = 1.0
    risk: float = 0.1
    target: float = 5.0
    reversion: float = 1.0
    mean_price: float = 0.9
    volatility: float = 0.2
    temperature: float = 0.02
    start_spread: float = 2.0

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
        if self.temperature < 0 or self.start_spread < 0:
            raise UserError("risk control: temperature and start_spread must be >= 0")

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

    def start(self, count: int, generator: torch.Generator) -> Tensor:
        noise = torch.randn(count, 2, generator=generator)
        return torch.tensor(self._centre) + noise @ torch.tensor(self._spread).sqrt()

    def drift(self, x: Tensor, a: Tensor) -> Tensor:
        stake = a[:, 0] + self.growth * x[:, 0]
        return torch.stack([stake, self.reversion * (self.mean_price - x[:, 1])], dim=1)

    def diffusion(self, x: Tensor, a: Tensor) -> Tensor:
        """The price's alone."""
        return torch.tensor([0.0, self.volatility]).expand_as(x)

    def reward(self, x: Tensor, a: Tensor) -> Tensor:
        stake, price, rate = x[:, 0], x[:, 1], a[:, 0]
        kept = self.utility * stake - self.risk / 2 * (stake - self.target) ** 2
        return kept - price * rate - self.friction / 2 * rate**2

    @property
    def _centre(self) -> list[float]:
        return [self.target, self.mean_price]

    @property
    def _spread(self) -> list[list[float]]:
        """Covariance of (X_0, P_0)."""
        price = self.volatility**2 / (2 * self.reversion) if self.reversion else 0.0
        return [[self.start_spread**2, 0.0], [0.0, price]]

    def objective(self, slope: Sequence[float], intercept: float, std: float = 0.0) -> float:
        """η of ν = slope·(X, P) + intercept + std·noise; −∞ where it has no value."""
        row, risk, eta = np.array(slope, float), self.risk, self.friction
        closed = Linear(
            matrix=np.array([row, [0.0, -self.reversion]]) + np.diag([self.growth, 0.0]),
            offset=np.array([intercept, self.reversion * self.mean_price]),
            spread=np.diag([0.0, self.volatility**2]),
            square=-eta / 2 * np.outer(row, row) - np.diag([risk / 2, 0.0]) - _symmetric(row),
            slope=np.array([self.utility + risk * self.target, -intercept]) - eta * intercept * row,
            constant=-eta / 2 * (intercept**2 + std**2) - risk / 2 * self.target**2,
        )
        return _expected(closed, self, np.array(self._centre), np.array(self._spread), std)

    @property
    def best(self) -> float:
        """η of the best rate."""
        v = self.solution()
        return self.objective(
            [-v.a / self.friction, (v.b - 1) / self.friction], v.d / self.friction
        )

    def exact_value(self, policy: nn.Module) -> float | None:
        """η of a GaussianLinear."""
        if not isinstance(policy, GaussianLinear):
            return None
        return self.objective(*policy.coefficients())


def _symmetric(row: Array) -> Array:
    """Of −Pν: the matrix of p·(row·x), made symmetric."""
    product = np.outer(row, [0.0, 1.0])
    half: Array = (product + product.T) / 2
    return half


def _expected(
    closed: Linear, problem: RiskControl | StakeParity, centre: Array, spread: Array, std: float
) -> float:
    """E V(x₀) for x₀ of this mean and covariance, with the bonus for the entropy of N(·, std²).

    A rate without noise (std 0) has no entropy, and gets no bonus.
    """
    value = closed.value(problem.discount)
    if value is None:
        return -math.inf
    square, slope, constant = value
    total = centre @ square @ centre + np.trace(square @ spread) + slope @ centre + constant
    if problem.temperature > 0 and std > 0:
        entropy = math.log(2 * math.pi * math.e * std**2) / 2
        total += problem.temperature * entropy / problem.discount
    return float(total)


@dataclass(frozen=True, kw_only=True)
class StakeParity(ControlledSDE):
    """Keep Z = X − ϱN at 0: dZ = (ν + λZ)dt + σdW at the cost ∫e^{−βt}(qZ² + ην²)dt.

    As something to learn, Z_0 is standard normal and the reward is minus the cost.
    """

    discount: float = 0.2
    growth: float = 0.05
    weight: float = 1.0
    friction: float = 0.5
    volatility: float = 0.3
    temperature: float = 0.02

    def __post_init__(self) -> None:
        if not (self.discount > 0 and self.friction > 0 and self.weight > 0):
            raise UserError("stake parity: discount, friction and weight must be > 0")
        if self.temperature < 0:
            raise UserError("stake parity: temperature must be >= 0")

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

    def start(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.randn(count, 1, generator=generator)

    def drift(self, x: Tensor, a: Tensor) -> Tensor:
        return a + self.growth * x

    def diffusion(self, x: Tensor, a: Tensor) -> Tensor:
        return torch.full_like(x, self.volatility)

    def reward(self, x: Tensor, a: Tensor) -> Tensor:
        return -(self.weight * x**2 + self.friction * a**2)[:, 0]

    def objective(self, slope: Sequence[float], intercept: float, std: float = 0.0) -> float:
        """η of ν = slope·Z + intercept + std·noise; −∞ where it has no value."""
        (gain,), eta = slope, self.friction
        closed = Linear(
            matrix=np.array([[self.growth + gain]]),
            offset=np.array([intercept]),
            spread=np.array([[self.volatility**2]]),
            square=np.array([[-self.weight - eta * gain**2]]),
            slope=np.array([-2 * eta * gain * intercept]),
            constant=-eta * (intercept**2 + std**2),
        )
        return _expected(closed, self, np.zeros(1), np.eye(1), std)

    @property
    def best(self) -> float:
        """η of the best rate."""
        return -self.cost(1.0)

    def exact_value(self, policy: nn.Module) -> float | None:
        """η of a GaussianLinear."""
        if not isinstance(policy, GaussianLinear):
            return None
        return self.objective(*policy.coefficients())

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
