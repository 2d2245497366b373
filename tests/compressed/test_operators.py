"""Measurement operators and bases: adjoints, norms, isometry, and what they are equal to."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import fft, linalg

from scoretune.compressed import (
    BASES,
    OPERATORS,
    Gaussian,
    Wavelet,
    best_terms,
    fingerprint,
    in_basis,
    sparsities,
)
from scoretune.compressed.bases import FILTERS, dct, inverse_dct
from scoretune.compressed.operators import NARROW, hadamard

F64 = torch.float64


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def matrix(operator) -> torch.Tensor:
    return operator.forward(torch.eye(operator.d, dtype=F64)).T


@pytest.mark.parametrize("kind", OPERATORS)
@pytest.mark.parametrize(("m", "d"), [(7, 16), (16, 16), (10, 24), (1, 5)])
def test_operators(kind, m, d):
    operator, other = OPERATORS[kind](m, d, 3), OPERATORS[kind](m, d, 4)
    x, y = normal(5, d), normal(5, m, seed=1)
    assert float((operator.forward(x) * y).sum()) == pytest.approx(
        float((x * operator.adjoint(y)).sum()), rel=1e-12
    )
    a = matrix(operator)
    assert a.shape == (m, d)
    torch.testing.assert_close(operator.forward(x), x @ a.T)
    largest = float(torch.linalg.matrix_norm(a, 2))
    if kind == "hadamard" and d != operator.padded:
        assert largest <= operator.norm() * (1 + 1e-12)
    else:
        assert operator.norm() == pytest.approx(largest, rel=1e-10)
    torch.testing.assert_close(operator.forward(x.float()), (x @ a.T).float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(OPERATORS[kind](m, d, 3).forward(x), operator.forward(x))
    assert not torch.equal(fingerprint(other), fingerprint(operator))
    assert fingerprint(operator).shape == (min(m, 8),)


@pytest.mark.parametrize("count", [1, NARROW, NARROW + 1])
def test_few_states_are_measured_as_many_are(count):
    operator, x = Gaussian(10, 24, 0), normal(count, 24)
    measured = operator.forward(x)
    assert measured.is_contiguous()
    torch.testing.assert_close(measured, torch.einsum("md,bd->bm", operator.dense.matrix, x))


@pytest.mark.parametrize("kind", OPERATORS)
def test_measurements_keep_the_norm_on_average(kind):
    x = normal(1, 32)
    ratios = [
        float(OPERATORS[kind](8, 32, seed).forward(x).square().sum() / x.square().sum())
        for seed in range(100)
    ]
    assert sum(ratios) / 100 == pytest.approx(1, abs=0.15)


def test_the_gaussian_norm():
    for m, squared in ((32, 8.46), (64, 5.54), (128, 3.89)):
        norms = [Gaussian(m, 128, seed).norm() ** 2 for seed in range(5)]
        assert sum(norms) / 5 == pytest.approx(squared, rel=0.05)


def test_sizes_are_checked():
    for m in (0, 9):
        with pytest.raises(ValueError, match="1 <= m <= 8"):
            Gaussian(m, 8)
    with pytest.raises(ValueError, match="power of 2"):
        hadamard(torch.ones(3, 6))


def test_fast_transforms_are_those_of_scipy():
    for size in (1, 2, 3, 8, 13):
        x = normal(4, size)
        expected = torch.from_numpy(fft.dct(x.numpy(), norm="ortho"))
        torch.testing.assert_close(dct(x), expected)
        torch.testing.assert_close(inverse_dct(expected), x)
    torch.testing.assert_close(
        hadamard(torch.eye(8, dtype=F64)) * math.sqrt(8), torch.tensor(linalg.hadamard(8)).double()
    )


@pytest.mark.parametrize("shape", [(16,), (2, 24), (1, 16, 8), (3, 8, 8)])
def test_bases_are_orthonormal(shape):
    for name, made in BASES.items():
        basis = made(shape)
        x, c = normal(3, *shape), normal(3, math.prod(shape), seed=1)
        coefficients = basis.analysis(x)
        assert coefficients.shape == (3, math.prod(shape)), name
        torch.testing.assert_close(basis.synthesis(coefficients), x)
        torch.testing.assert_close(basis.analysis(basis.synthesis(c)), c)
        torch.testing.assert_close(coefficients.square().sum(1), x.flatten(1).square().sum(1))


def test_wavelets():
    """Filters are orthonormal, with as many vanishing moments as their name says."""
    for name, taps in FILTERS.items():
        low, high = Wavelet((16,), name)._filters()
        for shift in range(0, len(taps), 2):
            dot = sum(a * b for a, b in zip(low[shift:], low[: len(low) - shift], strict=True))
            assert dot == pytest.approx(float(shift == 0), abs=1e-14)
        for moment in range(len(taps) // 2):
            assert sum(j**moment * g for j, g in enumerate(high)) == pytest.approx(0, abs=1e-8)
    assert Wavelet((1, 16, 12)).levels == 2 and Wavelet((16,), "db4").levels == 2
    step = torch.tensor([[1.0] * 8 + [0.0] * 8])
    assert int((Wavelet((16,)).analysis(step).abs() > 1e-6).sum()) == 2
    with pytest.raises(ValueError, match="even sides of 4"):
        Wavelet((1, 7, 8), "db2")
    with pytest.raises(ValueError, match="no wavelet"):
        Wavelet((8,), "db3")


@pytest.mark.parametrize("kind", OPERATORS)
def test_an_operator_in_a_basis(kind):
    basis, operator = BASES["haar"]((1, 4, 4)), OPERATORS[kind](6, 16, 1)
    both, c, y = in_basis(operator, basis), normal(3, 16), normal(3, 6, seed=1)
    torch.testing.assert_close(both.forward(c), operator.forward(basis.synthesis(c).flatten(1)))
    assert float((both.forward(c) * y).sum()) == pytest.approx(float((c * both.adjoint(y)).sum()))
    assert both.norm() == pytest.approx(operator.norm(), rel=1e-9)
    assert (both.m, both.d) == (6, 16)


def test_sparsities():
    c = torch.tensor([[3.0, 0, 4, 0], [0, 0, 0, 0], [1, 1, 1, 1], [100, 1, 0, 0]])
    assert sparsities(c, 0.0).tolist() == [2, 0, 4, 2]
    assert sparsities(c, 0.05).tolist() == [2, 0, 4, 1]
    assert sparsities(c, 0.6).tolist() == [1, 0, 3, 1]
    kept = best_terms(c, 1)
    assert kept.tolist()[0] == [0, 0, 4, 0] and kept.tolist()[3] == [100, 0, 0, 0]
    assert torch.equal(best_terms(c, 4), c)
    x = normal(6, 40)
    for s, row in zip(sparsities(x, 0.3).tolist(), x, strict=True):
        assert float((row - best_terms(row[None], s)[0]).norm() / row.norm()) <= 0.3
        assert float((row - best_terms(row[None], s - 1)[0]).norm() / row.norm()) > 0.3
