"""Beyond the aligned weights, along the way that alignment went."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def extrapolated(
    aligned: Mapping[str, Tensor], base: Mapping[str, Tensor], alpha: float
) -> dict[str, Tensor]:
    """θ_a + α(θ_a − θ_b) of two sets of weights with the same names (ExPO, arXiv 2404.16792);
    α = 0 is the aligned one, −1 the base."""
    if aligned.keys() != base.keys():
        names = sorted(aligned.keys() ^ base.keys())
        raise ValueError(f"both sets of weights need the same names; only one has {names[:3]}")
    return {name: theta + alpha * (theta - base[name]) for name, theta in aligned.items()}
