"""Pair trading with log utility: hold a mean-reverting spread, in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scoretune.control.policies import GaussianLinear
from scoretune.control.sde import ControlledSDE
from scoretune.core.errors import UserError


class PairTrading(ControlledSDE):
    """A spread dX = k(θ−X)dt + ς dW and wealth dw/w = a[(k(θ−X)+c)dt + ς dW] + r_f dt.

    k = `mean_reversion`, θ = `level`, ς = `volatility`, c = `drift`, r_f = `risk_free`; the action
    a is the share of wealth in the spread, the reward rate is log w (the spread model of
    Mudchanatongsuk, Primbs and Wong, 2008, with log utility). The state is (X, log w): Euler's
    steps then keep wealth positive. The policy sees X alone, because with log utility wealth
    doesn't matter. X_0 has the spread's stationary law, w_0 = 1.
    """

    state_dim = 2

    def __init__(
        self,
        *,
        mean_reversion: float = 1.0,
        level: float = 0.1,
        volatility: float = 0.3,
        drift: float = 0.05,
        risk_free: float = 0.01,
        discount: float = 0.5,
        temperature: float = 0.02,
    ) -> None:
        for name, number in locals().items():
            if name != "self" and not math.isfinite(number):
                raise UserError(f"PairTrading: {name} must be finite, got {number}")
        if min(mean_reversion, volatility, discount) <= 0 or temperature < 0:
            raise UserError(
                "PairTrading: mean_reversion, volatility and discount must be > 0, temperature >= 0"
            )
        self.mean_reversion, self.level, self.volatility = mean_reversion, level, volatility
        self.premium, self.risk_free = drift, risk_free  # `drift` is that of the whole state
        self.discount, self.temperature = discount, temperature

    def start(self, count: int, generator: torch.Generator) -> Tensor:
        std = self.volatility / math.sqrt(2 * self.mean_reversion)
        spread = self.level + std * torch.randn(count, generator=generator)
        return torch.stack([spread, torch.zeros(count)], dim=1)

    def observe(self, x: Tensor) -> Tensor:
        return x[:, :1]

    def drift(self, x: Tensor, a: Tensor) -> Tensor:
        pull = self.mean_reversion * (self.level - x[:, 0])
        share = a[:, 0]
        growth = share * (pull + self.premium) + self.risk_free
        return torch.stack([pull, growth - (share * self.volatility) ** 2 / 2], dim=1)

    def diffusion(self, x: Tensor, a: Tensor) -> Tensor:
        """One noise drives both, [B, 2, 1]."""
        spread = torch.full_like(a[:, 0], self.volatility)
        return torch.stack([spread, self.volatility * a[:, 0]], dim=1).unsqueeze(-1)

    def reward(self, x: Tensor, a: Tensor) -> Tensor:
        return x[:, 1]

    def optimum(self) -> Evaluation:
        """N(m(x)/ς², γρ/ς²) with m(x) = k(θ−x) + c: Merton's share, blurred."""
        variance = self.volatility**2
        offset = self.mean_reversion * self.level + self.premium
        return self.evaluate(
            -self.mean_reversion / variance,
            offset / variance,
            self.temperature * self.discount / variance,
        )

    def evaluate(self, slope: float, intercept: float, variance: float) -> Evaluation:
        """The value of N(slope·x + intercept, variance), log w/ρ + ½F₂x² + F₁x + F₀."""
        if variance < 0 or (variance == 0 and self.temperature > 0):
            raise UserError(f"PairTrading: the variance of a policy must be > 0, got {variance}")
        k, rho, noise = self.mean_reversion, self.discount, self.volatility**2
        offset = k * self.level + self.premium
        entropy = math.log(2 * math.pi * math.e * variance) / 2 if variance > 0 else 0.0
        f2 = 2 / rho * (-k * slope - noise * slope**2 / 2) / (rho + 2 * k)
        cross = offset * slope - k * intercept - noise * slope * intercept
        f1 = (cross / rho + k * self.level * f2) / (rho + k)
        growth = offset * intercept + self.risk_free - noise * (intercept**2 + variance) / 2
        drifts = k * self.level * f1 + noise * f2 / 2
        f0 = (growth / rho + self.temperature * entropy + drifts) / rho
        return Evaluation(self, slope, intercept, variance, f2, f1, f0)

    def exact_value(self, policy: nn.Module) -> float | None:
        """η of a GaussianLinear."""
        if not isinstance(policy, GaussianLinear):
            return None
        numbers = float(policy.slope), float(policy.intercept), float(policy.variance)
        return self.evaluate(*numbers).objective


@dataclass(frozen=True)
class Evaluation:
    """A Gaussian-linear policy and its value log w/ρ + ½f₂x² + f₁x + f₀."""

    problem: PairTrading
    slope: float
    intercept: float
    variance: float
    f2: float
    f1: float
    f0: float

    def value(self, spread: float | Tensor, wealth: float | Tensor = 1.0) -> float | Tensor:
        """V(x, w)."""
        utility = torch.log(wealth) if isinstance(wealth, Tensor) else math.log(wealth)
        return utility / self.problem.discount + self._shape(spread)

    @property
    def objective(self) -> float:
        """η = E V(X_0, 1)."""
        p = self.problem
        square = p.level**2 + p.volatility**2 / (2 * p.mean_reversion)
        return self.f2 * square / 2 + self.f1 * p.level + self.f0

    def rate(self, spread: float | Tensor, a: float | Tensor) -> float | Tensor:
        """The little q-function, which doesn't depend on wealth."""
        p = self.problem
        pull, noise = p.mean_reversion * (p.level - spread), p.volatility**2
        growth = a * (pull + p.premium) + p.risk_free - noise * a**2 / 2
        moving = pull * (self.f2 * spread + self.f1) + noise * self.f2 / 2
        return growth / p.discount + moving - p.discount * self._shape(spread)

    def _shape(self, x: float | Tensor) -> float | Tensor:
        return self.f2 * x**2 / 2 + self.f1 * x + self.f0
