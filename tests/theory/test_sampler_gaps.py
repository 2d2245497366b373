"""What a policy trained under one sampler does under another, and on another grid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from scoretune.diffusion import solvers
from scoretune.diffusion.estimates import noise, read, velocity
from scoretune.diffusion.kernels import GDDIM, Constant, EulerMaruyama, Memoryless
from scoretune.diffusion.paths import kl_factor
from scoretune.diffusion.processes import RectifiedFlow, diffusion_sq
from scoretune.diffusion.scales import step_diffusion_sq

F64 = torch.float64
TOTAL = 10.05  # B(1) = ∫β


def uniform(count: int) -> torch.Tensor:
    return torch.linspace(1, 0, count + 1, dtype=F64)


# ------------------------------------------------------------------ samplers of one policy


@pytest.mark.parametrize(
    ("eta", "pushed", "consistent"),
    [
        (1.0, 0.59606, 0.29999),
        (0.5, 1.07292, 0.29944),
        (0.25, 1.37459, 0.29856),
        (0.0, 1.5075, 0.29803),
    ],
)
def test_only_true_scores_are_the_same_to_every_sampler(make_bed, eta, pushed, consistent):
    """S₀ = 1, shift of the mean: a constant push .3 is worth 2.5 times more to the ODE than to the
    SDE it was tuned under; .3α, the score of shifted data, is worth .3 to all."""
    bed, times = make_bed(variance=1.0), uniform(2000)
    square = eta**2
    push = (1 + square) / square * -math.expm1(-square * TOTAL / 2) if eta else TOTAL / 2
    assert 0.3 * push == pytest.approx(pushed, abs=1e-5)
    assert -0.3 * math.expm1(-(1 + square) * TOTAL / 2) == pytest.approx(consistent, abs=1e-5)
    push_policy = bed.moved(lambda t: torch.full_like(t, 0.3))
    for kernel in (EulerMaruyama(Constant(eta)), GDDIM(eta)):
        base = bed.terminal(kernel, bed.exact(), times)[0]
        computed = [
            bed.terminal(kernel, p, times)[0] - base for p in (push_policy, bed.family(0.3))
        ]
        assert computed == pytest.approx([pushed, consistent], rel=0.01)


@pytest.mark.parametrize(
    ("count", "computed", "predicted"),
    [
        (50, 0.0574, 0.0559),
        (200, 0.01407, 0.01398),
        (1000, 0.0028, 0.002796),
        (5000, 0.00056, 0.000559),
    ],
)
def test_noise_on_the_score_vanishes_with_the_step(make_bed, count, computed, predicted):
    """a ~ N(s, ½) adds the variance (Σ/N)∫β²e^{−B}: the law depends on the mean of the policy."""
    bed, kernel, times = make_bed(variance=1.0), EulerMaruyama(Memoryless()), uniform(count)
    assert 0.5 / count * bed.integral(
        lambda t: bed.g_sq(t) ** 2 * bed.process.alpha(t) ** 2
    ) == pytest.approx(predicted, rel=5e-4)
    plain = bed.steps(kernel, bed.exact(), times)
    tried = bed.steps(kernel, bed.moved(torch.ones_like), times)  # what a unit of action does
    shaken = plain.with_noise((tried.offset - plain.offset) * 0.5**0.5)
    extra = float((shaken.laws() - plain.laws())[-1, 1])
    assert extra == pytest.approx(computed, rel=5e-3)


# ------------------------------------------------------------------ grids (exact propagation)


@pytest.mark.parametrize(
    ("count", "euler", "best"),
    [(10, 1.6952, 0.7003), (50, 1.6190, 0.6112), (100, 1.6095, 0.6052), (1000, 1.6009, 0.6005)],
)
def test_the_optimum_of_a_discrete_sampler_tends_to_the_continuous_one(bed, count, euler, best):
    # Reward 1.2x, κ = .5: θ*_N = w·shift/(2κ·KL) → S₀w/κ = .6, like 1/N under Euler–Maruyama.
    kernel, times = EulerMaruyama(Memoryless()), uniform(count)
    assert bed.terminal(kernel, bed.family(0.6), times)[0] == pytest.approx(euler, abs=5e-5)
    unit, base = (bed.steps(kernel, p, times) for p in (bed.family(1.0), bed.exact()))
    shift = float((unit.laws() - base.laws())[-1, 0])
    assert 1.2 * shift / (2 * 0.5 * unit.kl(base, unit.laws())) == pytest.approx(best, abs=5e-5)


@pytest.mark.parametrize(("count", "best"), [(10, 0.989), (50, 0.665), (100, 0.632), (1000, 0.603)])
def test_the_optimum_with_the_cost_of_left_points(bed, count, best):
    # DDIM(1) moves the mean by exactly θ; its cost here is Σ ½h(t_k)² ln(ᾱ_{k+1}/ᾱ_k).
    times = uniform(count)
    kernel = GDDIM(1.0)
    shift = [bed.terminal(kernel, p, times)[0] for p in (bed.family(1.0), bed.exact())]
    assert shift[0] - shift[1] == pytest.approx(1.0, abs=2e-5)
    cost = bed.h(times[:-1]) ** 2 * bed.process.alpha(times).log().diff() * 2
    assert 1.2 / (0.5 * float(cost.sum())) == pytest.approx(best, abs=5e-4)


@pytest.mark.parametrize("count", [10, 50, 100])
def test_a_true_score_needs_no_particular_solver(bed, count):
    # θ = .6 elsewhere. DDIM(1) keeps the mean at every N; the ODE keeps α(T) of the noise's mean.
    policy, times = bed.family(0.6), uniform(count)
    assert bed.terminal(GDDIM(1.0), policy, times)[0] == pytest.approx(1.6, abs=2e-4)
    assert bed.solve(solvers.ddim, policy, times)[0] == pytest.approx(1.5955, abs=1e-3)
    if count > 10:
        mean, variance = bed.solve(solvers.heun, policy, times)
        assert mean == pytest.approx(1.595, abs=3e-3)
        assert variance == pytest.approx(0.25, abs=3e-3)


# ------------------------------------------------------------------ rectified flow


@dataclass(frozen=True)
class Root:
    """The noise ς = √t, as an η."""

    prescribes: ClassVar[str] = "eta"

    def __call__(self, process, t, t_next):
        return torch.sqrt(t / step_diffusion_sq(process, t, t_next))


@pytest.fixture
def flow(make_bed):
    return make_bed(process=RectifiedFlow())


def test_rectified_flow_by_ode_and_sde(flow):
    mean, variance = flow.solve(solvers.heun, flow.exact(), uniform(50))
    assert mean == pytest.approx(1.0, abs=1e-9)
    assert variance == pytest.approx(0.25, abs=1.5e-3)
    mean, variance = flow.terminal(EulerMaruyama(Root()), flow.exact(), uniform(200))
    assert mean == pytest.approx(1.0, abs=1e-3)
    assert variance == pytest.approx(0.249, abs=2e-3)


def test_conversions_of_rectified_flow(flow):
    # v = (t − (1−t)S₀)(x − (1−t)m₀)/D − m₀, D = (1−t)²S₀ + t²; ε = x + (1−t)v; s = −ε/t.
    t = torch.linspace(0.02, 0.98, 49, dtype=F64)
    x = torch.randn(49, 1, dtype=F64)
    estimate, kept = flow.exact()(x, t), (1 - t)[:, None]
    total = kept**2 * 0.25 + t[:, None] ** 2
    v = (t[:, None] - kept * 0.25) * (x - kept) / total - 1.0
    torch.testing.assert_close(solvers.velocity_of(flow.process, estimate, t), v)
    torch.testing.assert_close(estimate.noise, x + kept * v)
    torch.testing.assert_close(flow.score(flow.exact(), x, t), -(x - kept) / total)
    back = read(flow.process, velocity, t, x, v)
    torch.testing.assert_close(back.data, estimate.data)
    torch.testing.assert_close(read(flow.process, noise, t, x, estimate.noise).data, estimate.data)


def test_the_kl_rate_of_flow_grpo(flow):
    # ½‖Δv‖²(1/ς + ς(1−t)/(2t))² is ½ factor(η) g² ‖Δs‖², with Δv = −½g²Δs and ς = ηg.
    t = torch.linspace(0.05, 0.95, 19, dtype=F64)
    g_sq = diffusion_sq(flow.process, t)
    for level in (0.3, 1.0):
        eta = level / g_sq.sqrt()
        ours = kl_factor(eta) * g_sq / 2
        theirs = (g_sq / 2) ** 2 * (1 / level + level * (1 - t) / (2 * t)) ** 2 / 2
        torch.testing.assert_close(ours, theirs)
