"""How many measurements sparse recovery needs, what it does to noise, and what it costs.

δ(s, d) is the statistical dimension of the ℓ1 norm's descent cone at a signal with s non-zeros of d
(Amelunxen, Lotz, McCoy and Tropp, arXiv 1303.6672): ℓ1 recovery from m Gaussian measurements
succeeds or fails as m is above or below δ, up to a window of order √d. The laws of noise and the
rules for the latent dimension are derived from it here; none of them is a theorem of the paper on
compressed-sensing diffusion (arXiv 2509.03898), whose own constants are not reproduced.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import torch

from scoretune.compressed.operators import Operator

Rule: TypeAlias = Literal["feasible", "worst_case", "random_noise", "cost"]
RULES: tuple[Rule, ...] = ("feasible", "worst_case", "random_noise", "cost")

RIP_LIMIT = 1 / math.sqrt(2)
"""δ_2s below this makes recovery by ℓ1 stable (Cai and Zhang, arXiv 1306.1154)."""
NARROW, WIDE = 128, 512
"""Ambient dimensions between which the margin over δ falls from 1.5 to 1.3."""


def statistical_dimension(sparsity: float, dimension: int, nonnegative: bool = False) -> float:
    """δ(s, d) = min over τ ≥ 0 of s(1 + τ²) + (d − s) E(|g| − τ)₊², g ~ N(0, 1).

    For signals known to be non-negative the expectation is E(g − τ)₊², half of it.
    """
    return _excess(
        best_threshold(sparsity, dimension, nonnegative), sparsity, dimension, nonnegative
    )


def best_threshold(sparsity: float, dimension: int, nonnegative: bool = False) -> float:
    """The τ where the minimum of `statistical_dimension` lies, inf for no sparsity at all.

    There s τ = (d − s) c (φ(τ) − τ Q(τ)), c = 2, or 1 for non-negative signals.
    """
    _check(sparsity, dimension)
    if sparsity == 0:
        return math.inf
    sides = 1 if nonnegative else 2

    def slope(tau: float) -> float:
        return sparsity * tau - (dimension - sparsity) * sides * (_density(tau) - tau * _tail(tau))

    low, high = 0.0, 40.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return (low + high) / 2


def noise_amplification(delta: float, m: int, case: Literal["random", "worst"] = "random") -> float:
    """‖x̂ − x‖ / ‖e‖ for measurements with an error e.

    Random isotropic e and a tuned weight: √(δ/(m − δ)). Worst case: 2/(1 − √(δ/m)), by the least
    singular value of A on the descent cone, 1 − √(δ/m). Infinite for m ≤ δ.
    """
    if m <= delta:
        return math.inf
    if case == "worst":
        return 2 / (1 - math.sqrt(delta / m))
    return math.sqrt(delta / (m - delta))


def lasso_error_bound(sparsity: float, weight: float, curvature: float) -> float:
    """‖x̂ − x‖ ≤ 3 √s λ / κ where λ ≥ 2 ‖Aᵀe‖_∞ and κ = ‖Av‖²/‖v‖² on v = x̂ − x.

    By optimality ½‖Av‖² ≤ λ (3/2 ‖v_S‖₁ − ½ ‖v_Sᶜ‖₁).
    """
    return 3 * math.sqrt(sparsity) * weight / curvature


def gaussian_norm(m: int, d: int) -> float:
    """‖A‖ ≈ 1 + √(d/m) for independent N(0, 1/m) entries."""
    return 1 + math.sqrt(d / m)


# ---------------------------------------------------------------------------------------- costs


def fista_gap_bound(lipschitz: float, distance_sq: float, k: int) -> float:
    """F(x_k) − F* ≤ 2L‖x_0 − x*‖²/(k + 1)² (Beck and Teboulle 2009, theorem 4.4)."""
    return 2 * lipschitz * distance_sq / (k + 1) ** 2


def ista_gap_bound(lipschitz: float, distance_sq: float, k: int) -> float:
    """F(x_k) − F* ≤ L‖x_0 − x*‖²/(2k) (Beck and Teboulle 2009, theorem 3.1)."""
    return lipschitz * distance_sq / (2 * k)


def fista_steps(m: int, d: int, delta: float) -> float:
    """K(m) ≈ 8 (1 + √(d/m)) / (1 − √(δ/m)): plain FISTA's iterations to 5 % error, a fit."""
    if m <= delta:
        return math.inf
    return 8 * gaussian_norm(m, d) / (1 - math.sqrt(delta / m))


def sequential_steps(m: int, d: int, delta: float, steps_a_dimension: float) -> float:
    """c₁ m + K(m): steps of the sampler, in proportion to its dimension, and of the decoder."""
    return steps_a_dimension * m + fista_steps(m, d, delta)


def decoder_flops(m: int, d: int, iterations: float, *, fast: bool = False) -> float:
    """Operations of a decoded sample: 4md an iteration, or 2 · 5 D log₂ D (`fast`) for an operator
    by a fast transform of length D, the least power of 2 that is d or more."""
    if fast:
        size = 1 << (d - 1).bit_length()
        return iterations * 10 * size * math.log2(size)
    return iterations * 4.0 * m * d


# --------------------------------------------------------------------------- latent dimension


def margin(dimension: int) -> float:
    """m/δ that leaves the window of the phase transition behind: 1.5 for d ≤ 128, 1.3 for
    d ≥ 512, linear in ln d between."""
    share = math.log(dimension / NARROW) / math.log(WIDE / NARROW)
    return 1.5 - 0.2 * min(max(share, 0.0), 1.0)


def latent_dimension(
    sparsity: float,
    dimension: int,
    rule: Rule = "feasible",
    *,
    nonnegative: bool = False,
    exponent: float = 1.0,
    steps_a_dimension: float = 1.0,
) -> int:
    """The number of measurements m ≤ d by a rule; δ = δ(s, d).

    * `feasible`: `margin`·δ, past the window of the phase transition.
    * `worst_case`: a latent error that grows as m^p, p the `exponent`, and the worst case of
      decoding: least for m = δ ((2p+1)/2p)².
    * `random_noise`: the same with the law of random noise: m = δ 2p/(2p−1); p ≤ ½ has no optimum
      (the error falls for ever), and raises ValueError.
    * `cost`: the least `sequential_steps`, `steps_a_dimension` being the sampler's.
    """
    delta, p = statistical_dimension(sparsity, dimension, nonnegative), exponent
    if rule == "cost":
        candidates = range(math.floor(delta) + 1, dimension + 1)
        cost = {m: sequential_steps(m, dimension, delta, steps_a_dimension) for m in candidates}
        return min(cost, key=cost.__getitem__, default=dimension)
    if rule not in RULES:
        raise ValueError(f"no rule {rule!r}: give {', '.join(RULES)}")
    if not p > 0:
        raise ValueError(f"exponent={p:g} must be positive")
    if rule == "random_noise" and p <= 0.5:
        raise ValueError(f"exponent={p:g} has no best m under random noise: give more than 0.5")
    factor = {
        "feasible": lambda: margin(dimension),
        "worst_case": lambda: ((2 * p + 1) / (2 * p)) ** 2,
        "random_noise": lambda: 2 * p / (2 * p - 1),
    }[rule]()
    return min(dimension, max(1, math.ceil(factor * delta)))


# ----------------------------------------------------------------------------------------- RIP


def rip_measurements(sparsity: float, dimension: int, *, failure: float, constant: float) -> float:
    """C (s ln(ed/s) + ln(1/ε)): with so many Gaussian measurements the restricted isometry holds
    with probability 1 − ε; C is a constant that no proof gives sharply."""
    _check(sparsity, dimension)
    return constant * (sparsity * math.log(math.e * dimension / sparsity) - math.log(failure))


def restricted_isometry(operator: Operator, sparsity: int, *, trials: int, seed: int = 0) -> float:
    """A lower bound of the restricted isometry constant δ_s: the largest | ‖Av‖² − 1 | over unit
    vectors v on `trials` random supports of size s. The constant itself is NP-hard."""
    generator = torch.Generator().manual_seed(seed)
    largest = 0.0
    for _ in range(trials):
        support = torch.randperm(operator.d, generator=generator)[:sparsity]
        basis = torch.zeros(sparsity, operator.d, dtype=torch.float64)
        basis[torch.arange(sparsity), support] = 1.0
        columns = operator.forward(basis)
        values = torch.linalg.eigvalsh(columns @ columns.T)
        largest = max(largest, float((values - 1).abs().max()))
    return largest


def _excess(tau: float, sparsity: float, dimension: int, nonnegative: bool) -> float:
    if math.isinf(tau):
        return 0.0
    sides = 1 if nonnegative else 2
    over = sides * ((1 + tau**2) * _tail(tau) - tau * _density(tau))
    return sparsity * (1 + tau**2) + (dimension - sparsity) * over


def _density(tau: float) -> float:
    return math.exp(-(tau**2) / 2) / math.sqrt(2 * math.pi)


def _tail(tau: float) -> float:
    return math.erfc(tau / math.sqrt(2)) / 2


def _check(sparsity: float, dimension: int) -> None:
    if not 0 <= sparsity <= dimension:
        raise ValueError(f"sparsity {sparsity:g} must lie in [0, {dimension}], the dimension")
