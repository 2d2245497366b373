"""The Ψ-PO view: every objective as a transform Ψ of the probability of being preferred.

    max_π  E_{y~π, y'~μ} Ψ(p(y > y')) − β KL(π ‖ π_ref)
    solved by  π(y) ∝ π_ref(y)·exp(E_{y'~μ} Ψ(p(y > y'))/β)

(arXiv 2310.12036 eq. 6). DPO has Ψ(q) = ln(q/(1 − q)), IPO Ψ(q) = q, and Mallows' two
(arXiv 2405.14953) the inverses of their pair laws: ln(q/(1 − q))/(−2 ln φ) and g_φ⁻¹(q). On data of
its own law each of those gives π ∝ π_ref e^{−μ0/β}, whatever φ.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from scoretune.preference.mallows import log_tail
from scoretune.shapes import check_shape

Transform = Literal["dpo", "ipo", "mallows_theta", "mallows_phi"]


def psi(q: Tensor, transform: Transform, phi: float | None = None) -> Tensor:
    """Ψ(q) of probabilities in (0, 1), of their shape."""
    if transform == "ipo":
        return q
    if transform == "dpo":
        return torch.logit(q)
    if phi is None or not 0 < phi < 1:
        raise ValueError(f"{transform} needs a dispersion 0 < phi < 1, got {phi}")
    rate = -torch.log(torch.as_tensor(phi, dtype=q.dtype, device=q.device))
    if transform == "mallows_theta":
        return torch.logit(q) / (2 * rate)
    return torch.sign(q - 0.5) * _ranks_apart(torch.minimum(q, 1 - q), rate)


def regularised_optimum(values: Tensor, reference: Tensor, beta: float) -> Tensor:
    """π ∝ π_ref e^{values/β} over n answers; `values` and the probabilities `reference` are [n]."""
    check_shape(values.shape, reference=reference)
    return torch.softmax(torch.log(reference) + values / beta, -1)


def expected_psi(
    preferred: Tensor, opponents: Tensor, transform: Transform, phi: float | None = None
) -> Tensor:
    """E_{y'~μ} Ψ(p(y > y')), [n], of probabilities `preferred` [n, n] and `opponents` μ [n]."""
    return psi(preferred, transform, phi) @ opponents


def _ranks_apart(tail: Tensor, rate: Tensor) -> Tensor:
    """|s| with 1 − g_φ(s) = tail <= 1/2 by bisection; 0 within the jump of g_φ at 0."""
    goal = torch.log(tail)
    low = torch.full_like(tail, 1e-12)
    high = (40 - goal) / rate.clamp(max=1) + 1
    inside = log_tail(low, rate) <= goal
    for _ in range(200):
        middle = (low + high) / 2
        above = log_tail(middle, rate) > goal
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return torch.where(inside, torch.zeros_like(tail), (low + high) / 2)
