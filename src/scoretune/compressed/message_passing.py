"""Approximate message passing (Donoho, Maleki and Montanari, arXiv 0907.3574).

    x ← η(x + Aᵀr; τ),   r ← y − Ax + r ‖x‖₀/m,   τ = α ‖r‖/√m,   η soft thresholding

For matrices with independent entries it needs some tens of iterations; for others, the fast
transforms among them, it has no guarantee. A fixed point solves the lasso whose weight is
λ = τ (1 − ‖x‖₀/m), by which it is certified here.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoretune.compressed.operators import Operator
from scoretune.compressed.recovery import (
    Recovery,
    check_measurements,
    kkt_violation,
    proximal,
)


@torch.no_grad()
def message_passing(
    operator: Operator,
    y: Tensor,
    threshold: float,
    *,
    nonnegative: bool = False,
    iterations: int = 100,
    tolerance: float = 1e-3,
) -> tuple[Recovery, Tensor]:
    """What was recovered from y [B, m], and the weight λ [B] of the lasso that it solves.

    `threshold` is α; `dimension.best_threshold` at the signal's sparsity is the one with the least
    worst error. All samples run until the last has moved less than `tolerance` of its norm.
    """
    check_measurements(operator, y)
    box = (0.0, math.inf) if nonnegative else None
    x, residual, k = y.new_zeros(len(y), operator.d), y, 0
    level = threshold * residual.norm(dim=1, keepdim=True) / math.sqrt(operator.m)
    while k < iterations:
        before, k = x, k + 1
        x = proximal(x + operator.adjoint(residual), level, box)
        active = (x != 0).sum(1, keepdim=True) / operator.m
        residual = y - operator.forward(x) + residual * active
        level = threshold * residual.norm(dim=1, keepdim=True) / math.sqrt(operator.m)
        moved = (x - before).norm(dim=1)
        if bool((moved <= tolerance * x.norm(dim=1)).all()):
            break
    weight = (level * (1 - (x != 0).sum(1, keepdim=True) / operator.m)).clamp_min(0)
    kkt = kkt_violation(operator, x, y, weight, box)
    count = torch.full((len(y),), k, dtype=torch.long, device=y.device)
    return Recovery(x, count, kkt), weight[:, 0]
