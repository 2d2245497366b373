"""Critics in continuous time: a value function makes V + ∫r a martingale (arXiv 2108.06655).

With δ_k = V_{k+1} − V_k + (r_k − ρ V_k) Δ_k, the increment of that martingale:

* martingale loss: ½ Σ (return − V)² Δ, the projection of the true value;
* CTD(0), CTD(λ), CLSTD: martingale orthogonality, E Σ ξ_k δ_k = 0 for test processes ξ.

Do not minimise Σ δ² instead: as Δ → 0 that finds the smallest quadratic variation, not V.
"""

import torch
from torch import Tensor

from scoretune.rl.rates import td_advantage


def returns_to_go(rewards: Tensor, terminal: Tensor, dt: Tensor, discount: float = 0.0) -> Tensor:
    """G_k = e^{−ρ(T−t_k)} h + Σ_{j≥k} e^{−ρ(t_j−t_k)} r_j Δ_j, [..., N].

    `rewards` [..., N] are rates, `terminal` h is [...], `dt` [..., N] or [N].
    """
    if discount == 0:
        flow = (rewards * dt).flip(-1).cumsum(-1).flip(-1)
        return flow + terminal.unsqueeze(-1)
    kept = torch.exp(-discount * dt).expand_as(rewards)
    return _discounted(rewards * dt, kept, terminal)


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


def ctd_lambda(
    values: Tensor, rewards: Tensor, dt: Tensor, discount: float = 0.0, *, decay: float
) -> Tensor:
    """A scalar whose negative gradient is CTD(λ)'s step Σ_k ξ_k δ_k, batch mean.

    Eligibility ξ_k = λ^{Δ_{k−1}} ξ_{k−1} + ∂V(t_k, x_k) Δ_k with λ = `decay` in [0, 1] per unit of
    time (arXiv 2108.06655); shapes as in `td_advantage`. Summed the other way round, step k's ∂V
    has the weight Δ_k Σ_{j≥k} λ^{t_j−t_k} δ_j, held constant. λ = 0 is CTD(0) with ξ = ∂V Δ; λ = 1
    without discount is the gradient of the martingale loss.
    """
    if not 0 <= decay <= 1:
        raise ValueError(f"decay must be between 0 and 1, got {decay}")
    increments = td_advantage(values, rewards, dt, discount).detach()
    kept = torch.pow(torch.as_tensor(decay, dtype=dt.dtype), dt).expand_as(increments)
    ahead = _discounted(increments, kept, torch.zeros_like(increments[..., 0]))
    return -torch.sum(values[..., :-1] * dt * ahead, dim=-1).mean()


def clstd(
    features: Tensor,
    rewards: Tensor,
    dt: Tensor,
    discount: float = 0.0,
    *,
    fixed: Tensor | None = None,
    tests: Tensor | None = None,
) -> Tensor:
    """The weights w [D] of V = fixed + features·w that solve Σ ξ_k δ_k(w) = 0 (CLSTD(0)).

    `features` φ [..., N+1, D] along trajectories, `rewards` [..., N] rates, `dt` [..., N] or [N].
    `fixed` [..., N+1] is the part of V without weights: let it hold the terminal reward h, and let
    the features vanish at the end, and V(T, ·) = h exactly. `tests` ξ [..., N, D] are the test
    processes, φ_k if not given. Sums run in float64; where the features coincide on these
    trajectories the least weights are taken.
    """
    phi = features.detach().to(torch.float64)
    test = phi[..., :-1, :] if tests is None else tests.detach().to(torch.float64)
    width = dt.to(torch.float64).expand_as(rewards).unsqueeze(-1)
    change = phi[..., 1:, :] - phi[..., :-1, :] * (1 + discount * width)
    offset = features.new_zeros(features.shape[:-1]) if fixed is None else fixed.detach()
    source = td_advantage(
        offset.to(torch.float64),
        rewards.detach().to(torch.float64),
        width.squeeze(-1),
        discount,
    )
    matrix = torch.einsum("...i,...j->ij", test, change)
    target = -torch.einsum("...i,...->i", test, source)
    # LAPACK's gelsd takes the solution of least norm when the matrix has no inverse.
    solved = torch.linalg.lstsq(matrix.cpu(), target.cpu()[:, None], rcond=1e-12, driver="gelsd")
    weights: Tensor = solved.solution[:, 0].to(features)
    return weights


def _discounted(flow: Tensor, kept: Tensor, terminal: Tensor) -> Tensor:
    """S_k = flow_k + kept_k S_{k+1} backwards from S_N = terminal, [..., N]."""
    sums, total = [], terminal
    for k in reversed(range(flow.shape[-1])):
        total = flow[..., k] + kept[..., k] * total
        sums.append(total)
    return torch.stack(sums[::-1], dim=-1)
