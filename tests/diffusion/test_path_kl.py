"""KL of whole paths: the sum over steps is a property of the SDE, not of the grid."""

import math

import pytest
import torch

from scoretune.diffusion.estimates import Estimate
from scoretune.diffusion.grids import karras, uniform
from scoretune.diffusion.kernels import GDDIM, Constant, EulerMaruyama, Memoryless
from scoretune.diffusion.processes import VP

F64 = torch.float64
S0, THETA = 0.25, 0.7


def _shift(process, t):
    """h(u) = α/Σ: s_pre + θh is the exact score of N(m + θ, S₀) diffused."""
    alpha, sigma = process.alpha(t), process.sigma(t)
    return alpha / (alpha**2 * S0 + sigma**2)


def _path_kl(kernel, process, times, noise_shift):
    """Σ KL of the steps of two estimates that differ by noise_shift in ε (and so in x̂)."""
    t, t_next = times[:-1], times[1:]
    x = torch.randn(len(t), 1, dtype=F64)
    ratio = (process.sigma(t) / process.alpha(t))[:, None]
    moved = Estimate(x - ratio * noise_shift[:, None], x + noise_shift[:, None])
    base = kernel(process, x, Estimate(x, x), t, t_next)
    return float(kernel(process, x, moved, t, t_next).kl(base).sum())


def test_gaussian_family_by_quadrature():
    process = VP()
    t = torch.linspace(0, 1, 20001, dtype=F64)
    rate = process.sde(t)[1] * _shift(process, t) ** 2 * THETA**2 / 2
    assert float(torch.trapezoid(rate, t)) == pytest.approx(THETA**2 / (2 * S0), rel=1e-4)


@pytest.mark.parametrize("kernel", [EulerMaruyama(Memoryless()), GDDIM(1.0)], ids=str)
def test_gaussian_family_by_the_kernels_own_steps(kernel):
    # ½∫βh²θ² = θ²/(2S₀), the KL of the end points themselves: the bound is tight.
    process = VP()
    times = uniform(process, 4000, t_end=1e-5, dtype=F64)
    t = times[:-1]
    noise_shift = -process.sigma(t) * THETA * _shift(process, t)
    assert _path_kl(kernel, process, times, noise_shift) == pytest.approx(
        THETA**2 / (2 * S0), rel=0.01
    )


@pytest.mark.parametrize(
    ("eta", "expected"), [(1.0, 0.09583), (0.5, 0.14973), (2.0, 0.14973), (1.5, 0.11246)]
)
def test_constant_noise_error(eta, expected):
    # ((1+η²)/2η)² ln(ρ_T/ρ_ε) ‖Δε‖² with ε = 1e-3 and Δε = .1, whatever the kernel and the grid.
    process = VP()
    for kernel in (GDDIM(eta), EulerMaruyama(Constant(eta))):
        times = karras(process, 20000, t_end=1e-3, dtype=F64)
        total = _path_kl(kernel, process, times, torch.full((20000,), 0.1, dtype=F64))
        assert total == pytest.approx(expected, rel=2e-3)


def test_step_kl_of_gddim_in_closed_form():
    # (e^h − e^{−η²h})²/(2(1 − e^{−2η²h})) ‖Δε‖².
    process, eta = VP(), 1.3
    times = torch.tensor([0.6, 0.5], dtype=F64)
    ratio = process.sigma(times) / process.alpha(times)
    h = math.log(float(ratio[0] / ratio[1]))
    expected = (math.exp(h) - math.exp(-(eta**2) * h)) ** 2 / 2 / (1 - math.exp(-2 * eta**2 * h))
    total = _path_kl(GDDIM(eta), process, times, torch.full((1,), 0.1, dtype=F64))
    assert total == pytest.approx(expected * 0.01, rel=1e-10)
