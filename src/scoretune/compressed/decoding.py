"""The decoder as a differentiable function of its measurements.

At a solution only the free coordinates F (neither 0 nor on a bound of the box) follow y, as
x_F = (A_FᵀA_F)⁻¹(A_Fᵀy − w_F sign x_F), so that ∂L/∂y = A_F (A_FᵀA_F)⁻¹ (∂L/∂x)_F: one linear
system a sample, whatever the iterations were. Where A_F has dependent columns, the least solution.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scoretune.compressed.operators import Operator
from scoretune.compressed.recovery import Box, Recovery, fista, free, normal_solve

SOLVE = 50
"""Conjugate gradients of a derivative, at most."""


def decode(
    operator: Operator,
    y: Tensor,
    weight: float,
    *,
    box: Box | None = None,
    iterations: int = 1000,
    tolerance: float = 1e-3,
    start: Tensor | None = None,
) -> Recovery:
    """`fista`, whose x has the gradient of the solution with respect to y [B, m]."""
    recovery = fista(
        operator,
        y.detach(),
        weight,
        box=box,
        iterations=iterations,
        tolerance=tolerance,
        start=start,
    )
    if not (torch.is_grad_enabled() and y.requires_grad):
        return recovery
    x: Tensor = _Solution.apply(y, recovery.x, operator, box)  # type: ignore[no-untyped-call]
    return Recovery(x, recovery.iterations, recovery.kkt)


class _Solution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, operator: Operator, box: Box | None) -> Tensor:
        ctx.save_for_backward(free(x, box))
        ctx.operator = operator
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None, None]:
        (support,) = ctx.saved_tensors
        inner = normal_solve(ctx.operator, slopes[0], support, SOLVE, precision=1e-6)
        return ctx.operator.forward(inner), None, None, None
