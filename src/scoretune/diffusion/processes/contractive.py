"""Contractive processes (arXiv 2401.13115): noising that grows the signal, so that sampling,
which runs backwards, contracts.

OU, VP and sub-VP with the sign of their drift turned. ContractiveOU and ContractiveVP never destroy
the signal: σ/α stays below a constant, so a sample that starts from N(0, prior_std²) keeps a bias
unless the data's variance is far below that constant squared. ContractiveSubVP has no such limit.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scoretune.diffusion.processes.constants import LinearBeta, check_positive


@dataclass(frozen=True)
class ContractiveOU:
    """dx = θ x dt + σ̄ dw on [0, horizon]: α = e^{θt}, σ = σ̄ √((e^{2θt} − 1)/2θ).

    σ/α < σ̄/√(2θ) at every time. The default leaves data of variance 1 with a signal of 1/50.
    """

    theta: float = 1.0
    sigma_bar: float = 10.0
    horizon: float = 3.0

    def __post_init__(self) -> None:
        check_positive(self)

    @property
    def prior_std(self) -> float:
        return self._stationary * math.sqrt(math.expm1(2 * self.theta * self.horizon))

    @property
    def _stationary(self) -> float:
        return self.sigma_bar / math.sqrt(2 * self.theta)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(self.theta * t)

    def sigma(self, t: Tensor) -> Tensor:
        return self._stationary * torch.sqrt(torch.expm1(2 * self.theta * t))

    def sde(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(f, g²) = (θ, σ̄²)."""
        return torch.full_like(t, self.theta), torch.full_like(t, self.sigma_bar**2)

    def time(self, ratio: Tensor) -> Tensor:
        """t = −ln(1 − 2θρ²/σ̄²)/2θ."""
        return -torch.log1p(-((ratio / self._stationary) ** 2)) / (2 * self.theta)


@dataclass(frozen=True)
class _Growing(LinearBeta):
    """dx = β/2 x dt + …: the signal grows as α = e^{B/2}."""

    beta_min: float = 0.01
    beta_max: float = 8.0

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(self.log_decay(t) / 2)


@dataclass(frozen=True)
class ContractiveVP(_Growing):
    """dx = β/2 x dt + √β dw on [0, 1]: α = e^{B/2}, σ = √(e^B − 1), σ/α < 1."""

    @property
    def prior_std(self) -> float:
        return math.sqrt(math.expm1(self.whole_decay))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(torch.expm1(self.log_decay(t)))

    def sde(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(f, g²) = (β/2, β)."""
        return self.beta(t) / 2, self.beta(t)

    def time(self, ratio: Tensor) -> Tensor:
        """Where B = −ln(1 − ρ²)."""
        return self.time_of_decay(-torch.log1p(-(ratio**2)))


@dataclass(frozen=True)
class ContractiveSubVP(_Growing):
    """dx = β/2 x dt + √(β(e^{2B} − 1)) dw on [0, 1]: α = e^{B/2}, σ = e^B − 1, σ/α = 2 sinh(B/2).

    The contractive process that works in practice: σ/α grows without a limit. The default is the
    paper's for MNIST; for CIFAR-10 it takes β from 1 to 8.
    """

    @property
    def prior_std(self) -> float:
        return math.expm1(self.whole_decay)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.expm1(self.log_decay(t))

    def sde(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(f, g²) = (β/2, β(e^{2B} − 1))."""
        return self.beta(t) / 2, self.beta(t) * torch.expm1(2 * self.log_decay(t))

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(α', σ') = (αβ/2, β e^B): at t = 0, unlike fσ + g²/2σ, no 0/0."""
        beta = self.beta(t)
        return beta / 2 * self.alpha(t), beta * torch.exp(self.log_decay(t))

    def time(self, ratio: Tensor) -> Tensor:
        """Where B = 2 asinh(ρ/2)."""
        return self.time_of_decay(2 * torch.asinh(ratio / 2))
