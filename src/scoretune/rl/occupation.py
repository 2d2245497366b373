"""The discounted occupation of a path: where the discount says that time is spent.

For every φ, E∫₀^∞ e^{−ρt} φ(X_t) dt = (1/ρ) E φ(X_τ) with τ ~ Exp(ρ) independent of X
(arXiv 2305.18901). Two estimators follow: look at the path at random clocks, or look everywhere
and weigh. The second has less variance.
"""

import math

import torch
from torch import Tensor


def exponential_times(
    count: int,
    discount: float,
    *,
    generator: torch.Generator | None = None,
    limit: float | None = None,
) -> Tensor:
    """`count` independent τ ~ Exp(discount), [count].

    With `limit`, clocks that ring later are drawn again: the law of τ given τ < limit, sampled by
    inversion. As the discount goes to 0 that law becomes uniform, which is what a finite horizon
    without discount needs; without `limit` the discount must be positive.
    """
    if limit is not None and not 0 < limit < math.inf:
        raise ValueError(f"limit must be finite and > 0, got {limit}")
    if not 0 <= discount < math.inf or (discount == 0 and limit is None):
        raise ValueError(f"discount must be finite and > 0 (0 only with a limit), got {discount}")
    uniform = torch.rand(count, generator=generator)  # in [0, 1), so no clock is infinite
    if limit is None:
        return -torch.log1p(-uniform) / discount
    if discount == 0:
        return limit * uniform
    return -torch.log1p(uniform * math.expm1(-discount * limit)) / discount


def occupation_weights(steps: int, dt: float, discount: float) -> Tensor:
    """e^{−ρ kδ} δ for the grid points kδ, k = 0 … steps − 1, [steps].

    Σ_k w_k φ(X_{kδ}) is the Riemann sum of ∫₀^T e^{−ρt} φ(X_t) dt; the weights sum to
    (1 − e^{−ρT})/ρ + O(δ).
    """
    if not 0 < dt < math.inf:
        raise ValueError(f"dt must be finite and > 0, got {dt}")
    return torch.exp(-discount * dt * torch.arange(steps)) * dt
