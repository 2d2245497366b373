"""Diagonal Gaussians N(m, s²): log-probability, divergence and entropy, summed over dimensions.

Shapes: points, means and standard deviations are [..., D], all alike, or a deviation [] for all of
them; results are [...].
"""

import math

import torch
from torch import Tensor

from scoretune.shapes import check_same_shape, check_shape


def gaussian_log_prob(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """log N(x; m, s²) = −Σ_d [(x − m)²/(2s²) + ln s + ½ ln 2π]."""
    check_same_shape(x=x, mean=mean)
    _check_std(mean, std=std)
    z = (x - mean) / std
    return torch.sum(-(z**2) / 2 - torch.log(std) - math.log(2 * math.pi) / 2, dim=-1)


def gaussian_kl(mean: Tensor, std: Tensor, other_mean: Tensor, other_std: Tensor) -> Tensor:
    """KL(N(m, s²) ‖ N(m₂, s₂²)) = Σ_d ½[(m − m₂)²/s₂² + (s/s₂)² − 1] − ln(s/s₂)."""
    check_same_shape(mean=mean, other_mean=other_mean)
    _check_std(mean, std=std, other_std=other_std)
    ratio = std / other_std
    shift = (mean - other_mean) / other_std
    return torch.sum((shift**2 + ratio**2 - 1) / 2 - torch.log(ratio), dim=-1)


def gaussian_entropy(std: Tensor) -> Tensor:
    """−E log N(x; m, s²) = Σ_d [ln s + ½ ln 2πe], whatever the mean."""
    return torch.sum(torch.log(std) + (1 + math.log(2 * math.pi)) / 2, dim=-1)


def _check_std(mean: Tensor, **stds: Tensor) -> None:
    for name, std in stds.items():
        if std.dim():
            check_shape(mean.shape, **{name: std})
