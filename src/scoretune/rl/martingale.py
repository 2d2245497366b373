"""Critics in continuous time: a value function makes V + ∫r a martingale (arXiv 2108.06655).

Do not minimise Σ δ² instead: as Δ → 0 that finds the smallest quadratic variation, not V.
"""

import torch
from torch import Tensor

from scoretune.rl.rates import td_advantage


def returns_to_go(rewards: Tensor, terminal: Tensor, dt: Tensor) -> Tensor:
    """G_k = h + Σ_{j≥k} r_j Δ_j, [..., N]: rates `rewards` [..., N], terminal reward h [...]."""
    flow = (rewards * dt).flip(-1).cumsum(-1).flip(-1)
    return flow + terminal.unsqueeze(-1)


def martingale_loss(values: Tensor, returns_to_go: Tensor, dt: Tensor) -> Tensor:
    """½ Σ_k (G_k − V_k)² Δ_k, averaged over trajectories; a scalar (arXiv 2108.06655).

    `values` and `returns_to_go` [..., N] at the starts of the steps, `dt` [..., N] or [N]. The
    minimiser is the L²(dt × P) projection of the true value. Gradient Monte-Carlo: the returns
    are constants.
    """
    error = returns_to_go.detach() - values
    return (error**2 * dt).sum(-1).mean() / 2


def ctd0(values: Tensor, rewards: Tensor, dt: Tensor, discount: float = 0.0) -> Tensor:
    """A scalar whose negative gradient is CTD(0)'s step Σ_k ∂V(t_k, x_k) δ_k, batch mean.

    δ_k = V_{k+1} − V_k + (r_k − discount·V_k) Δ_k is held constant (a semi-gradient), with shapes
    as in `td_advantage`. Only the gradient has a meaning: the number itself does not.
    """
    increments = td_advantage(values, rewards, dt, discount).detach()
    return -torch.sum(values[..., :-1] * increments, dim=-1).mean()
