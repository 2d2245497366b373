"""Golden numbers and laws of the dimension of sparse recovery, its noise, its costs, its rules."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from scoretune.compressed import (
    Dense,
    Gaussian,
    best_threshold,
    decoder_flops,
    fista_gap_bound,
    fista_steps,
    gaussian_norm,
    ista_gap_bound,
    lasso_error_bound,
    latent_dimension,
    noise_amplification,
    restricted_isometry,
    rip_measurements,
    sequential_steps,
    statistical_dimension,
)
from scoretune.compressed.dimension import RIP_LIMIT, margin

DELTA = statistical_dimension(5, 128)


@pytest.mark.parametrize(
    ("s", "d", "signed", "nonnegative"),
    [
        (5, 128, 21.87, 18.0),
        (10, 200, 40.78, None),
        (10, 256, 43.73, None),
        (20, 400, 81.56, None),
        (27, 576, 112.2, 92.1),
        (507, 2304, 1246, 1000),
        (480, 1600, 1033, 834),
    ],
)
def test_statistical_dimensions(s, d, signed, nonnegative):
    assert statistical_dimension(s, d) == pytest.approx(signed, rel=6e-4)
    if nonnegative is not None:
        assert statistical_dimension(s, d, nonnegative=True) == pytest.approx(nonnegative, rel=2e-3)


def test_the_statistical_dimension_is_a_minimum_between_its_ends():
    assert statistical_dimension(0, 50) == 0 and best_threshold(0, 50) == math.inf
    assert statistical_dimension(50, 50) == pytest.approx(50)
    values = [statistical_dimension(s, 50) for s in range(51)]
    assert all(a < b for a, b in pairwise(values))
    for s in (1, 10.5, 40):
        assert s <= statistical_dimension(s, 50, True) <= statistical_dimension(s, 50)
        # no threshold does better, by quadrature of the definition
        g = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
        density = (-(g**2) / 2).exp() / math.sqrt(2 * math.pi)
        for factor in (0.9, 1.0, 1.1):
            tau = factor * best_threshold(s, 50)
            over = torch.trapezoid((g.abs() - tau).clamp_min(0) ** 2 * density, g)
            value = s * (1 + tau**2) + (50 - s) * float(over)
            assert value >= statistical_dimension(s, 50) - 1e-9
            if factor == 1:
                assert value == pytest.approx(statistical_dimension(s, 50), abs=1e-6)
    with pytest.raises(ValueError, match=r"\[0, 50\]"):
        statistical_dimension(51, 50)


def test_noise_amplification():
    formula = [noise_amplification(DELTA, m) for m in (28, 32, 40, 48, 64, 96, 128)]
    assert formula == pytest.approx([1.89, 1.47, 1.10, 0.92, 0.72, 0.54, 0.45], abs=0.006)
    assert noise_amplification(DELTA, 21) == math.inf
    for m in (22, 40, 128):
        assert noise_amplification(DELTA, m, "worst") >= noise_amplification(DELTA, m)
    assert noise_amplification(25, 100, "worst") == 4
    assert lasso_error_bound(4, 0.1, 0.5) == pytest.approx(1.2)


def test_costs():
    assert [round(fista_steps(m, 128, DELTA)) for m in (28, 32, 40, 48, 64, 96, 128)] == (
        pytest.approx([216, 138, 86, 65, 47, 33, 27], abs=1)
    )
    assert fista_steps(21, 128, DELTA) == math.inf
    assert gaussian_norm(64, 128) ** 2 == pytest.approx(5.83, abs=0.005)
    assert fista_gap_bound(2, 3, 9) == 0.12 and ista_gap_bound(2, 3, 10) == 0.3
    assert sequential_steps(64, 128, DELTA, 2) == 128 + fista_steps(64, 128, DELTA)
    assert decoder_flops(10, 100, 3) == 12_000
    assert decoder_flops(10, 1024, 1, fast=True) == 10 * 1024 * 10


@pytest.mark.parametrize(("c", "m"), [(0.5, 73), (1, 57), (2, 47), (5, 37), (20, 30)])
def test_the_rule_of_cost(c, m):
    assert abs(latent_dimension(5, 128, "cost", steps_a_dimension=c) - m) <= 1


def test_the_other_rules_for_the_latent_dimension():
    def rule(name, p):
        return latent_dimension(5, 128, name, exponent=p) / DELTA

    assert rule("worst_case", 0.5) == pytest.approx(4, abs=0.05)
    assert rule("worst_case", 1) == pytest.approx(2.25, abs=0.05)
    assert rule("worst_case", 2) == pytest.approx(1.5625, abs=0.05)
    assert rule("random_noise", 1) == pytest.approx(2, abs=0.05)
    assert rule("random_noise", 2) == pytest.approx(4 / 3, abs=0.05)
    assert latent_dimension(5, 128) == math.ceil(1.5 * DELTA)
    assert margin(64) == margin(128) == 1.5 and margin(4096) == 1.3
    assert margin(256) == pytest.approx(1.4)
    assert latent_dimension(100, 128) == 128  # never more than there is
    # the closed forms are where their objectives are least
    for p in (0.8, 1.0, 2.0):
        around = torch.linspace(22, 128, 100_000, dtype=torch.float64)
        noise = around**p * (DELTA / (around - DELTA)).sqrt()
        assert float(around[noise.argmin()]) == pytest.approx(DELTA * 2 * p / (2 * p - 1), rel=1e-3)
        worst = around**p / (1 - (DELTA / around).sqrt())
        best = DELTA * ((2 * p + 1) / (2 * p)) ** 2
        assert float(around[worst.argmin()]) == pytest.approx(best, rel=1e-3)
    with pytest.raises(ValueError, match="no best m"):
        latent_dimension(5, 128, "random_noise", exponent=0.5)
    with pytest.raises(ValueError, match="no rule"):
        latent_dimension(5, 128, "best")  # type: ignore[arg-type]


def test_restricted_isometry():
    assert pytest.approx(0.70711, abs=1e-5) == RIP_LIMIT
    assert rip_measurements(5, 128, failure=math.exp(-1), constant=2) == pytest.approx(
        2 * (5 * math.log(math.e * 128 / 5) + 1)
    )
    orthonormal = Dense(torch.eye(6, dtype=torch.float64))
    assert restricted_isometry(orthonormal, 3, trials=5) < 1e-12
    wide = Gaussian(2000, 2000)
    assert restricted_isometry(wide, 1, trials=20) < 0.15  # columns of norm about 1
    larger = restricted_isometry(Gaussian(60, 128), 10, trials=20)
    assert restricted_isometry(Gaussian(60, 128), 2, trials=20) < larger
