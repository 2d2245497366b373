"""Sparse recovery of a batch: x = argmin ½‖Ax − y‖² + Σ w_i|x_i|, x in a box if there is one.

Every sample has its own step, momentum, restart and end, so that it is solved as if it were alone,
and leaves the batch when its optimality conditions hold. How far they are from holding is returned
with the answer (`Recovery.kkt`): a certificate, whatever the iterations did.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TypeAlias

import torch
from torch import Tensor

from scoretune.compressed.operators import Operator

Box: TypeAlias = tuple[float, float]
"""Least and largest value of every number; (0, inf) is non-negativity."""
Prox: TypeAlias = Callable[[Tensor, Tensor], Tensor]

CHECK = 10
"""Iterations from one look at the optimality conditions to the next."""
GROWTH, RELAX = 1.2, 0.97
"""A curvature that was too small grows by this at least; one that held is lowered by that."""
BEGIN = 0.4
"""The first curvature that is tried, as a share of ‖A‖²: on sparse vectors A stretches less."""


@dataclass(frozen=True)
class Recovery:
    """Recovered x [B, d], `iterations` [B], and `kkt` [B]: the largest distance of a coordinate of
    −∇ from the subdifferential, as a share of the largest weight (of ‖Aᵀy‖_∞ for weights of 0)."""

    x: Tensor
    iterations: Tensor
    kkt: Tensor

    def unconverged(self, tolerance: float) -> int:
        """How many samples miss the tolerance."""
        return int((~(self.kkt <= tolerance)).sum())


@dataclass(frozen=True)
class _State:
    """The samples that are still being solved: `index` says which; z is x with its momentum."""

    index: Tensor
    y: Tensor
    weight: Tensor
    scale: Tensor
    x: Tensor
    ax: Tensor
    z: Tensor
    az: Tensor
    momentum: Tensor
    curvature: Tensor

    def take(self, rows: Tensor) -> _State:
        return _State(*(getattr(self, part.name)[rows] for part in fields(self)))


@torch.no_grad()
def fista(
    operator: Operator,
    y: Tensor,
    weight: float | Tensor,
    *,
    box: Box | None = None,
    iterations: int = 1000,
    tolerance: float = 1e-3,
    start: Tensor | None = None,
    adaptive: bool = True,
) -> Recovery:
    """Accelerated proximal gradients (Beck and Teboulle 2009) for measurements y [B, m].

    `weight` is λ, or weights that broadcast to [B, d]. `adaptive` restarts the momentum where it
    points uphill (O'Donoghue and Candès, arXiv 1204.3982) and finds each sample's step by
    backtracking, which costs a multiplication only where a step was too long; without it steps
    are 1/‖A‖² and nothing restarts. Ends for each sample when `kkt` ≤ `tolerance`. Raises
    ValueError for measurements that do not fit or are not finite.
    """
    bound = operator.norm() ** 2
    state = _begin(operator, y, weight, box, start, bound * (BEGIN if adaptive else 1.0))

    def step(state: _State) -> _State:
        if adaptive:
            return _adaptive_step(operator, state, box, bound)
        return _accelerated_step(operator, state, box)

    return _solved(operator, state, box, step, iterations, tolerance)


@torch.no_grad()
def ista(
    operator: Operator,
    y: Tensor,
    weight: float | Tensor,
    *,
    box: Box | None = None,
    iterations: int = 1000,
    tolerance: float = 1e-3,
    start: Tensor | None = None,
) -> Recovery:
    """Proximal gradients without momentum: the baseline, of steps 1/‖A‖²."""
    state = _begin(operator, y, weight, box, start, operator.norm() ** 2)

    def step(state: _State) -> _State:
        x, ax, _ = _descended(operator, state, box)
        return replace(state, x=x, ax=ax, z=x, az=ax)

    return _solved(operator, state, box, step, iterations, tolerance)


def proximal(v: Tensor, threshold: Tensor | float, box: Box | None = None) -> Tensor:
    """argmin ½(x − v)² + τ|x| over the box: sign(v)·max(|v| − τ, 0), then clipped."""
    limit = torch.as_tensor(threshold).to(v)
    if box is not None and box[0] == 0:
        return (v - limit).clamp_(0, box[1])
    shrunk = v.clamp(-limit, limit).neg_().add_(v)
    return shrunk if box is None else shrunk.clamp_(*box)


def kkt_violation(
    operator: Operator, x: Tensor, y: Tensor, weight: float | Tensor, box: Box | None = None
) -> Tensor:
    """`Recovery.kkt` of any x [B, d] for measurements y [B, m]."""
    weights, scale = _weights(operator, y, weight)
    gradient = operator.adjoint(operator.forward(x) - y)
    return _distance(x, gradient, weights, box).amax(1) / scale


def objective(operator: Operator, x: Tensor, y: Tensor, weight: float | Tensor) -> Tensor:
    """½‖Ax − y‖² + Σ w|x|, [B]."""
    fit = (operator.forward(x) - y).square().sum(1) / 2
    return fit + (torch.as_tensor(weight, dtype=x.dtype, device=x.device) * x.abs()).sum(1)


@torch.no_grad()
def debiased(
    operator: Operator, y: Tensor, x: Tensor, *, box: Box | None = None, iterations: int = 200
) -> Tensor:
    """x [B, d] without the shrinkage of the weights: least squares on its support, where what lies
    on a bound of the box stays there; clipped to the box."""
    inner = free(x, box)
    change = normal_solve(operator, operator.adjoint(y - operator.forward(x)), inner, iterations)
    out = x + change
    return out if box is None else out.clamp(*box)


def free(x: Tensor, box: Box | None = None) -> Tensor:
    """Which coordinates are neither 0 nor on a bound: those that follow the measurements."""
    inner = x != 0
    return inner if box is None else inner & (x > box[0]) & (x < box[1])


@torch.no_grad()
def normal_solve(
    operator: Operator, right: Tensor, support: Tensor, iterations: int, precision: float = 1e-10
) -> Tensor:
    """u [B, d] with A_SᵀA_S u_S = right_S on each row's support S, 0 elsewhere, by conjugate
    gradients from 0: of many solutions the least."""
    mask = support.to(right.dtype)
    residual = right * mask
    u, direction = torch.zeros_like(residual), residual
    power = begun = residual.square().sum(1, keepdim=True)
    for _ in range(iterations):
        if not bool((power > precision**2 * begun).any()):
            break
        measured = operator.forward(direction)
        length = measured.square().sum(1, keepdim=True)
        step = torch.where(length > 0, power / length, 0.0)
        u = u + step * direction
        residual = residual - step * operator.adjoint(measured) * mask
        following = residual.square().sum(1, keepdim=True)
        ratio = torch.where(power > 0, following / power, 0.0)
        direction, power = residual + ratio * direction, following
    return u


# ------------------------------------------------------------------------------------- inside


def check_measurements(operator: Operator, y: Tensor) -> None:
    """Refuse measurements that are not [B, m] or not finite."""
    if y.dim() != 2 or y.shape[1] != operator.m:
        raise ValueError(
            f"y {list(y.shape)} must be [B, {operator.m}]: the operator's measurements"
        )
    if not bool(y.isfinite().all()):
        rows = int((~y.isfinite().all(1)).sum())
        raise ValueError(f"{rows} of {len(y)} measurements hold a number that is not finite")


def _begin(
    operator: Operator,
    y: Tensor,
    weight: float | Tensor,
    box: Box | None,
    start: Tensor | None,
    curvature: float,
) -> _State:
    check_measurements(operator, y)
    if box is not None and not box[0] <= 0 <= box[1]:
        raise ValueError(f"box={box} must hold 0, the value of what is not there")
    weights, scale = _weights(operator, y, weight)
    if start is not None and start.shape != (len(y), operator.d):
        raise ValueError(f"start {list(start.shape)} must be [{len(y)}, {operator.d}]")
    x = y.new_zeros(len(y), operator.d) if start is None else start.to(y)
    x = x if box is None else x.clamp(*box)
    ax, one = operator.forward(x), y.new_ones(len(y), 1)
    index = torch.arange(len(y), device=y.device)
    return _State(index, y, weights, scale, x, ax, x, ax, one, one * curvature)


def _solved(
    operator: Operator,
    state: _State,
    box: Box | None,
    step: Callable[[_State], _State],
    iterations: int,
    tolerance: float,
) -> Recovery:
    """Steps for every sample until its optimality conditions hold, or `iterations` are done."""
    count = torch.zeros_like(state.index)
    recovery = Recovery(state.x.clone(), count, _violation(operator, state, box))
    state = _remaining(state, recovery, tolerance)
    for k in range(1, iterations + 1):
        if not len(state.index):
            break
        state = step(state)
        if k % CHECK == 0 or k == iterations:
            recovery.x[state.index] = state.x
            recovery.iterations[state.index] = k
            recovery.kkt[state.index] = _violation(operator, state, box)
            state = _remaining(state, recovery, tolerance)
    return recovery


def _weights(operator: Operator, y: Tensor, weight: float | Tensor) -> tuple[Tensor, Tensor]:
    """Weights [B, d] or [B, 1], and what violations are a share of [B]."""
    given = torch.as_tensor(weight, dtype=y.dtype, device=y.device)
    weights = given.expand(len(y), 1 if given.numel() == 1 else operator.d)
    if not bool((weights >= 0).all()):
        raise ValueError("weights of the ℓ1 norm must not be negative")
    scale = weights.amax(1)
    if not bool((scale > 0).all()):
        scale = torch.where(scale > 0, scale, operator.adjoint(y).abs().amax(1).clamp_min(1e-30))
    return weights, scale


def _descended(operator: Operator, state: _State, box: Box | None) -> tuple[Tensor, Tensor, Tensor]:
    """The proximal gradient step from z: x, Ax, and the gradient at z."""
    gradient, step = operator.adjoint(state.az - state.y), state.curvature.reciprocal()
    x = proximal(torch.addcmul(state.z, gradient, -step), state.weight * step, box)
    return x, operator.forward(x), gradient


def _momentum(state: _State) -> tuple[Tensor, Tensor]:
    """The next momentum, and how far it carries z beyond x."""
    momentum = (1 + (1 + 4 * state.momentum**2).sqrt()) / 2
    return momentum, (state.momentum - 1) / momentum


def _carried(state: _State, x: Tensor, ax: Tensor, change: Tensor, ratio: Tensor) -> _State:
    """`change` is x less the last one."""
    z, az = torch.addcmul(x, ratio, change), torch.addcmul(ax, ratio, ax - state.ax)
    return replace(state, x=x, ax=ax, z=z, az=az)


def _accelerated_step(operator: Operator, state: _State, box: Box | None) -> _State:
    x, ax, _ = _descended(operator, state, box)
    momentum, ratio = _momentum(state)
    return replace(_carried(state, x, ax, x - state.x, ratio), momentum=momentum)


def _adaptive_step(operator: Operator, state: _State, box: Box | None, bound: float) -> _State:
    x, ax, gradient = _descended(operator, state, box)
    x, ax, moved, curvature = _backtracked(operator, state, gradient, (x, ax), box, bound)
    momentum, ratio = _momentum(state)
    change = x - state.x
    uphill = torch.einsum("bd,bd->b", moved, change)[:, None] < 0
    momentum, ratio = torch.where(uphill, 1.0, momentum), torch.where(uphill, 0.0, ratio)
    curvature = (curvature * RELAX).clamp(max=bound)
    return replace(_carried(state, x, ax, change, ratio), momentum=momentum, curvature=curvature)


def _backtracked(
    operator: Operator,
    state: _State,
    gradient: Tensor,
    tried: tuple[Tensor, Tensor],
    box: Box | None,
    bound: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The step again, for the samples whose curvature was too small: ‖A(x − z)‖² > L‖x − z‖². With
    x and Ax: x − z, and the curvature."""
    (x, ax), curvature = tried, state.curvature
    while True:
        moved = x - state.z
        length = torch.linalg.vector_norm(moved, dim=1, keepdim=True).square_()
        seen = torch.linalg.vector_norm(ax - state.az, dim=1, keepdim=True).square_()
        short = ((seen > curvature * length * (1 + 1e-5)) & (curvature < bound))[:, 0]
        if not bool(short.any()):
            return x, ax, moved, curvature
        wanted = torch.maximum(GROWTH * curvature, seen / length)
        curvature = torch.where(short[:, None], wanted.clamp(max=bound), curvature)
        rows, step = short.nonzero()[:, 0], curvature[short]
        again = proximal(state.z[rows] - gradient[rows] / step, state.weight[rows] / step, box)
        x, ax = x.index_copy(0, rows, again), ax.index_copy(0, rows, operator.forward(again))


def _violation(operator: Operator, state: _State, box: Box | None) -> Tensor:
    gradient = operator.adjoint(state.ax - state.y)
    return _distance(state.x, gradient, state.weight, box).amax(1) / state.scale


def _distance(x: Tensor, gradient: Tensor, weight: Tensor, box: Box | None) -> Tensor:
    """From −∇ to the interval that is the subdifferential of w|x|, with the box, at each x."""
    down, sign = -gradient, x.sign()
    low = torch.where(x == 0, -weight, weight * sign)
    high = torch.where(x == 0, weight, weight * sign)
    if box is not None:
        low = low.masked_fill(x <= box[0], -math.inf)
        high = high.masked_fill(x >= box[1], math.inf)
    return torch.maximum(low - down, down - high).clamp_min(0)


def _remaining(state: _State, recovery: Recovery, tolerance: float) -> _State:
    unfinished = ~(recovery.kkt[state.index] <= tolerance)
    return state if bool(unfinished.all()) else state.take(unfinished.nonzero()[:, 0])
