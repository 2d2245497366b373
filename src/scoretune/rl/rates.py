"""Advantages per unit of time: the little q-function, in closed form and from a critic."""

import torch
from torch import Tensor

from scoretune.shapes import check_batch, check_same_shape, check_steps


def advantage_rate(
    value_grad: Tensor,
    action: Tensor,
    mean_action: Tensor,
    reference: Tensor,
    g_sq: Tensor,
    kl_weight: float | Tensor,
    covariance_trace: float | Tensor = 0.0,
) -> Tensor:
    """The advantage rate q of a score action, [B] (arXiv 2409.08400, arXiv 2502.01819):

        q = g² [∇V·(a − s) − κ/2 (‖a − s_pre‖² − ‖s − s_pre‖² − tr Σ)].

    The score enters only the drift, linearly, so q needs nothing but ∇V. `value_grad` ∇V,
    `action` a, `mean_action` s and `reference` s_pre are [B, *S]; `g_sq` is g² at each sample's
    time, [B]; `kl_weight` κ and `covariance_trace` tr Σ are numbers or [B], the latter 0 for a
    policy without action noise.
    """
    check_same_shape(
        value_grad=value_grad, action=action, mean_action=mean_action, reference=reference
    )
    check_batch(action, g_sq=g_sq, kl_weight=kl_weight, covariance_trace=covariance_trace)
    gain = _sum(value_grad * (action - mean_action))
    cost = _sum((action - reference) ** 2) - _sum((mean_action - reference) ** 2)
    return g_sq * (gain - kl_weight / 2 * (cost - covariance_trace))


def td_advantage(values: Tensor, rewards: Tensor, dt: Tensor, discount: float = 0.0) -> Tensor:
    """A_k = V_{k+1} − V_k + (r_k − discount·V_k) Δ_k, the increment of the value martingale.

    `values` [..., N+1] along a trajectory, with the terminal reward as its last entry; `rewards`
    [..., N] are **rates**; `dt` [..., N] or [N]. Already proportional to Δ: divide by `dt` for a
    rate, which has a standard deviation of order 1/√Δ.
    """
    check_increments(values, rewards, dt)
    now = values[..., :-1]
    return values[..., 1:] - now + (rewards - discount * now) * dt


def check_increments(values: Tensor, rewards: Tensor, dt: Tensor) -> None:
    """Refuse shapes that are not values [..., N+1], rewards [..., N] and dt [..., N] or [N]."""
    check_steps(dt, rewards=rewards)
    if values.shape != (*rewards.shape[:-1], rewards.shape[-1] + 1):
        raise ValueError(
            f"values {list(values.shape)} need one more time than rewards {list(rewards.shape)}"
        )


def _sum(per_dimension: Tensor) -> Tensor:
    return torch.sum(per_dimension.flatten(1), dim=1)
