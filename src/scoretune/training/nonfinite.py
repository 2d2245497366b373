"""What had become of a run's numbers when one of them was NaN or infinite, and what to lower.

Nothing here is computed while all is well. Each cause that a message names was looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from scoretune.core.errors import UserError
from scoretune.core.finite import is_finite, nonfinite
from scoretune.core.records import Round
from scoretune.policy import Policy
from scoretune.rewards.base import Reward, checked

CREDIT = ("advantage", "data_slope", "action")
"""What a batch says of the rewards; its other tensors are the model's own."""


class NonFinite(UserError):
    """Training met a number that is not finite; `explained` where the message says why."""

    def __init__(self, message: str, *, explained: bool = False) -> None:
        super().__init__(message)
        self.explained = explained


def failure(update: int, what: str, batches: Round, optimiser: torch.optim.Optimizer) -> NonFinite:
    """The error of an update whose gradient or loss (`what`) is not finite: the weights, and the
    batches that were learned from, tell what was so before."""
    rate = f"optimiser.learning_rate (now {optimiser.param_groups[0]['lr']:.3g})"
    where = f"update {update}: the {what} is not finite"
    weights = [p for group in optimiser.param_groups for p in group["params"]]
    spoilt = [weight for weight in weights if not is_finite(weight)]
    if spoilt:
        return NonFinite(
            f"{where}, nor are {len(spoilt)} of {len(weights)} trained weights, while all "
            f"gradients before were: lower {rate}",
            explained=True,
        )
    bad = {name for batch in batches.minibatches for name in _spoilt(batch)}
    states = sorted(bad - set(CREDIT))
    if states:
        return NonFinite(
            f"{where}, nor is what the model put out ({', '.join(states)}), though its trained "
            f"weights are (at most {_largest(weights):.3g}): lower {rate} or model.guidance",
            explained=True,
        )
    if bad:
        rewards = ", ".join(
            f"{name} {value:.3g}" for name, value in batches.metrics.items() if "reward" in name
        )
        return NonFinite(
            f"{where}, nor is what the reward made of it ({', '.join(sorted(bad))}; {rewards}), "
            "while the model's states are: give a reward of smaller numbers",
            explained=True,
        )
    return NonFinite(
        f"{where}, while the weights (at most {_largest(weights):.3g}) and what is learned from "
        f"are: lower {rate}, or leave such steps out by optimiser.nonfinite=skip",
        explained=False,
    )


def check_weights(policy: Policy, update: int) -> None:
    """Raises NonFinite where trained weights are not finite."""
    trained = [(n, p) for n, p in policy.backbone.network.named_parameters() if p.requires_grad]
    bad = nonfinite(trained)
    if bad:
        raise NonFinite(
            f"after update {update} {len(bad)} of {len(trained)} trained weights are not finite, "
            f"{bad[0]} first: lower optimiser.learning_rate, and go on from the last checkpoint",
            explained=True,
        )


def blame_model(policy: Policy, update: int, draw: Callable[[], Tensor]) -> UserError:
    """Why the model's samples are not finite after `update` updates; `draw` makes some."""
    check_weights(policy, update)
    where = f"after update {update} the model's samples hold NaN or infinity"
    bad = nonfinite(policy.backbone.network.named_parameters())
    if bad:
        anew = "get the model anew"
        return NonFinite(f"{where}, as its weights do ({bad[0]}): {anew}", explained=True)
    if policy.guidance != 1:
        with policy.under(1.0):
            unguided = is_finite(draw())
        if unguided:
            return NonFinite(
                f"{where}, and without guidance do not: lower model.guidance "
                f"(now {policy.guidance:.3g})",
                explained=True,
            )
    if update and policy.has_reference:
        with policy.reference():
            before = is_finite(draw())
        if before:
            return NonFinite(
                f"{where}, and the pretrained model's do not: lower optimiser.learning_rate",
                explained=True,
            )
    return NonFinite(
        f"{where}, though all its weights are finite: look at the model and its sampler",
        explained=False,
    )


def blame_reward(
    error: UserError, reward: Reward, name: str, images: Tensor, prompts: Sequence[str]
) -> UserError:
    """The error, or that the reward's gradient at such images [B, 3, H, W] is not finite."""
    leaf = images.detach().requires_grad_()
    with torch.enable_grad():
        values = checked(reward, name, leaf, prompts)
        if not values.requires_grad:
            return error
        (gradient,) = torch.autograd.grad(values.sum(), leaf, allow_unused=True)
    if gradient is None or is_finite(gradient):
        return error
    where = str(error).partition(",")[0]
    return NonFinite(
        f"{where}, nor is that of the reward {name!r} for the prompt {prompts[0]!r}, of which the "
        f"value, {float(values[0].detach()):.3g}, is: give a reward that is smooth there (sqrt and "
        "log have no slope at 0), or leave such steps out by optimiser.nonfinite=skip",
        explained=True,
    )


def _spoilt(batch: object) -> list[str]:
    return nonfinite((n, v) for n, v in vars(batch).items() if isinstance(v, Tensor))


def _largest(weights: list[Tensor]) -> float:
    return max((float(weight.detach().abs().max()) for weight in weights), default=math.nan)
