"""Policies: modules from what they see [..., k] to a law of actions, or to (mean, std) [..., m]."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from scoretune.control.laws import Beta, Gaussian, Law, Squashed, TwoPoint
from scoretune.core.errors import UserError
from scoretune.shapes import check_batch


class GaussianLinear(nn.Module):
    """N(slope·x + intercept, variance), the variance the same everywhere.

    The learned numbers are coordinates around a reference: with z = S(x − c) the whitened
    observation and s the reference std, mean = s·(weight·z + bias) and std = s·e^{log_scale/√2}.
    At the reference the Fisher information of (weight, bias, log_scale) is the identity, so a plain
    gradient step is a natural one, and no number depends on the units of states or actions.
    """

    def __init__(
        self,
        observation_dim: int = 1,
        action_dim: int = 1,
        *,
        slope: float = 0.0,
        intercept: float = 0.0,
        variance: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 < variance < math.inf:
            raise UserError(f"the variance of a policy must be finite and > 0, got {variance}")
        scale = math.sqrt(variance)
        self.weight = nn.Parameter(torch.full((action_dim, observation_dim), slope / scale))
        self.bias = nn.Parameter(torch.full((action_dim,), intercept / scale))
        self.log_scale = nn.Parameter(torch.zeros(action_dim))
        self.centre: Tensor
        self.register_buffer("centre", torch.zeros(observation_dim))
        self.whitening: Tensor
        self.register_buffer("whitening", torch.eye(observation_dim))
        self.scale: Tensor
        self.register_buffer("scale", torch.full((action_dim,), scale))

    def forward(self, observation: Tensor) -> Gaussian:
        if observation.shape[-1] != self.weight.shape[1]:
            raise UserError(
                f"this GaussianLinear looks at {self.weight.shape[1]} numbers, the problem shows "
                f"{observation.shape[-1]} (time included where the horizon is finite)"
            )
        slope, intercept, std = self._law()
        mean = observation @ slope.T + intercept
        return Gaussian(mean, std.expand_as(mean))

    @property
    def slope(self) -> float | Tensor:
        """d mean / d observation: a float for one observation and one action, else [m, k]."""
        return _plain(self._law()[0])

    @property
    def intercept(self) -> float | Tensor:
        """The mean at observation 0: a float for one action, else [m]."""
        return _plain(self._law()[1])

    @property
    def variance(self) -> float | Tensor:
        """std²: a float for one action, else [m]."""
        return _plain(self._law()[2] ** 2)

    def coefficients(self) -> tuple[list[float], float, float]:
        """Slope, intercept and std, for one action."""
        slope: list[float] = torch.as_tensor(self.slope).flatten().tolist()
        return slope, float(self.intercept), math.sqrt(float(self.variance))

    def whiten(self, observation: Tensor, weight: Tensor) -> None:
        """Move the reference to this policy and to these observations [J, k], weighted [J].

        The policy itself stays the same.
        """
        check_batch(observation, weight=weight)
        with torch.no_grad():
            slope, intercept, std = self._law()
            fractions = (weight / weight.sum()).unsqueeze(-1)
            centre = (fractions * observation).sum(0)
            offset = observation - centre
            units = (fractions * offset**2).sum(0).sqrt()
            units = torch.where(units > 0, units, 1.0)
            correlation = (offset / units).T @ (fractions * offset / units)
            variances, axes = torch.linalg.eigh(correlation)
            # Where nothing varies the unit stays, rather than becoming infinitely small.
            deviations = torch.where(variances > 1e-6, variances, 1.0).sqrt()
            self.whitening.copy_((axes / deviations).T / units)
            self.centre.copy_(centre)
            self.scale.copy_(std)
            self.weight.copy_(slope * units @ (axes * deviations) / std.unsqueeze(-1))
            self.bias.copy_((intercept + slope @ centre) / std)
            self.log_scale.zero_()

    def _law(self) -> tuple[Tensor, Tensor, Tensor]:
        slope = self.scale.unsqueeze(-1) * self.weight @ self.whitening
        intercept = self.scale * self.bias - slope @ self.centre
        return slope, intercept, self.scale * torch.exp(self.log_scale / math.sqrt(2))


def act(policy: nn.Module, observation: Tensor) -> Law:
    """The law of the action, checked; a plain (mean, std) is that of a Gaussian."""
    law = policy(observation)
    if isinstance(law, Squashed | Beta | TwoPoint):
        return law
    if not (isinstance(law, tuple) and len(law) == 2 and all(isinstance(p, Tensor) for p in law)):
        raise UserError(
            "a policy must return (mean, std), two tensors [..., action_dim], or a law of "
            "scoretune.control.laws"
        )
    mean, std = cast(tuple[Tensor, Tensor], law)
    return Gaussian(mean, std.expand_as(mean))


def _plain(value: Tensor) -> float | Tensor:
    return float(value.detach()) if value.numel() == 1 else value.detach().clone()
