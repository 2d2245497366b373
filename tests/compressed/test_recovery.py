"""Sparse recovery: against scikit-learn, against its bounds, and against its own conditions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso, Ridge

from scoretune.compressed import (
    Dense,
    Gaussian,
    RandomisedHadamard,
    SubsampledDCT,
    best_threshold,
    debiased,
    decode,
    fista,
    fista_gap_bound,
    ista,
    ista_gap_bound,
    kkt_violation,
    lasso_error_bound,
    message_passing,
    objective,
    proximal,
)
from scoretune.compressed.linear import NOISE, linear_decoder

F64 = torch.float64


def problem(m=64, d=128, s=5, batch=2, seed=0, *, nonnegative=False):
    """A Gaussian operator, sparse signals and their measurements."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.zeros(batch, d, dtype=F64)
    for row in x:
        values = torch.randn(s, generator=generator, dtype=F64)
        values = values.sign() * (1 + values.abs())
        row[torch.randperm(d, generator=generator)[:s]] = values.abs() if nonnegative else values
    operator = Gaussian(m, d, seed)
    return operator, x, operator.forward(x)


def by_sklearn(operator, y, weight, *, positive=False):
    """scikit-learn minimises ‖y − Ax‖²/2m + α‖x‖₁."""
    solver = Lasso(
        weight / operator.m, fit_intercept=False, positive=positive, tol=1e-14, max_iter=20_000
    )
    rows = [solver.fit(operator.dense.matrix.numpy(), row).coef_.copy() for row in y.numpy()]
    return torch.from_numpy(np.stack(rows))


@pytest.mark.parametrize("weight", [0.05, 0.3])
@pytest.mark.parametrize("positive", [False, True])
def test_the_solution_is_scikit_learns(weight, positive):
    operator, _, y = problem(nonnegative=positive)
    box = (0.0, math.inf) if positive else None
    for solved in (
        fista(operator, y, weight, box=box, iterations=20_000, tolerance=1e-11),
        fista(operator, y, weight, box=box, iterations=20_000, tolerance=1e-11, adaptive=False),
    ):
        expected = by_sklearn(operator, y, weight, positive=positive)
        torch.testing.assert_close(solved.x, expected, rtol=0, atol=1e-8)
        assert solved.unconverged(1e-11) == 0


def test_correctness_of_fista_and_ista_by_their_bounds():
    """C-1: the certificate, the bounds on the objective at every k, and the relative error."""
    weight = 1e-3
    operator, truth, y = problem(batch=1)
    best = fista(operator, y, weight, iterations=10_000, tolerance=1e-10)
    assert float(best.kkt) <= 1e-6
    least = objective(operator, best.x, y, weight)
    distance, lipschitz = float(best.x.square().sum()), operator.norm() ** 2
    for k in (10, 50, 100, 200, 500):
        plain = fista(operator, y, weight, iterations=k, tolerance=0, adaptive=False)
        gap = float(objective(operator, plain.x, y, weight) - least)
        assert gap <= fista_gap_bound(lipschitz, distance, k)
        slow = ista(operator, y, weight, iterations=k, tolerance=0)
        slower = float(objective(operator, slow.x, y, weight) - least)
        assert slower <= ista_gap_bound(lipschitz, distance, k)
    adaptive = fista(operator, y, weight, iterations=500, tolerance=0)
    assert float(objective(operator, adaptive.x, y, weight) - least) < 1e-10
    assert slower > 1e-3
    assert float((best.x - truth).norm() / truth.norm()) <= 2e-3


def test_the_deterministic_bound_on_the_error():
    for seed in range(5):
        operator, truth, y = problem(batch=1, seed=seed)
        noise = 0.05 * torch.randn(y.shape, generator=torch.Generator().manual_seed(seed)).double()
        weight = 2 * float(operator.adjoint(noise).abs().max())
        x = fista(operator, y + noise, weight, iterations=5000, tolerance=1e-8).x
        error = x - truth
        curvature = float(operator.forward(error).square().sum() / error.square().sum())
        assert float(error.norm()) <= lasso_error_bound(5, weight, curvature)


def test_every_sample_is_solved_as_if_alone():
    operator, _, y = problem(batch=5)
    y[2] *= 100
    together = fista(operator, y, 0.05, tolerance=1e-6)
    assert len(set(together.iterations.tolist())) > 1
    for i in range(5):
        alone = fista(operator, y[i : i + 1], 0.05, tolerance=1e-6)
        torch.testing.assert_close(alone.x[0], together.x[i])
        assert int(alone.iterations[0]) == int(together.iterations[i])


def test_a_box_keeps_the_conditions_of_the_constrained_problem():
    """Against a solution by projected coordinate descent, written out here."""
    operator, truth, _ = problem(m=40, d=60, s=15, batch=2, nonnegative=True)
    y, weight, box = operator.forward(truth.clamp(max=1.5)), 0.02, (0.0, 1.5)
    solved = fista(operator, y, weight, box=box, iterations=20_000, tolerance=1e-10)
    a = operator.dense.matrix
    x = torch.zeros_like(truth)
    for _ in range(120):
        for j in range(60):
            rest = y - x @ a.T + x[:, j : j + 1] * a[:, j]
            value = (rest @ a[:, j] - weight) / a[:, j].square().sum()
            x[:, j] = value.clamp(*box)
    torch.testing.assert_close(solved.x, x, rtol=0, atol=1e-6)
    assert bool((solved.x == 1.5).any())
    assert float(kkt_violation(operator, x, y, weight, box).max()) < 1e-6
    wrong = kkt_violation(operator, x + 0.01 * (x > 0), y, weight, box)
    assert float(wrong.min()) > 1e-2


def test_weights_a_coordinate_each_and_a_warm_start():
    operator, truth, y = problem(m=24)
    weights = torch.where(truth != 0, 1e-4, 1.0)  # an oracle's
    uniform, weighted = (fista(operator, y, w, iterations=5000) for w in (0.05, weights))
    error = [(r.x - truth).norm() for r in (uniform, weighted)]
    assert error[1] < 1e-2 < error[0]
    again = fista(operator, y, weights, start=weighted.x)
    assert int(again.iterations.max()) == 0
    torch.testing.assert_close(again.x, weighted.x)
    near = fista(operator, y, 0.049, iterations=5000, start=uniform.x)
    assert int(near.iterations.sum()) < int(uniform.iterations.sum())


@pytest.mark.parametrize("batch", [50, 12])
def test_the_linear_decoder_is_scikit_learns(batch):
    """With more states than measurements, and with fewer."""
    _, x, y = problem(m=20, d=30, batch=batch)
    x, y = x + 3, y + 1
    ridge = Ridge(len(y) * (NOISE * float(y.std())) ** 2).fit(y, x)
    torch.testing.assert_close(linear_decoder(y, x)(y), torch.from_numpy(ridge.predict(y)))
    assert linear_decoder(y.float(), x.float())(y.float()).dtype == torch.float32


def test_debiasing_takes_the_shrinkage_back():
    operator, truth, y = problem()
    shrunk = fista(operator, y, 0.3, iterations=2000, tolerance=1e-8).x
    assert float((shrunk - truth).norm()) > 0.1
    assert torch.equal(shrunk != 0, truth != 0)
    torch.testing.assert_close(debiased(operator, y, shrunk), truth, atol=1e-8, rtol=0)
    boxed = debiased(operator, y, shrunk, box=(-0.5, 0.5))
    assert float(boxed.abs().max()) <= 0.5


@pytest.mark.parametrize("kind", [SubsampledDCT, RandomisedHadamard])
def test_fast_operators_recover_as_well(kind):
    _, truth, _ = problem()
    operator = kind(64, 128, 2)
    solved = fista(operator, operator.forward(truth), 1e-3, iterations=3000, tolerance=1e-6)
    assert float((solved.x - truth).norm() / truth.norm()) < 2e-3
    single = fista(operator, operator.forward(truth).float(), 1e-2, iterations=3000)
    assert single.x.dtype == torch.float32 and single.unconverged(1e-3) == 0


def test_message_passing_solves_a_lasso_in_few_iterations():
    operator, _, _ = problem(m=250, d=500, batch=1)
    truth = torch.zeros(2, 500, dtype=F64)
    truth[:, :25] = 1.0
    noise = 0.05 * torch.randn(2, 250, generator=torch.Generator().manual_seed(1)).double()
    y = operator.forward(truth) + noise
    alpha = best_threshold(25, 500)
    solved, weight = message_passing(operator, y, alpha, tolerance=1e-9, iterations=300)
    assert int(solved.iterations.max()) < 150 and float(solved.kkt.max()) < 1e-3
    lasso = fista(operator, y, weight[:, None], iterations=20_000, tolerance=1e-9)
    torch.testing.assert_close(solved.x, lasso.x, atol=1e-4, rtol=0)
    positive, _ = message_passing(operator, y, best_threshold(25, 500, True), nonnegative=True)
    assert float(positive.x.min()) >= 0
    assert float((positive.x - truth).norm()) < float((solved.x - truth).norm())


def test_the_gradient_of_the_decoder_is_that_of_the_solution():
    operator, truth, y = problem(m=30, d=40, s=6, batch=2, nonnegative=True)
    y = operator.forward(truth.clamp(max=2.0))
    for box in (None, (0.0, 1.9)):
        direction = torch.randn(y.shape, generator=torch.Generator().manual_seed(3)).double()
        tight = {"box": box, "iterations": 10_000, "tolerance": 1e-10}

        def value(y, tight=tight):
            return decode(operator, y, 0.05, **tight).x.square().sum()

        moved = y.clone().requires_grad_(True)
        (slope,) = torch.autograd.grad(value(moved), moved)
        step = 1e-5
        numeric = (value(y + step * direction) - value(y - step * direction)) / (2 * step)
        assert float((slope * direction).sum()) == pytest.approx(float(numeric), rel=1e-4)


def test_the_proximal_map_is_where_its_objective_is_least():
    grid = torch.linspace(-3, 3, 60_001, dtype=F64)
    for v in (-2.0, -0.3, 0.0, 0.4, 1.7):
        for box in (None, (0.0, 1.0), (-0.5, math.inf)):
            low, high = box or (-math.inf, math.inf)
            inside = grid[(grid >= low) & (grid <= high)]
            best = inside[((inside - v) ** 2 / 2 + 0.5 * inside.abs()).argmin()]
            for threshold in (0.5, torch.tensor(0.5, dtype=F64)):
                got = proximal(torch.tensor([v], dtype=F64), threshold, box)
                assert float(got) == pytest.approx(float(best), abs=1e-4)


def test_what_does_not_fit_is_refused():
    operator = Dense(torch.eye(3, dtype=F64))
    for y, options, line in (
        (torch.ones(2, 4), {}, r"\[B, 3\]"),
        (torch.tensor([[1.0, math.nan, 0], [1, 1, 1]]), {}, "1 of 2 measurements"),
        (torch.ones(1, 3), {"box": (1.0, 2.0)}, "must hold 0"),
        (torch.ones(1, 3), {"start": torch.ones(1, 2)}, r"\[1, 3\]"),
    ):
        with pytest.raises(ValueError, match=line):
            fista(operator, y, 0.1, **options)
    with pytest.raises(ValueError, match="negative"):
        fista(operator, torch.ones(1, 3), -0.1)
    with pytest.raises(ValueError, match=r"\[B, 3\]"):
        message_passing(operator, torch.ones(1, 4), 1.0)
    silent = fista(operator, torch.zeros(2, 3, dtype=F64), 0.0)
    assert int(silent.iterations.max()) == 0 and not silent.x.any()
