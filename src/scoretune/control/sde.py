"""What a control problem is: dX = b(X, a) dt + σ(X, a) dW, with a reward per unit of time."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Protocol

import torch
from torch import Tensor, nn

from scoretune.core.errors import UserError


class ControlledSDE(Protocol):
    """A time-homogeneous controlled diffusion and what is wanted of it (arXiv 2305.18901):

        η(π) = E[ ∫₀^T e^{−ρt} (r(X, a) + γ·entropy of π(·|X)) dt + e^{−ρT} h(X_T) ],  a ~ π(·|X),

    with T = ∞ and h = 0 unless `horizon` says otherwise. Subclass it and define `discount` ρ,
    `start`, `drift`, `diffusion` and `reward`; the rest has defaults. States x are
    [B, state_dim], actions a are [B, action_dim]; every function is for a batch.
    """

    discount: float
    horizon: float | None = None
    temperature: float = 0.0
    state_dim: int = 1
    action_dim: int = 1
    noiseless: bool = False
    """Whether σ = 0 is meant: what makes paths differ is then exploration alone."""

    @abstractmethod
    def start(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` independent initial states, [count, state_dim]."""

    @abstractmethod
    def drift(self, x: Tensor, a: Tensor) -> Tensor:
        """b(x, a), [B, state_dim]."""

    @abstractmethod
    def diffusion(self, x: Tensor, a: Tensor) -> Tensor:
        """σ(x, a): [B, state_dim], a noise for each coordinate, or a matrix [B, state_dim, W]."""

    @abstractmethod
    def reward(self, x: Tensor, a: Tensor) -> Tensor:
        """The reward **rate** r(x, a), [B]: what is earned per unit of time."""

    def terminal(self, x: Tensor) -> Tensor:
        """h(x), [B]: what a finite horizon pays at its end."""
        return x.new_zeros(x.shape[0])

    def observe(self, x: Tensor) -> Tensor:
        """What the policy gets to see of a state, [B, anything]; all of it by default."""
        return x

    def features(self, inputs: Tensor) -> Tensor:
        """What the default critic is linear in, of (state, and time if it ends), [..., D]."""
        return quadratic(inputs)

    def exact_value(self, policy: nn.Module) -> float | None:
        """η(policy) in closed form, or None where there is none."""
        return None


MEMBERS = (
    *("discount", "horizon", "temperature", "state_dim", "action_dim", "start", "drift"),
    *("diffusion", "reward", "terminal", "observe", "exact_value", "noiseless", "features"),
)


def quadratic(inputs: Tensor) -> Tensor:
    """1, x_i and x_i x_j (i <= j) of x [..., d], [..., 1 + d + d(d+1)/2]."""
    dims = inputs.shape[-1]
    rows, columns = torch.triu_indices(dims, dims)
    products = inputs[..., rows] * inputs[..., columns]
    return torch.cat([torch.ones_like(inputs[..., :1]), inputs, products], dim=-1)


def check_problem(problem: ControlledSDE) -> None:
    """A UserError unless the objective of the problem is well defined."""
    name, absent = type(problem).__name__, object()
    for member in MEMBERS:
        if getattr(problem, member, absent) is absent:
            raise UserError(
                f"{name} has no `{member}`: define it (`class {name}(ControlledSDE)` brings "
                "defaults for what is optional)"
            )
    discount, horizon = problem.discount, problem.horizon
    if horizon is None and not 0 < discount < math.inf:
        raise UserError(
            f"{name}.discount must be > 0 when the horizon is infinite, got {discount}: "
            "raise it, or give the problem a horizon"
        )
    if horizon is not None and not 0 < horizon < math.inf:
        raise UserError(f"{name}.horizon must be finite and > 0 (or None), got {horizon}")
    if not 0 <= discount < math.inf:
        raise UserError(f"{name}.discount must be finite and >= 0, got {discount}")
    if not 0 <= problem.temperature < math.inf:
        raise UserError(f"{name}.temperature must be finite and >= 0, got {problem.temperature}")


def with_time(problem: ControlledSDE, x: Tensor, t: Tensor) -> Tensor:
    """The input of a function of (x, t): [x, t] with a finite horizon, else x alone.

    `t` broadcasts with the leading dimensions of `x`. With an infinite horizon everything is
    homogeneous in time, so time tells nothing.
    """
    if problem.horizon is None:
        return x
    return torch.cat([x, t.to(x).expand(x.shape[:-1]).unsqueeze(-1)], dim=-1)
