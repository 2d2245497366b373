"""Policies for actions in [−cap, cap]: squashed Gaussian, Beta, bang-bang with a learned surface.

Each is linear in what it sees, in coordinates that follow the observations. Saturation is how they
fail: once the same end is taken at every point with certainty, no action differs from it, there is
nothing to learn from, and the gradient vanishes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from scoretune.control.laws import Beta, Bounded, Squashed, TwoPoint
from scoretune.core.errors import UserError
from scoretune.shapes import check_batch

STUCK = 0.02
"""A std of an action, and a distance of its mean to an end, in caps, that are as good as 0."""
MOST_MEAN, LEAST_STD = 4.0, 0.05
"""Of u in cap·tanh u; beyond them ratios of probabilities overflow in single precision."""
MOST_LOGIT = 12.0


class StandardizedLinear(nn.Module):
    """weight·(x − centre)/unit + bias, of observations [..., k], [..., outputs]; 0 at first."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.centre: Tensor
        self.register_buffer("centre", torch.zeros(inputs))
        self.unit: Tensor
        self.register_buffer("unit", torch.ones(inputs))

    def forward(self, observation: Tensor) -> Tensor:
        if observation.shape[-1] != self.weight.shape[1]:
            raise UserError(
                f"this policy looks at {self.weight.shape[1]} numbers, the problem shows "
                f"{observation.shape[-1]} (time included where the horizon is finite)"
            )
        return functional.linear((observation - self.centre) / self.unit, self.weight, self.bias)

    @property
    def slope(self) -> Tensor:
        """d output / d observation, [outputs, k]."""
        return (self.weight / self.unit).detach().clone()

    @property
    def intercept(self) -> Tensor:
        """The output at observation 0, [outputs]."""
        return (self.bias - (self.weight / self.unit) @ self.centre).detach().clone()

    def standardize(self, observation: Tensor, weight: Tensor) -> None:
        """Move centre and unit to observations [J, k], weighted [J]; the function stays."""
        check_batch(observation, weight=weight)
        with torch.no_grad():
            slope, intercept = self.slope, self.intercept
            fractions = (weight / weight.sum()).unsqueeze(-1)
            centre = (fractions * observation).sum(0)
            unit = (fractions * (observation - centre) ** 2).sum(0).sqrt()
            self.centre.copy_(centre)
            self.unit.copy_(torch.where(unit > 0, unit, 1.0))
            self.weight.copy_(slope * self.unit)
            self.bias.copy_(intercept + slope @ centre)


class SquashedGaussian(nn.Module):
    """cap·tanh u, u normal with a mean that is linear in what is seen and one std everywhere."""

    def __init__(
        self, observation_dim: int = 1, action_dim: int = 1, *, cap: float = 1.0, std: float = 1.0
    ) -> None:
        super().__init__()
        if not 0 < std < math.inf:
            raise UserError(f"the std of a policy must be finite and > 0, got {std}")
        self.cap = _checked(cap)
        self.surface = StandardizedLinear(observation_dim, action_dim)
        self.log_std = nn.Parameter(torch.full((action_dim,), math.log(std)))

    def forward(self, observation: Tensor) -> Squashed:
        mean = _limited(self.surface(observation), MOST_MEAN)
        std = (LEAST_STD + torch.exp(self.log_std)).expand_as(mean)
        return Squashed(mean, std, torch.full_like(mean, self.cap))


class BetaLinear(nn.Module):
    """cap·(2B − 1), B ~ Beta(1 + softplus f, 1 + softplus g), f and g linear in what is seen."""

    def __init__(self, observation_dim: int = 1, action_dim: int = 1, *, cap: float = 1.0) -> None:
        super().__init__()
        self.cap = _checked(cap)
        self.surface = StandardizedLinear(observation_dim, 2 * action_dim)

    def forward(self, observation: Tensor) -> Beta:
        shape = 1 + functional.softplus(self.surface(observation)) + 1e-4
        alpha, beta = shape.chunk(2, dim=-1)
        return Beta(alpha, beta, torch.full_like(alpha, self.cap))


class BangBang(nn.Module):
    """cap on one side of a surface and −cap on the other, surely far from it and at random near it.

    The surface is where a linear function of what is seen is 0; the function is the logit.
    """

    def __init__(self, observation_dim: int = 1, action_dim: int = 1, *, cap: float = 1.0) -> None:
        super().__init__()
        self.cap = _checked(cap)
        self.surface = StandardizedLinear(observation_dim, action_dim)

    def forward(self, observation: Tensor) -> TwoPoint:
        logit = _limited(self.surface(observation), MOST_LOGIT)
        return TwoPoint(logit, torch.full_like(logit, self.cap))


def saturation(law: Bounded, weight: Tensor) -> tuple[float, float]:
    """Shares of the weighted points [J] at which the law is stuck at −cap, and at cap."""
    mean, std = _moments(law)
    stuck, weights = std < STUCK, weight / weight.sum()
    low = ((mean < STUCK - 1) & stuck).all(-1)
    high = ((mean > 1 - STUCK) & stuck).all(-1)
    return float((weights * low).sum()), float((weights * high).sum())


def _moments(law: Bounded) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of a/cap, [..., m]."""
    if isinstance(law, TwoPoint):
        p = torch.sigmoid(law.logit)
        return 2 * p - 1, 2 * (p * (1 - p)).sqrt()
    if isinstance(law, Beta):
        total = law.alpha + law.beta
        p = law.alpha / total
        return 2 * p - 1, 2 * (p * (1 - p) / (total + 1)).sqrt()
    ends = torch.stack([torch.tanh(law.mean + s * law.std) for s in (-1.0, 1.0)])
    return ends.mean(0), (ends[1] - ends[0]) / 2


def _limited(number: Tensor, most: float) -> Tensor:
    """About the number itself, and never more than `most`."""
    return most * torch.tanh(number / most)


def _checked(cap: float) -> float:
    if not 0 < cap < math.inf:
        raise UserError(f"the cap of a policy must be finite and > 0, got {cap}")
    return float(cap)
