"""Critics in continuous time: a value function makes V + ∫r a martingale (arXiv 2108.06655).

With δ_k = V_{k+1} − V_k + (r_k − ρ V_k) Δ_k, the increment of that martingale:

* martingale loss: ½ Σ (return − V)² Δ, the projection of the true value;
* CTD(0), CTD(λ), CLSTD: martingale orthogonality, E Σ ξ_k δ_k = 0 for test processes ξ;
* GAE(λ): increments added up from a step on, the later ones the less the smaller λ is.

Do not minimise Σ δ² instead: as Δ → 0 that finds the smallest quadratic variation, not V.
"""

import torch
from torch import Tensor

from scoretune.rl.rates import check_increments, td_advantage
from scoretune.shapes import check_rank, check_shape, check_steps


def returns_to_go(rewards: Tensor, terminal: Tensor, dt: Tensor, discount: float = 0.0) -> Tensor:
    """G_k = e^{−ρ(T−t_k)} h + Σ_{j≥k} e^{−ρ(t_j−t_k)} r_j Δ_j, [..., N].

    `rewards` [..., N] are rates, `terminal` h is [...], `dt` [..., N] or [N].
    """
    check_steps(dt, rewards=rewards)
    check_shape(rewards.shape[:-1], terminal=terminal)
    if discount == 0:
        flow = (rewards * dt).flip(-1).cumsum(-1).flip(-1)
        return flow + terminal.unsqueeze(-1)
    kept = torch.exp(-discount * dt).expand_as(rewards)
    return _discounted(rewards * dt, kept, terminal)


def drawn_returns(
    rewards: Tensor, terminal: Tensor, drawn: int, candidates: int, *, own: bool
) -> Tensor:
    """Returns to go [..., N] where only some steps of a path have a known reward, without bias.

        Ĝ_k = h + [own] r_k + (C−1)/(m−1) Σ_{j drawn, j≥k, j≠k if own} r_j

    (Horvitz and Thompson, J. Amer. Statist. Assoc. 47, 1952). m = `drawn` of C = `candidates` steps
    were drawn, every m of them alike likely; the others' `rewards` [..., N] (of whole steps) are 0
    here. Given that a step was drawn each other one was with probability (m−1)/(C−1). So with `own`
    Ĝ_k is unbiased given that k was drawn, and without it given that a step before k was. With
    m = C it is the return itself. Raises ValueError where one of several was drawn, which says
    nothing of the others.
    """
    if not 1 <= drawn <= candidates or drawn == 1 < candidates:
        raise ValueError(f"{drawn} of {candidates} steps say nothing of the others: draw two")
    scale = (candidates - 1) / (drawn - 1) if drawn > 1 else 1.0
    whole = returns_to_go(scale * rewards, terminal, torch.ones_like(rewards))
    return whole - (scale - 1) * rewards if own else whole


def martingale_loss(values: Tensor, returns_to_go: Tensor, dt: Tensor) -> Tensor:
    """½ Σ_k (G_k − V_k)² Δ_k, averaged over trajectories; a scalar (arXiv 2108.06655).

    `values` and `returns_to_go` [..., N] at the starts of the steps, `dt` [..., N] or [N]. The
    minimiser is the L²(dt × P) projection of the true value. Gradient Monte-Carlo: the returns
    are constants.
    """
    check_steps(dt, values=values, returns_to_go=returns_to_go)
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
    check_decay(decay)
    increments = td_advantage(values, rewards, dt, discount).detach()
    kept = torch.pow(torch.as_tensor(decay, dtype=dt.dtype), dt).expand_as(increments)
    ahead = _discounted(increments, kept, torch.zeros_like(increments[..., 0]))
    return -torch.sum(values[..., :-1] * dt * ahead, dim=-1).mean()


def gae(
    values: Tensor,
    rewards: Tensor,
    dt: Tensor,
    discount: float = 0.0,
    *,
    decay: float,
    clock: Tensor | None = None,
) -> Tensor:
    """A_k = Σ_{j≥k} λ^{τ_j−τ_k} e^{−ρ(t_j−t_k)} δ_j, [..., N]: the advantage of a step by what the
    value makes of it and of what followed (GAE, arXiv 1506.02438, in continuous time).

    δ_j = e^{−ρΔ_j} V_{j+1} − V_j + r_j Δ_j; shapes as in `td_advantage`. λ = `decay` in [0, 1] is
    what an increment at the far end of the path counts at its beginning: τ runs from 0 to 1 along
    a path, by the lengths `clock` [..., N] or [N] of its steps in whatever unit (default `dt`), so
    that λ means the same in 5 steps and in 500. A λ₁ a step, as PPO has it, is λ = λ₁^N. λ = 0:
    the increment alone; λ = 1: return to go less value.
    """
    check_decay(decay)
    check_increments(values, rewards, dt)
    ticks = dt if clock is None else clock
    check_steps(ticks, rewards=rewards)
    passed = torch.exp(-discount * dt)
    increments = passed * values[..., 1:] - values[..., :-1] + rewards * dt
    share = ticks / ticks.sum(-1, keepdim=True)
    kept = torch.pow(torch.as_tensor(decay, dtype=share.dtype), share) * passed
    return _discounted(increments, kept.expand_as(increments), increments.new_zeros(()))


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
    check_features(features, rewards, fixed, tests)
    check_steps(dt, rewards=rewards)
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


def check_features(
    features: Tensor, rewards: Tensor, fixed: Tensor | None, tests: Tensor | None
) -> None:
    """Refuse shapes that are not features [..., N+1, D], rewards [..., N], fixed [..., N+1] and
    tests [..., N, D]."""
    check_rank(2, features=features)
    check_rank(1, rewards=rewards)
    paths, steps, size = rewards.shape[:-1], rewards.shape[-1], features.shape[-1]
    check_shape((*paths, steps + 1, size), features=features)
    check_shape((*paths, steps + 1), fixed=fixed)
    check_shape((*paths, steps, size), tests=tests)


def check_decay(decay: float) -> None:
    """Refuse a λ that is no share."""
    if not 0 <= decay <= 1:
        raise ValueError(f"decay must be between 0 and 1, got {decay}")


def _discounted(flow: Tensor, kept: Tensor, terminal: Tensor) -> Tensor:
    """S_k = flow_k + kept_k S_{k+1} backwards from S_N = terminal, [..., N]."""
    sums, total = [], terminal
    for k in reversed(range(flow.shape[-1])):
        total = flow[..., k] + kept[..., k] * total
        sums.append(total)
    return torch.stack(sums[::-1], dim=-1)
