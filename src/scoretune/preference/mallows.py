"""Mallows' models of rankings, and the probability that they prefer one of a pair.

A ranking μ has probability ∝ φ^d(μ, μ0): μ0 is the central one, the dispersion φ in (0, 1] says how
far people disagree (0: all agree, 1: all rankings alike) and d is a distance of rankings. With
λ = −ln φ and s = μ0(y2) − μ0(y1), how many ranks y1 stands above y2 (arXiv 2405.14953):

    Mallows-φ, Kendall's tau    P(y1 > y2) = g_φ(s) = h(s+1) − h(s) for s > 0, h(k) = k/(1 − φ^k),
                                g(0) = 1/2, g(−s) = 1 − g(s)
    Mallows-θ                   P(y1 > y2) = σ(2λs)
"""

from __future__ import annotations

import itertools
import math
from typing import Literal

import torch
from torch import Tensor

SMOOTHED = 0.1  # |s| below which g_φ, which jumps at 0, is replaced by a cubic
EXACT = (1e-15, 80.0)  # bounds of λ, beyond which the probability is its limit in any precision
LEARNED = (1e-3, 20.0)  # bounds of λ for learning, between which slopes keep their digits
SERIES = tuple((-1) ** n / math.factorial(n) for n in range(2, 10))  # of e^{−x} from x² on

Kind = Literal["phi", "theta"]


def mallows_probability(gap: Tensor, phi: Tensor | float, kind: Kind = "phi") -> Tensor:
    """P(y1 > y2) of items `gap` ranks apart, exactly: g_φ(s), or σ(−2 ln φ·s). Any shape.

    g_φ jumps at 0: g(0+) = 1/(1 − φ) + 1/ln φ, above 1/2.
    """
    rate = _rate(gap, phi, EXACT)
    if kind == "theta":
        return torch.sigmoid(2 * rate * gap)
    size = gap.abs().clamp(min=torch.finfo(gap.dtype).tiny)
    tail = torch.exp(log_tail(size, rate))
    half = torch.full_like(tail, 0.5)
    return torch.where(gap > 0, 1 - tail, torch.where(gap < 0, tail, half))


def ranking_law(n: int, phi: float, kind: Kind = "phi") -> tuple[Tensor, Tensor]:
    """Every ranking of n items around 0, 1, …, n − 1, and its probability: [n!, n] and [n!].

    Mallows-φ counts inversions, and its pairs have the law g_φ, for every n. Mallows-θ sums squared
    differences of ranks (Spearman); its pairs have the law σ(−2 ln φ·s) for n = 2 alone, since that
    law is the one of paired comparisons, and is to be sampled pair by pair.
    """
    if not 2 <= n <= 8:
        raise ValueError(f"rankings are enumerated for 2 to 8 items, got {n}")
    ranks = torch.tensor(list(itertools.permutations(range(n))), dtype=torch.float64)
    if kind == "theta":
        distance = ((ranks - torch.arange(n)) ** 2).sum(1)
    else:
        one, other = torch.triu_indices(n, n, 1)
        distance = (ranks[:, one] > ranks[:, other]).double().sum(1)
    return ranks, torch.softmax(math.log(phi) * distance, 0)


def log_probability(gap: Tensor, phi: Tensor | float) -> Tensor:
    """ln g_φ(s) for learning: with a value and a slope everywhere. Any shape.

    For |s| < 0.1 it is the logarithm of the odd cubic 1/2 + Bs + As³ that meets g_φ in value and
    slope at ±0.1. λ is kept within [10⁻³, 20].
    """
    rate = _rate(gap, phi, LEARNED)
    size = gap.abs().clamp(min=SMOOTHED)
    lost = log_tail(size, rate)
    outside = torch.where(gap > 0, torch.log1p(-torch.exp(lost)), lost)
    value, slope = _at_the_seam(rate)
    cubic = (slope * SMOOTHED - value) / (2 * SMOOTHED**3)
    linear = (3 * value - slope * SMOOTHED) / (2 * SMOOTHED)
    near = gap.clamp(-SMOOTHED, SMOOTHED)
    inside = torch.log(0.5 + linear * near + cubic * near**3)
    return torch.where(gap.abs() < SMOOTHED, inside, outside)


def _rate(gap: Tensor, phi: Tensor | float, bounds: tuple[float, float]) -> Tensor:
    """λ = −ln φ, kept within bounds."""
    phi = torch.as_tensor(phi, dtype=gap.dtype, device=gap.device)
    if not bool(((phi > 0) & (phi <= 1)).all()):
        raise ValueError(
            f"a dispersion φ lies in (0, 1], got values from {float(phi.min()):.3g} "
            f"to {float(phi.max()):.3g}"
        )
    return (-torch.log(phi)).clamp(*bounds)


def log_tail(size: Tensor, rate: Tensor) -> Tensor:
    """ln(1 − g_φ(s)) for s > 0, without cancellation.

    1 − g = r(s) − r(s+1) with r(k) = k/(e^{kλ} − 1). Brought to one fraction, with x = sλ:

        1 − g = [x·(E(λ) − 1) + (x − 1 + e^{−x})] / [(1 − e^{−x})·(e^{x+λ} − 1)],
        E(λ) = (e^λ − 1)/λ
    """
    x = size * rate
    top = x * (_second(-rate) / rate) + _second(x)
    end = x + rate
    return torch.log(top) - torch.log(-torch.expm1(-x)) - end - torch.log(-torch.expm1(-end))


def _second(x: Tensor) -> Tensor:
    """e^{−x} − 1 + x, by its series where x is small."""
    powers = torch.arange(2, 10, dtype=x.dtype, device=x.device)
    terms = torch.tensor(SERIES, dtype=x.dtype, device=x.device)
    series = (x.clamp(-0.1, 0.1)[..., None] ** powers * terms).sum(-1)
    return torch.where(x.abs() < 0.1, series, torch.expm1(-x) + x)


def _at_the_seam(rate: Tensor) -> tuple[Tensor, Tensor]:
    """g_φ − 1/2 and its slope at s = 0.1."""
    x = SMOOTHED * rate
    end = x + rate
    tail = torch.exp(log_tail(torch.full_like(rate, SMOOTHED), rate))
    top = x * (_second(-rate) / rate) + _second(x)
    growth = (_second(-rate) / rate - torch.expm1(-x)) / top
    decay = growth - 1 / torch.expm1(x) - 1 - 1 / torch.expm1(end)
    return 0.5 - tail, -rate * tail * decay
