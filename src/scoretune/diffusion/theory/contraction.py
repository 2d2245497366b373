"""How a sampler carries errors to the data: contraction, amplification, and bounds on the sum.

The reverse dynamics of arXiv 2401.13115 and arXiv 2402.07487, with g²dt = α²dρ² and ρ = σ/α:

    dx = [f x − (1+η²)/2 g² s] dt + η g dw̄.

Closed forms are for data N(m, s²).
"""

import math
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from scoretune.diffusion.processes import Process, diffusion_sq, drift_rate, noise_ratio
from scoretune.diffusion.theory.gaussian import scaled_variance, state_variance
from scoretune.shapes import check_same_shape

ErrorOf: TypeAlias = Literal["score", "noise"]
POINTS = 4001


def rate(process: Process, t: Tensor, curvature: Tensor | float, *, eta: float = 1.0) -> Tensor:
    """κ_η(t) = f + (1+η²)/2 g² ℓ, same shape as t: coupled backward paths shrink by e^{−∫κ}.

    `curvature` ℓ is −λ_max(∇s), which is 1/v for Gaussian data and can be negative for others. With
    ℓ = −L and η = 1 this is the r_b − L g² of arXiv 2401.13115, Assumption 3.
    """
    if isinstance(curvature, Tensor) and curvature.dim():
        check_same_shape(t=t, curvature=curvature)
    return drift_rate(process, t) + (1 + eta**2) / 2 * diffusion_sq(process, t) * curvature


def memory(process: Process, t: Tensor, *, variance: float, eta: float) -> Tensor:
    """Φ_t = e^{−∫_0^t κ_η} = (s²/v)^{1/2} (s²/u)^{η²/2}: what a shift at t leaves at the data."""
    v, u = state_variance(process, t, variance), scaled_variance(process, t, variance)
    return torch.sqrt(variance / v) * (variance / u) ** (eta**2 / 2)


def initial_bias(process: Process, *, variance: float, eta: float) -> float:
    """q_η = (s²/u_T)^{(1+η²)/2}: the share of the data's mean that N(0, π²) as a start loses."""
    last = torch.tensor(process.horizon, dtype=torch.float64)
    kept: float = (variance / float(scaled_variance(process, last, variance))) ** ((1 + eta**2) / 2)
    return kept


def amplification(process: Process, *, variance: float, eta: float, of: ErrorOf = "score") -> float:
    """The shift of a sample's mean by a constant error 1 of the score, or of ε̂, at every time.

    ∫ (1+η²)/2 g² Φ_t e(t) dt with e = 1 or e = 1/σ. The second is, with z = asinh(ρ/s),

        (1+η²) s ∫ cosh^{−η²}z dz   for z from 0 to asinh(ρ_T/s):

    of the process it knows ρ_T alone.
    """
    last = noise_ratio(process, torch.tensor(process.horizon, dtype=torch.float64))
    if not math.isfinite(float(last)):
        raise ValueError(f"amplification needs a finite σ/α at the horizon and {process} has none")
    if of == "noise":
        std = math.sqrt(variance)
        z = torch.linspace(0, 1, POINTS, dtype=torch.float64) * torch.asinh(last / std)
        return (1 + eta**2) * std * _simpson(torch.cosh(z) ** -(eta**2), z)
    root = torch.linspace(1e-6, 1, POINTS, dtype=torch.float64)  # of t/T: dense near the data
    t = process.horizon * root**2
    carried = diffusion_sq(process, t) * memory(process, t, variance=variance, eta=eta)
    return (1 + eta**2) * process.horizon * _simpson(carried * root, root)


def noise_amplification(ratio: float, *, variance: float, eta: float) -> float:
    """The closed forms of the same for ε̂: s·asinh(ρ_T/s) at η = 0, 2s·arctan(ρ_T/s) at η = 1.

    Without a limit to the noise, ratio = ∞, (1+η²) s √π Γ(η²/2) / (2Γ((1+η²)/2)) for every η > 0.
    """
    std = math.sqrt(variance)
    if math.isinf(ratio) and eta > 0:
        ends = math.lgamma(eta**2 / 2) - math.lgamma((1 + eta**2) / 2)
        return (1 + eta**2) * std * math.sqrt(math.pi) / 2 * math.exp(ends)
    if eta == 0:
        return std * math.asinh(ratio / std)
    if eta == 1:
        return 2 * std * math.atan(ratio / std)
    raise ValueError(f"no closed form for eta = {eta} up to σ/α = {ratio}: use amplification")


# ----------------------------------------------------------------------------- bounds


def wasserstein_bound(
    process: Process,
    *,
    initial_error: float,
    score_error: float,
    lipschitz: float | None = None,
    variance: float = 1.0,
) -> float:
    """Theorem 1 of arXiv 2401.13115 (Thm 5.4 of 2402.07487): W2(data, samples) is at most

        √(ι² e^{U(T)} + ε²/2h ∫_0^T g² e^{U(t)} dt),   U(t) = ∫_0^t (−2f + (2L + 2h)g²).

    ι is W2 of the prior and p_T, ε the score's error in L2 at every time. L is the score's
    Lipschitz constant: `lipschitz`, or 1/v_t of Gaussian data of the given variance. h is the best
    one.
    """
    t = torch.linspace(0, process.horizon, POINTS, dtype=torch.float64)[1:]  # f, g² may end at 0
    t = torch.cat([t[:1] * 1e-6, t])
    g_sq, f = diffusion_sq(process, t), drift_rate(process, t)
    steep = 1 / state_variance(process, t, variance) if lipschitz is None else lipschitz

    def bound(slack: float) -> float:
        grown = torch.exp(_running(-2 * f + 2 * (steep + slack) * g_sq, t))
        carried = score_error**2 / (2 * slack) * _trapezoid(g_sq * grown, t)
        return math.sqrt(initial_error**2 * float(grown[-1]) + carried)

    return min(bound(10 ** (k / 20)) for k in range(-80, 41))


def log_concave_bound(*, concavity: float, second_moment: float, score_error: float) -> float:
    """Theorem 2 of arXiv 2401.13115 for contractive VP as its horizon grows: W2 is at most

        √(e^{−2κ/(1+κ)} E|x|² + ε²/(2h(1 − 2h))),   here with the best h = ¼.

    The data are κ-strongly log-concave. The first term does not vanish: σ/α stays below 1.
    """
    h = 0.25
    kept = math.exp(-2 * concavity / (1 + concavity)) * second_moment
    return math.sqrt(kept + score_error**2 / (2 * h * (1 - 2 * h)))


def pinsker(path_kl: float) -> float:
    """The total variation of two path measures is at most √(KL/2)."""
    return math.sqrt(path_kl / 2)


def total_variation_bound(process: Process, *, initial: float, score_error: float) -> float:
    """Theorem 5.1 of arXiv 2402.07487: TV(data, samples) <= TV(p_T, prior) + ε √(∫g²dt)/2.

    By Pinsker from the path KL ½∫g²ε²; where g² = 2 the last term is the paper's ε√(T/2).
    """
    t = torch.linspace(0, process.horizon, POINTS, dtype=torch.float64)
    return initial + pinsker(score_error**2 * _trapezoid(diffusion_sq(process, t), t) / 2)


def forgetting_bound(process: Process, *, second_moment: float) -> float:
    """Cor. 5.2 of arXiv 2402.07487, first term: TV(p_T, N(0, 1)) <= α_T √(E|x|²/2).

    Raises ValueError for a process that does not preserve variance.
    """
    end = torch.tensor(process.horizon, dtype=torch.float64)
    alpha, sigma = float(process.alpha(end)), float(process.sigma(end))
    if abs(alpha**2 + sigma**2 - 1) > 1e-6:
        raise ValueError(f"{process} does not preserve variance, which this bound is for")
    return alpha * math.sqrt(second_moment / 2)


def _simpson(values: Tensor, x: Tensor) -> float:
    """Over an odd number of equal steps' ends: order 4."""
    ends, odd, even = values[0] + values[-1], values[1:-1:2].sum(), values[2:-1:2].sum()
    return float((x[1] - x[0]) / 3 * (ends + 4 * odd + 2 * even))


def _trapezoid(values: Tensor, x: Tensor) -> float:
    return float(torch.trapezoid(values, x))


def _running(values: Tensor, x: Tensor) -> Tensor:
    """∫ from x[0] to each x, [N]."""
    return torch.cat([torch.zeros_like(x[:1]), torch.cumulative_trapezoid(values, x)])
