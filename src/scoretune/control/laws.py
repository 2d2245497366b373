"""Laws of an action given what a policy sees: what is drawn, how likely it was, how far two are.

Each is a tuple of tensors [..., m], so that a part of a batch is the tuple of the parts. `mode` is
the action that is deployed, once nobody explores any more.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from scoretune.rl import (
    beta_entropy,
    beta_kl,
    beta_log_prob,
    gaussian_entropy,
    gaussian_kl,
    gaussian_log_prob,
    squashed_entropy,
    squashed_log_prob,
    two_point_entropy,
    two_point_kl,
    two_point_log_prob,
)
from scoretune.rl.bounded import within


class Gaussian(NamedTuple):
    """N(mean, std²)."""

    mean: Tensor
    std: Tensor

    @property
    def mode(self) -> Tensor:
        return self.mean

    def draw(self, generator: torch.Generator) -> Tensor:
        return self.mean + self.std * _normal(self.mean, generator)

    def log_prob(self, action: Tensor) -> Tensor:
        return gaussian_log_prob(action, self.mean, self.std)

    def entropy(self) -> Tensor:
        return gaussian_entropy(self.std)

    def kl(self, other: Gaussian) -> Tensor:
        """KL(self ‖ other), [...]."""
        return gaussian_kl(self.mean, self.std, other.mean, other.std)


class Squashed(NamedTuple):
    """cap·tanh u with u ~ N(mean, std²)."""

    mean: Tensor
    std: Tensor
    cap: Tensor

    @property
    def mode(self) -> Tensor:
        """The median, cap·tanh(mean)."""
        return self.cap * torch.tanh(self.mean)

    def draw(self, generator: torch.Generator) -> Tensor:
        drawn = self.cap * torch.tanh(self.mean + self.std * _normal(self.mean, generator))
        return self.cap * within(drawn, self.cap)

    def log_prob(self, action: Tensor) -> Tensor:
        return squashed_log_prob(action, self.mean, self.std, self.cap)

    def entropy(self) -> Tensor:
        return squashed_entropy(self.mean, self.std, self.cap)

    def kl(self, other: Squashed) -> Tensor:
        """That of the Gaussians: a one-to-one map changes no divergence."""
        return gaussian_kl(self.mean, self.std, other.mean, other.std)


class Beta(NamedTuple):
    """cap·(2B − 1) with B ~ Beta(alpha, beta), alpha and beta > 1."""

    alpha: Tensor
    beta: Tensor
    cap: Tensor

    @property
    def mode(self) -> Tensor:
        return self.cap * (2 * (self.alpha - 1) / (self.alpha + self.beta - 2) - 1)

    def draw(self, generator: torch.Generator) -> Tensor:
        """A ratio of Gamma variables."""
        first = torch._standard_gamma(self.alpha, generator=generator)
        second = torch._standard_gamma(self.beta, generator=generator)
        drawn = self.cap * ((first - second) / (first + second))
        return self.cap * within(drawn, self.cap)

    def log_prob(self, action: Tensor) -> Tensor:
        return beta_log_prob(action, self.alpha, self.beta, self.cap)

    def entropy(self) -> Tensor:
        return beta_entropy(self.alpha, self.beta, self.cap)

    def kl(self, other: Beta) -> Tensor:
        """KL(self ‖ other), [...]."""
        return beta_kl(self.alpha, self.beta, other.alpha, other.beta)


class TwoPoint(NamedTuple):
    """cap with probability 1/(1 + e^{−logit}), else −cap."""

    logit: Tensor
    cap: Tensor

    @property
    def mode(self) -> Tensor:
        return torch.where(self.logit >= 0, self.cap, -self.cap)

    def draw(self, generator: torch.Generator) -> Tensor:
        chance = torch.rand(self.logit.shape, generator=generator, dtype=self.logit.dtype)
        return torch.where(chance < torch.sigmoid(self.logit), self.cap, -self.cap)

    def log_prob(self, action: Tensor) -> Tensor:
        return two_point_log_prob(action, self.logit)

    def entropy(self) -> Tensor:
        """Of two points, not of a density: 0 for one that is certain."""
        return two_point_entropy(self.logit)

    def kl(self, other: TwoPoint) -> Tensor:
        """KL(self ‖ other), [...]."""
        return two_point_kl(self.logit, other.logit)


Bounded: TypeAlias = Squashed | Beta | TwoPoint
Law: TypeAlias = Gaussian | Squashed | Beta | TwoPoint


def part(law: Law, index: Tensor) -> Law:
    """The law of the points of a batch that `index` [J] names."""
    return type(law)(*(parameter[index] for parameter in law))


def kl(law: Law, other: Law) -> Tensor:
    """KL(law ‖ other) [...] of two laws of one kind."""
    if type(law) is not type(other):
        raise ValueError(f"no divergence between {type(law).__name__} and {type(other).__name__}")
    return law.kl(other)  # type: ignore[arg-type]


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype)
