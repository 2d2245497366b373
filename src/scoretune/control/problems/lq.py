"""Linear-quadratic control in one dimension, with everything in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from scoretune.control.policies import GaussianLinear
from scoretune.control.sde import ControlledSDE
from scoretune.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class LQ(ControlledSDE):
    """dX = (AX + Ba) dt + (CX + Da) dW with the reward rate −(Mx²/2 + Rxa + Na²/2 + Px + Qa).

    The noise depends on the action. Discount ρ, entropy temperature γ, X_0 normal; the defaults are
    the benchmark of arXiv 1906.11392 and arXiv 2305.18901 (section of experiments).
    """

    A: float = -1.0
    B: float = 0.0
    C: float = 0.0
    D: float = 1.0
    M: float = 2.0
    N: float = 2.0
    R: float = 1.0
    P: float = 1.0
    Q: float = 2.0
    discount: float = 1.0
    temperature: float = 0.1
    start_mean: float = 0.0
    start_variance: float = 1.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if not math.isfinite(getattr(self, field.name)):
                raise UserError(f"LQ: {field.name} must be finite")
        if self.discount <= 0 or self.temperature < 0 or self.start_variance < 0:
            raise UserError(
                "LQ: discount must be > 0 (the horizon is infinite), temperature and "
                "start_variance >= 0"
            )

    def start(self, count: int, generator: torch.Generator) -> Tensor:
        noise = torch.randn(count, 1, generator=generator)
        return self.start_mean + math.sqrt(self.start_variance) * noise

    def drift(self, x: Tensor, a: Tensor) -> Tensor:
        return self.A * x + self.B * a

    def diffusion(self, x: Tensor, a: Tensor) -> Tensor:
        return self.C * x + self.D * a

    def reward(self, x: Tensor, a: Tensor) -> Tensor:
        quadratic = self.M / 2 * x**2 + self.R * x * a + self.N / 2 * a**2
        return -(quadratic + self.P * x + self.Q * a)[:, 0]

    def optimum(self) -> Evaluation:
        """The best policy, N(((k₂e−R)x + Bk₁ − Q)/n, γ/n) with n = N − k₂D² and e = B + CD.

        k₂ is the root of ρk₂ = (2A+C²)k₂ − M + (k₂e−R)²/n with n > 0 whose closed loop has finite
        discounted second moments.
        """
        e = self.B + self.C * self.D
        for k2 in self._roots():
            n = self.N - k2 * self.D**2
            if n <= 0:
                continue
            slope = (k2 * e - self.R) / n
            if not self._stable(slope):
                continue
            k1 = (self.P * n + self.Q * (k2 * e - self.R)) / (
                (self.A - self.discount) * n + self.B * (k2 * e - self.R)
            )
            return self.evaluate(slope, (self.B * k1 - self.Q) / n, self.temperature / n)
        raise UserError(
            f"{self} has no optimum: no root k2 of its Riccati equation has N − k2·D² > 0 and a "
            "stable closed loop; raise N, M or the discount"
        )

    def evaluate(self, slope: float, intercept: float, variance: float) -> Evaluation:
        """The value of N(slope·x + intercept, variance), ½K₂x² + K₁x + K₀."""
        if variance < 0 or (variance == 0 and self.temperature > 0):
            raise UserError(f"LQ: the variance of a policy must be > 0, got {variance}")
        if not self._stable(slope):
            raise UserError(
                f"LQ: a policy of slope {slope:.4g} has no finite value: its discounted second "
                "moment is infinite (2A + 2B·slope + (C + D·slope)² must be < the discount)"
            )
        rho, v = self.discount, variance
        a1, b1 = self.A + self.B * slope, self.B * intercept
        s1, s0 = self.C + self.D * slope, self.D * intercept
        r2 = -(self.M / 2 + self.R * slope + self.N / 2 * slope**2)
        r1 = -(self.R * intercept + self.N * slope * intercept + self.P + self.Q * slope)
        r0 = -(self.N / 2 * (intercept**2 + v) + self.Q * intercept)
        k2 = r2 / (rho / 2 - a1 - s1**2 / 2)
        k1 = (b1 * k2 + s1 * s0 * k2 + r1) / (rho - a1)
        noise = (s0**2 + self.D**2 * v) * k2 / 2
        k0 = (b1 * k1 + noise + r0 + self.temperature * _entropy(v)) / rho
        return Evaluation(self, slope, intercept, variance, k2, k1, k0)

    def exact_value(self, policy: nn.Module) -> float | None:
        """η of a GaussianLinear; −∞ where its discounted second moment is infinite."""
        if not isinstance(policy, GaussianLinear):
            return None
        slope, intercept = float(policy.slope), float(policy.intercept)
        if not self._stable(slope):
            return -math.inf
        return self.evaluate(slope, intercept, float(policy.variance)).objective

    def _stable(self, slope: float) -> bool:
        growth = 2 * (self.A + self.B * slope) + (self.C + self.D * slope) ** 2
        return growth < self.discount

    def _roots(self) -> list[float]:
        """Real roots of the Riccati equation times n, a quadratic (or less) in k₂."""
        e, gap = self.B + self.C * self.D, self.discount - 2 * self.A - self.C**2
        a = -(gap * self.D**2 + e**2)
        b = gap * self.N - self.M * self.D**2 + 2 * e * self.R
        c = self.M * self.N - self.R**2
        if a == 0:
            return [-c / b] if b != 0 else []
        inside = b**2 - 4 * a * c
        if inside < 0:
            return []
        # The form without cancellation: the larger root first, the other from their product.
        q = -(b + math.copysign(math.sqrt(inside), b)) / 2
        return [q / a, c / q] if q != 0 else [0.0]


@dataclass(frozen=True)
class Evaluation:
    """A Gaussian-linear policy on an LQ problem, and its value ½k₂x² + k₁x + k₀."""

    problem: LQ
    slope: float
    intercept: float
    variance: float
    k2: float
    k1: float
    k0: float

    def value(self, x: float | Tensor) -> float | Tensor:
        """V(x)."""
        return self.k2 * x**2 / 2 + self.k1 * x + self.k0

    @property
    def objective(self) -> float:
        """η = E V(X_0)."""
        mean, variance = self.problem.start_mean, self.problem.start_variance
        return self.k2 * (mean**2 + variance) / 2 + self.k1 * mean + self.k0

    def rate(self, x: float | Tensor, a: float | Tensor) -> float | Tensor:
        """The little q-function q(x, a) = b·V' + ½σ²V'' + r − ρV."""
        p = self.problem
        square = p.A * self.k2 + p.C**2 * self.k2 / 2 - p.M / 2 - p.discount * self.k2 / 2
        cross = p.B * self.k2 + p.C * p.D * self.k2 - p.R
        acting = p.D**2 * self.k2 / 2 - p.N / 2
        linear = (p.A * self.k1 - p.P - p.discount * self.k1) * x + (p.B * self.k1 - p.Q) * a
        return square * x**2 + cross * x * a + acting * a**2 + linear - p.discount * self.k0

    def moments(self) -> tuple[float, float]:
        """E X and E X² under the normalised discounted occupation measure."""
        p, rho = self.problem, self.problem.discount
        a1, b1 = p.A + p.B * self.slope, p.B * self.intercept
        s1, s0 = p.C + p.D * self.slope, p.D * self.intercept
        square = p.start_mean**2 + p.start_variance
        first = (rho * p.start_mean + b1) / (rho - a1)
        second = rho * square + 2 * b1 * first + 2 * s1 * s0 * first + s0**2
        return first, (second + p.D**2 * self.variance) / (rho - 2 * a1 - s1**2)


def _entropy(variance: float) -> float:
    """Of N(·, variance); 0 stands for a deterministic policy, which only γ = 0 admits."""
    return math.log(2 * math.pi * math.e * variance) / 2 if variance > 0 else 0.0
