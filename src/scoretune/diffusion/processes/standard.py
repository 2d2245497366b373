"""The catalogue of noising processes: one frozen dataclass each.

A process offers `alpha(t)`, `sigma(t)` (any shape, dtype preserved), `horizon` and `prior_std`,
with data at t = 0 and noise at the horizon. It may add closed forms: `sde(t) -> (f, g²)` or
`rates(t) -> (α', σ')`, whichever is finite where it is needed, and `time(ratio)`, the time at which
σ/α is that. Those whose drift is turned round are in `contractive`, a network's training table is
in `tabulated`.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scoretune.diffusion.processes.constants import LinearBeta, check_positive


@dataclass(frozen=True)
class _Decaying(LinearBeta):
    """dx = −β/2 x dt + …: the signal decays as α = e^{−B/2}."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    prior_std = 1.0

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-self.log_decay(t) / 2)


@dataclass(frozen=True)
class VP(_Decaying):
    """Variance preserving, linear β on [0, 1]: dx = −β/2 x dt + √β dw (arXiv 2011.13456).

    B(t) = β_min t + (β_max − β_min) t²/2, α = e^{−B/2}, σ = √(1 − e^{−B}).
    """

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-self.log_decay(t)))

    def sde(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(f, g²) = (−β/2, β)."""
        beta = self.beta(t)
        return -beta / 2, beta

    def time(self, ratio: Tensor) -> Tensor:
        """Where B = ln(1 + ρ²)."""
        return self.time_of_decay(torch.log1p(ratio**2))


@dataclass(frozen=True)
class RectifiedFlow:
    """Straight paths x = (1−t) x0 + t ε on [0, horizon] (arXiv 2209.03003); SD3 and FLUX.

    f = −1/(1−t) and g² = 2t/(1−t) are infinite at t = 1; (α', σ') = (−1, 1) never are. A horizon
    below 1 is for networks that never saw pure noise.
    """

    horizon: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.horizon <= 1:
            raise ValueError(f"RectifiedFlow needs a horizon in (0, 1], got {self.horizon}")

    @property
    def prior_std(self) -> float:
        return self.horizon

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(α', σ') = (−1, 1)."""
        return -torch.ones_like(t), torch.ones_like(t)

    def time(self, ratio: Tensor) -> Tensor:
        """t = ρ/(1 + ρ), which is 1 at ρ = ∞."""
        return 1 / (1 + 1 / ratio)


@dataclass(frozen=True)
class SubVP(_Decaying):
    """Sub-VP, linear β on [0, 1] (arXiv 2011.13456): α = e^{−B/2}, σ = 1 − e^{−B}."""

    def sigma(self, t: Tensor) -> Tensor:
        return -torch.expm1(-self.log_decay(t))

    def sde(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(f, g²) = (−β/2, β(1 − e^{−2B}))."""
        beta = self.beta(t)
        return -beta / 2, -beta * torch.expm1(-2 * self.log_decay(t))

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(α', σ') = (−αβ/2, β e^{−B}): at t = 0, unlike fσ + g²/2σ, no 0/0."""
        beta = self.beta(t)
        return -beta / 2 * self.alpha(t), beta * torch.exp(-self.log_decay(t))

    def time(self, ratio: Tensor) -> Tensor:
        """Where B = 2 asinh(ρ/2), since ρ = 2 sinh(B/2)."""
        return self.time_of_decay(2 * torch.asinh(ratio / 2))


@dataclass(frozen=True)
class OU:
    """Ornstein–Uhlenbeck dx = −θ x dt + σ̄ dw on [0, horizon] (arXiv 2402.07487).

    α = e^{−θt}, σ = σ̄ √((1 − e^{−2θt})/2θ); the prior is the stationary law, std σ̄/√(2θ).
    """

    theta: float = 1.0
    sigma_bar: float = math.sqrt(2)
    horizon: float = 5.0

    def __post_init__(self) -> None:
        check_positive(self)

    @property
    def prior_std(self) -> float:
        return self.sigma_bar / math.sqrt(2 * self.theta)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-self.theta * t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.prior_std * torch.sqrt(-torch.expm1(-2 * self.theta * t))

    def sde(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(f, g²) = (−θ, σ̄²)."""
        return torch.full_like(t, -self.theta), torch.full_like(t, self.sigma_bar**2)

    def time(self, ratio: Tensor) -> Tensor:
        """t = ln(1 + 2θρ²/σ̄²)/2θ."""
        return torch.log1p((ratio / self.prior_std) ** 2) / (2 * self.theta)


@dataclass(frozen=True)
class _Exploding:
    """α = 1 on [0, 1], with noise from σ_min to σ_max."""

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    horizon = 1.0

    def __post_init__(self) -> None:
        check_positive(self)
        if not self.sigma_min < self.sigma_max:
            raise ValueError(
                f"{type(self).__name__} needs finite constants > 0 in increasing order, got {self}"
            )

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@dataclass(frozen=True)
class VE(_Exploding):
    """Variance exploding on [0, 1] (arXiv 2402.07487): α = 1, σ = σ_min √(r^{2t} − 1).

    r = σ_max/σ_min. σ(0) = 0 exactly, so the prior std is √(σ_max² − σ_min²). `GeometricVE` is the
    form of the score_sde code.
    """

    @property
    def prior_std(self) -> float:
        return math.sqrt(self.sigma_max**2 - self.sigma_min**2)

    @property
    def _rate(self) -> float:
        return 2 * math.log(self.sigma_max / self.sigma_min)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * torch.sqrt(torch.expm1(self._rate * t))

    def sde(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(f, g²) = (0, 2 ln r · σ_min² r^{2t})."""
        return torch.zeros_like(t), self.sigma_min**2 * self._rate * torch.exp(self._rate * t)

    def time(self, ratio: Tensor) -> Tensor:
        """t = ln(1 + (ρ/σ_min)²)/(2 ln r)."""
        return torch.log1p((ratio / self.sigma_min) ** 2) / self._rate


@dataclass(frozen=True)
class GeometricVE(_Exploding):
    """Variance exploding on [0, 1] as in the score_sde code (arXiv 2011.13456): σ = σ_min r^t.

    The same SDE as `VE`, from data that are taken as blurred by σ_min already: σ(0) = σ_min.
    """

    @property
    def prior_std(self) -> float:
        return self.sigma_max

    @property
    def _log_growth(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * torch.exp(self._log_growth * t)

    def sde(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(f, g²) = (0, 2 ln r · σ²)."""
        return torch.zeros_like(t), 2 * self._log_growth * self.sigma(t) ** 2

    def time(self, ratio: Tensor) -> Tensor:
        """t = ln(ρ/σ_min)/ln r."""
        return torch.log(ratio / self.sigma_min) / self._log_growth


@dataclass(frozen=True)
class EDM:
    """α = 1, σ = t on [0, sigma_max] (arXiv 2206.00364)."""

    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        check_positive(self)

    @property
    def horizon(self) -> float:
        return self.sigma_max

    @property
    def prior_std(self) -> float:
        return self.sigma_max

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(α', σ') = (0, 1)."""
        return torch.zeros_like(t), torch.ones_like(t)

    def time(self, ratio: Tensor) -> Tensor:
        """t = ρ."""
        return ratio


@dataclass(frozen=True)
class Cosine:
    """Variance preserving with α ∝ cos (arXiv 2102.09672 eq. 17).

    α(t) = cos(π/2·(t+s)/(1+s)) / cos(π/2·s/(1+s)), s = 0.008. The horizon is the 0.9946 of
    arXiv 2206.00927, just short of α = 0.
    """

    offset: float = 0.008

    horizon = 0.9946
    prior_std = 1.0

    def __post_init__(self) -> None:
        check_positive(self)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(self._angle(t)) / math.cos(self._start)

    def sigma(self, t: Tensor) -> Tensor:
        # cos²a − cos²b = sin(b−a) sin(b+a): no cancellation near the data.
        beyond = math.pi / 2 * t / (1 + self.offset)
        product = torch.sin(beyond) * torch.sin(beyond + 2 * self._start)
        return torch.sqrt(product) / math.cos(self._start)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """α' by hand, σ' = −αα'/σ since α² + σ² = 1."""
        speed = -math.pi / 2 / (1 + self.offset) / math.cos(self._start)
        alpha_rate = speed * torch.sin(self._angle(t))
        return alpha_rate, -self.alpha(t) * alpha_rate / self.sigma(t)

    def time(self, ratio: Tensor) -> Tensor:
        """Where the angle is arccos(α cos(start)), α = 1/√(1 + ρ²)."""
        angle = torch.acos(math.cos(self._start) / torch.sqrt(1 + ratio**2))
        return (angle - self._start) * 2 / math.pi * (1 + self.offset)

    @property
    def _start(self) -> float:
        return math.pi / 2 * self.offset / (1 + self.offset)

    def _angle(self, t: Tensor) -> Tensor:
        return math.pi / 2 * (t + self.offset) / (1 + self.offset)
