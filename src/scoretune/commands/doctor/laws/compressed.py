"""Laws of compressed sensing: statistical dimensions, operators, recovery and its noise."""

from __future__ import annotations

import torch

from scoretune.commands.doctor.laws.base import Law, measurement
from scoretune.compressed import (
    BASES,
    OPERATORS,
    Gaussian,
    Operator,
    best_threshold,
    decode,
    fista,
    latent_dimension,
    message_passing,
    noise_amplification,
    statistical_dimension,
)
from scoretune.compressed.sparsity import sparse_signals

F64 = torch.float64


def sparse(count: int, d: int, s: int, seed: int, device: torch.device) -> torch.Tensor:
    """Signals [count, d] with s entries ±(1 + |g|)."""
    return sparse_signals(count, d, s, torch.Generator().manual_seed(seed)).to(device)


@measurement
def dimension(device: torch.device, s: int, d: int, nonnegative: bool = False) -> float:
    return statistical_dimension(s, d, nonnegative)


def adjoints(device: torch.device) -> float:
    """Largest error of ⟨Ax, y⟩ = ⟨x, Aᵀy⟩ and of Ψ(Ψᵀx) = x, all operators and bases."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 32, generator=generator, dtype=F64).to(device)
    y = torch.randn(3, 9, generator=generator, dtype=F64).to(device)
    errors = []
    for kind in OPERATORS.values():
        operator: Operator = kind(9, 32, 1)
        errors.append(((operator.forward(x) * y).sum() - (x * operator.adjoint(y)).sum()).abs())
    for basis_of in BASES.values():
        basis = basis_of((2, 16))
        errors.append((basis.synthesis(basis.analysis(x.view(3, 2, 16))).flatten(1) - x).norm())
    return max(float(error) for error in errors)


@measurement
def success(device: torch.device, m: int) -> float:
    """Share of signals with 5 of 128 entries that m exact measurements give back within 1 %."""
    x, operator = sparse(30, 128, 5, 1, device), Gaussian(m, 128, 0)
    solved = fista(operator, operator.forward(x), 1e-3, iterations=2000)
    return float(((solved.x - x).norm(dim=1) < 0.01 * x.norm(dim=1)).double().mean())


def certificate(device: torch.device) -> float:
    """The largest violation of optimality that FISTA leaves, as a share of the weight."""
    x, operator = sparse(3, 128, 5, 2, device), Gaussian(64, 128, 0)
    return float(fista(operator, operator.forward(x), 0.1, tolerance=1e-8).kkt.max())


@measurement
def amplified(device: torch.device, m: int) -> float:
    """‖x̂ − x‖/‖e‖ for random errors e of the measurements, over the law's."""
    x, operator = sparse(60, 128, 5, 3, device), Gaussian(m, 128, 1)
    noise = torch.randn(60, m, generator=torch.Generator().manual_seed(4), dtype=F64) * 0.02
    y = operator.forward(x) + noise.to(device)
    solved = fista(operator, y, 1.25 * 0.02, tolerance=1e-4)
    ratio = (solved.x - x).norm() / noise.norm()
    return float(ratio) / noise_amplification(statistical_dimension(5, 128), m)


def calibration(device: torch.device) -> float:
    """How far the fixed point of message passing is from the lasso that it says to solve."""
    x, operator = sparse(2, 256, 10, 5, device), Gaussian(128, 256, 2)
    y, alpha = operator.forward(x) + 0.01, best_threshold(10, 256)
    passed, weight = message_passing(operator, y, alpha, iterations=300, tolerance=1e-9)
    solved = fista(operator, y, weight[:, None], tolerance=1e-7, iterations=5000)
    return float((solved.x - passed.x).norm() / x.norm())


def slope(device: torch.device) -> float:
    """Relative error of the decoder's derivative, against a difference of solutions."""
    x, operator = sparse(1, 64, 4, 6, device), Gaussian(40, 64, 3)
    y = operator.forward(x).requires_grad_(True)
    step = torch.randn(1, 40, generator=torch.Generator().manual_seed(7), dtype=F64).to(device)

    def value(y: torch.Tensor) -> torch.Tensor:
        return decode(operator, y, 0.1, tolerance=1e-11, iterations=5000).x.square().sum()

    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(value(y), y)
    with torch.no_grad():
        numeric = (value(y + 1e-5 * step) - value(y - 1e-5 * step)) / 2e-5
    return abs(float((gradient * step).sum() / numeric) - 1)


@measurement
def cheapest(device: torch.device, steps_a_dimension: float) -> float:
    return latent_dimension(5, 128, "cost", steps_a_dimension=steps_a_dimension)


AMELUNXEN = "statistical dimension of the ℓ1 descent cone, arXiv 1303.6672"
LAWS = (
    Law("δ(5, 128) of ℓ1 recovery", 21.87, dimension(5, 128), 5e-3, AMELUNXEN),
    Law("δ(20, 400) of ℓ1 recovery", 81.56, dimension(20, 400), 5e-3, AMELUNXEN),
    Law("δ(5, 128) of non-negative recovery", 18.0, dimension(5, 128, True), 0.05, AMELUNXEN),
    Law("adjoints and bases of measurements", 0, adjoints, 1e-12, "⟨Ax, y⟩ = ⟨x, Aᵀy⟩, ΨΨᵀ = 1"),
    Law("recovery from m = 12, far below δ", 0, success(12), 0.05, AMELUNXEN),
    Law("recovery from m = 40, far above δ", 1, success(40), 0.05, AMELUNXEN),
    Law("FISTA ends at a KKT point", 0, certificate, 1e-8, "Beck and Teboulle 2009"),
    Law("noise of recovery over √(δ/(m−δ)), m = 64", 1, amplified(64), 0.15, "derived"),
    Law("message passing solves its lasso", 0, calibration, 1e-4, "arXiv 0907.3574"),
    Law("derivative of the decoder", 0, slope, 1e-5, "implicit function theorem"),
    Law("cheapest m at 1 step a dimension", 57, cheapest(1.0), 1, "c₁m + K(m), derived"),
)
