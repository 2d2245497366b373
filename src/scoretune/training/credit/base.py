"""The protocol of credit rules: a path and its scores go in, what each step is worth comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from scoretune.core.errors import UserError
from scoretune.core.records import Scores, Stateful, Trajectory
from scoretune.diffusion.kernels import response
from scoretune.diffusion.processes import expand
from scoretune.policy import Policy

RewardFn = Callable[[Tensor, Tensor], Tensor]
"""The reward [M] of samples x0 [M, *S], finished or not, for the prompts numbered `who` [M]."""


@dataclass(frozen=True)
class Credited:
    """What the M states that are learned from are worth, in the terms of `records.Steps`, and
    numbers to log. `reference_data` [M, *S] where credit has asked the pretrained policy there
    already, so that nobody asks again."""

    advantage: Tensor | None = None
    data_slope: Tensor | None = None
    action: Tensor | None = None
    reference_data: Tensor | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


class Credit(Stateful, Protocol):
    """Who deserves what: the steps k [M] of the samples b [M] of a path and its scores [B]."""

    def __call__(
        self, path: Trajectory, scores: Scores, reward_fn: RewardFn, k: Tensor, b: Tensor
    ) -> Credited: ...


def combined(
    scores: Scores, compare: Callable[[str, Tensor], Tensor], weights: Mapping[str, float]
) -> Tensor:
    """The advantages of samples, by a rule `compare(name, rewards [B])` that compares them; of
    this process's samples, where several made them.

    Without weights the total is compared, A(Σ wᵢ rᵢ). With the weight of every part each reward is
    compared by itself, Σ wᵢ A(rᵢ), as in MixGRPO (arXiv 2507.21802): a weight then says how much a
    standard deviation of that reward counts, in whatever units the reward comes.
    """
    if not weights:
        return compare("", scores.total)[scores.mine]
    parts = [
        # The parts come weighted: what is compared is the reward itself, with its sign and scale.
        weights[name] * compare(name, part / weights[name])
        for name, part in scores.parts.items()
    ]
    return torch.stack(parts).sum(0)[scores.mine]


def arrival_to_data(
    policy: Policy, path: Trajectory, k: Tensor, b: Tensor, slope: Tensor
) -> Tensor:
    """∂V/∂x̂0 of the steps k [M] of samples b, from the slope ∂V/∂x_{k+1} [M, *S] where they arrive.

    The mean of a step follows the estimate x̂0 with a number, the kernel's `response`.
    """
    along = response(policy.kernel, policy.backbone.process, path.times[k, b], path.times[k + 1, b])
    return expand(along, slope) * slope


def slope_of(reward_fn: RewardFn, x0: Tensor, who: Tensor) -> tuple[Tensor, Tensor]:
    """The reward [M] and its gradient [M, *S] at clean states x0 [M, *S]."""
    with torch.enable_grad():
        leaf = x0.detach().requires_grad_()
        value = reward_fn(leaf, who)
        require_gradient(value)
        return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]


def require_gradient(value: Tensor) -> None:
    """Refuse a reward that cannot be differentiated where its gradient is the method."""
    if not value.requires_grad:
        raise UserError(
            "this method follows the reward's gradient, and the reward has none: choose ddpo, "
            "grpo, dpok, reinforce, or score_as_action with objective.form=ratio"
        )
