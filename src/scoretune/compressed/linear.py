"""The best linear decoder of some data. It is no sparse recovery, and a good place to begin one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scoretune.compressed.operators import Dense

NOISE = 1 / 20
"""Error that measurements are taken to have, as a share of their standard deviation."""


@dataclass(frozen=True)
class LinearDecoder:
    """Coefficients [B, d] of measurements y [B, m] as an affine function: `slopes` [d, m]."""

    slopes: Dense
    offset: Tensor

    def __call__(self, y: Tensor) -> Tensor:
        return self.slopes.forward(y) + self.offset.to(y)


def linear_decoder(y: Tensor, x: Tensor) -> LinearDecoder:
    """Least squares of x [n, d] on y [n, m], for errors of `NOISE` in y; kept as x is.

    With rows without their means and σ² = n·(NOISE·std y)²: slopesᵀ = (YᵀY + σ²)⁻¹ YᵀX, or where
    there are fewer rows than measurements the same as Yᵀ (YYᵀ + σ²)⁻¹ X.
    """
    y64, x64 = y.double(), x.double()
    left, right = y64 - y64.mean(0), x64 - x64.mean(0)
    noise = max(len(y) * float(y64.std() * NOISE) ** 2, 1e-12)
    if len(y) < y.shape[1]:
        gram = left @ left.T + noise * torch.eye(len(y)).to(left)
        slopes = (left.T @ torch.linalg.solve(gram, right)).T.contiguous()
    else:
        gram = left.T @ left + noise * torch.eye(y.shape[1]).to(left)
        slopes = torch.linalg.solve(gram, left.T @ right).T.contiguous()
    return LinearDecoder(Dense(slopes.to(x)), (x64.mean(0) - slopes @ y64.mean(0)).to(x))
