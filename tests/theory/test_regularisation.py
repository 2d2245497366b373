"""The path KL: what Girsanov's running cost buys, bounds and is worth to other samplers."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from scoretune.diffusion import solvers
from scoretune.diffusion.kernels import (
    GDDIM,
    Constant,
    EulerMaruyama,
    Memoryless,
    Posterior,
    Renoise,
    Transition,
)
from scoretune.diffusion.paths import girsanov_weights, kl_factor, log_snr_steps
from slow_cases import slow

F64 = torch.float64
THETA = 0.7
TOTAL = 10.05  # B(1) = ∫β
REVERSE_SDE = [EulerMaruyama(Memoryless()), GDDIM(1.0)]


def uniform(count: int, end: float = 0.0) -> torch.Tensor:
    return torch.linspace(1, end, count + 1, dtype=F64)


def gaussian(mean: float, variance: float) -> Transition:
    return Transition(torch.tensor([[mean]]), torch.tensor([[variance**0.5]]))


# ------------------------------------------------------------------ path and terminal KL


def test_the_bound_is_tight_in_the_family(bed):
    # ½∫βh²θ² = θ²/(2S₀), which is the KL of the samples: controlling costs no more than it must.
    path = bed.integral(lambda t: bed.g_sq(t) * bed.h(t) ** 2) * THETA**2 / 2
    assert path == pytest.approx(THETA**2 / 2 * float(bed.spent(torch.ones((), dtype=F64))))
    samples = gaussian(bed.mean + THETA, bed.variance).kl(gaussian(bed.mean, bed.variance))
    assert path == pytest.approx(float(samples), rel=2e-5)  # α(T) > 0 costs a factor .99999
    times = uniform(4000, 1e-5)
    for kernel in REVERSE_SDE:
        tuned, base = (bed.steps(kernel, p, times) for p in (bed.family(THETA), bed.exact()))
        assert tuned.kl(base, tuned.laws()) == pytest.approx(path, rel=0.01)


def test_data_processing_is_strict_for_a_constant_push(make_bed):
    # S₀ = 1, Δs = θ: path KL ½Bθ² = 5.025 θ², of which the samples keep 1.974 θ².
    bed, times = make_bed(variance=1.0), uniform(4000, 1e-6)
    kernel = EulerMaruyama(Memoryless())
    pushed = bed.steps(kernel, bed.moved(lambda t: THETA * torch.ones_like(t)), times)
    base = bed.steps(kernel, bed.exact(), times)
    assert pushed.kl(base, pushed.laws()) == pytest.approx(5.025 * THETA**2, rel=1e-3)
    moved = float(pushed.laws()[-1, 0] - base.laws()[-1, 0])
    assert moved == pytest.approx(2 * (1 - math.exp(-TOTAL / 2)) * THETA, rel=1e-3)
    samples = float(gaussian(1 + moved, 1.0).kl(gaussian(1.0, 1.0)))
    assert samples == pytest.approx(1.974 * THETA**2, rel=2e-3)


def test_the_regulariser_by_monte_carlo(bed):
    """A cost that depends on the state: the optimal control of −(x − 2)², path KL .59657."""
    count, batch, times = 100, 20_000, uniform(100, 1e-3) ** 2
    kernel, optimal, base = EulerMaruyama(Memoryless()), bed.exact(1.5, 0.125), bed.exact()
    x, total = torch.randn(batch, 1, dtype=F64), torch.zeros(batch, dtype=F64)
    nodes = times[:, None].expand(-1, batch)
    weights = girsanov_weights(
        bed.process,
        nodes[:-1],
        torch.ones_like(nodes[:-1]),
        log_snr_steps(bed.process, times, nodes),
    )
    for k in range(count):
        estimate = optimal(x, nodes[k])
        total += weights[k] * ((estimate.data - base(x, nodes[k]).data) ** 2)[:, 0]
        x = kernel(bed.process, x, estimate, nodes[k], nodes[k + 1]).draw()
    assert float(total.std()) / batch**0.5 < 0.003
    assert float(total.mean()) == pytest.approx(0.596573, rel=0.01)


def test_the_rate_of_the_kl_of_marginals(bed):
    # d/dt KL(p_t ‖ q_t) = E_p (v_p − v_q)(∇ln p − ∇ln q), v the probability-flow velocity.
    def rate(t):
        x = torch.randn(len(t), 1, dtype=F64)  # both differences are constant in x
        tuned, base = bed.family(THETA), bed.exact()
        velocity = solvers.velocity_of(bed.process, tuned(x, t), t)
        velocity = velocity - solvers.velocity_of(bed.process, base(x, t), t)
        gap = bed.score(tuned, x, t) - bed.score(base, x, t)
        return -(velocity * gap)[:, 0]  # sampling runs against t

    t = torch.linspace(1e-6, 1, 20001, dtype=F64)
    total = float(torch.trapezoid(rate(t), t))
    assert total == pytest.approx(THETA**2 / (2 * bed.variance), rel=1e-3)


# ------------------------------------------------------------------ the η family


@pytest.mark.parametrize(
    ("eta", "n500", "n5000", "limit"),
    [(1.0, 0.5377, 0.5011, 0.5), (0.5, 0.9038, 0.7838, 0.78125)],
)
def test_ddim_steps_tend_to_the_factor_of_eta(make_bed, eta, n500, n5000, limit):
    # S₀ = 1, Δs = α(t): ∫βα² = 1, so the path KL is ½((1+η²)/2η)². A step to t = 0 has no KL.
    bed = make_bed(variance=1.0)
    assert limit == pytest.approx(float(kl_factor(torch.tensor(eta, dtype=F64))) / 2)

    def total(kernel, count: int) -> float:
        times = uniform(count)
        times[-1] = 1e-5
        tuned = bed.steps(kernel, bed.moved(bed.process.alpha), times)
        return tuned.kl(bed.steps(kernel, bed.exact(), times), torch.zeros(count + 1, 2, dtype=F64))

    ddim = Renoise(Posterior(eta))
    assert total(ddim, 500) == pytest.approx(n500, abs=5e-5)
    assert total(ddim, 5000) == pytest.approx(n5000, abs=5e-5)
    assert total(GDDIM(eta), 5000) == pytest.approx(limit, rel=0.01)
    assert total(EulerMaruyama(Constant(eta)), 5000) == pytest.approx(limit, rel=1e-3)


def test_the_factor_has_its_least_at_the_reverse_sde():
    etas = torch.tensor([0.1, 0.5, 1.0, 2.0, 10.0], dtype=F64)
    factor = kl_factor(etas)
    torch.testing.assert_close(factor, factor.flip(0))  # η and 1/η cost the same
    assert float(factor.min()) == float(factor[2]) == 1.0


# ------------------------------------------------------------------ likelihood ratios


@pytest.mark.parametrize(("count", "batch"), [(20, 8000), (100, 2000), slow(500, 500)])
def test_log_ratios_of_paths_are_girsanov(make_bed, count, batch):
    """D = 16, Δs = .1α a dimension: path KL .08 on any grid, and with *summed* log-probabilities
    the log-ratio of a path is L ~ N(−KL, 2 KL). A mean over D would be 16 times smaller."""
    bed, dimension, kernel = make_bed(variance=1.0), 16, EulerMaruyama(Memoryless())
    base, tuned = bed.exact(), bed.moved(lambda t: 0.1 * bed.process.alpha(t))
    times = uniform(count)
    x, log_ratio = torch.randn(batch, dimension, dtype=F64), torch.zeros(batch, dtype=F64)
    for t, t_next in pairwise(times[:, None].expand(-1, batch)):
        acting = kernel(bed.process, x, base(x, t), t, t_next)
        moved = kernel(bed.process, x, tuned(x, t), t, t_next)
        x = acting.draw()
        log_ratio += moved.log_prob(x) - acting.log_prob(x)
    one = bed.steps(kernel, tuned, times).kl(
        bed.steps(kernel, base, times), torch.zeros(count + 1, 2, dtype=F64)
    )
    kl = dimension * one
    assert kl == pytest.approx(0.08, rel=0.02)
    for computed, exact in (
        (-log_ratio, kl),
        (log_ratio**2, 2 * kl + kl**2),
        (log_ratio.exp(), 1.0),
    ):
        assert float(computed.mean()) == pytest.approx(
            exact, abs=4 * float(computed.std()) / batch**0.5
        )
    assert float((log_ratio**2).mean()) / dimension**2 == pytest.approx(6.5e-4, rel=0.2)
