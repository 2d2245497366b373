"""How sparse data are: the coefficients that a state needs for a given error. Sparse signals."""

from __future__ import annotations

import torch
from torch import Tensor


def sparse_signals(count: int, d: int, s: int, generator: torch.Generator) -> Tensor:
    """Signals [count, d] with s entries ±(1 + |g|) at random places, for experiments."""
    places = torch.rand(count, d, generator=generator).argsort(1)[:, :s]
    values = torch.randn(count, s, generator=generator, dtype=torch.float64)
    zeros = torch.zeros(count, d, dtype=torch.float64)
    return zeros.scatter(1, places, values + values.sign())


def sparsities(coefficients: Tensor, tolerance: float) -> Tensor:
    """For each row [B, d] the least s [B] such that its s largest coefficients leave out no more
    than `tolerance` of its norm: ‖c − c_s‖ ≤ tolerance ‖c‖. A row of zeros has 0."""
    squares = coefficients.double().square().sort(1, descending=True).values
    total = squares.sum(1, keepdim=True)
    left = squares.flip(1).cumsum(1).flip(1) - squares
    needed = (left > tolerance**2 * total).sum(1) + 1
    return torch.where(total[:, 0] > 0, needed, 0)


def best_terms(coefficients: Tensor, terms: int) -> Tensor:
    """The best s-term approximation of each row [B, d]: the other coefficients are 0."""
    if terms >= coefficients.shape[1]:
        return coefficients
    largest = coefficients.abs().topk(terms, 1).indices
    return torch.zeros_like(coefficients).scatter(1, largest, coefficients.gather(1, largest))


def tail_norms(coefficients: Tensor) -> Tensor:
    """What the best s terms leave out of rows [n, d], s = 0 … d: the root mean square over rows of
    ‖c − c_s‖, as a share of that of ‖c‖; [d + 1]. Zeros where all is 0."""
    squares = coefficients.double().square().sort(1, descending=True).values.mean(0)
    tails = torch.cat([squares.flip(0).cumsum(0).flip(0), squares.new_zeros(1)])
    return (tails / tails[0].clamp_min(1e-300)).sqrt()
