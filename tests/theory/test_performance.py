"""Performance differences, policy gradients and trust regions of continuous-time fine-tuning.

On the Gaussian bed with policies s_pre + θh. Linear reward w·x; quadratic reward −½k(x − μ)².
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scoretune.diffusion import solvers
from scoretune.diffusion.kernels import EulerMaruyama, Memoryless
from scoretune.rl import advantage_rate, kl_penalty
from scoretune.rl.tilt import gauss_hermite

F64 = torch.float64
W, KAPPA = 1.2, 0.5
K, MU = 2.0, 2.0
ONE = torch.ones((), dtype=F64)


def linear_eta(bed, theta: float) -> float:
    """η(θ) = w(m₀ + θ)(1 − Φ(T)α(T)) − (κ/2)θ² I(T): noise begins at N(0, 1), not at p_T."""
    lost = float(bed.kept(ONE) * bed.process.alpha(ONE))
    return W * (bed.mean + theta) * (1 - lost) - KAPPA / 2 * theta**2 * float(bed.spent(ONE))


def value(bed, t: Tensor, x: Tensor, theta: float) -> Tensor:
    """V^θ(t, x) = −½k((m_T − μ)² + v_T) − (κθ²/2) I(t), x [..., 1] and t alike or a number."""
    mean = bed.mean + theta
    arrives = mean + bed.kept(t) * (x - bed.process.alpha(t) * mean)
    left = bed.variance * bed.process.sigma(t) ** 2 / bed.state_variance(t)
    return -K / 2 * ((arrives - MU) ** 2 + left) - KAPPA / 2 * theta**2 * bed.spent(t)


def quadratic_eta(bed, theta: float) -> float:
    mean = bed.mean + theta
    return -K / 2 * ((mean - MU) ** 2 + bed.variance) - KAPPA * theta**2 / (2 * bed.variance)


def slope(bed, t: Tensor, x: Tensor, theta: float) -> Tensor:
    """∇V^θ by automatic differentiation, [B, 1] at times [B]."""
    x = x.clone().requires_grad_()
    return torch.autograd.grad(value(bed, t[:, None], x, theta).sum(), x)[0]


def gained(bed, old: float, new: float, under: float) -> float:
    """∫ E[q(t, X_t, s_new; s_old)] dt over the states of s_under: q's mean is quadratic in x."""
    nodes, weights = gauss_hermite(3, ONE)

    def rate(t: Tensor) -> Tensor:
        total = torch.zeros_like(t)
        for node, weight in zip(nodes, weights, strict=True):
            x = bed.process.alpha(t) * (bed.mean + under) + bed.state_variance(t).sqrt() * node
            x = x[:, None]
            actions = (bed.score(bed.family(theta), x, t) for theta in (new, old, 0.0))
            q = advantage_rate(slope(bed, t, x, old), *actions, bed.g_sq(t), KAPPA)
            total = total + weight * q
        return total

    t = torch.linspace(1e-9, 1, 20001, dtype=F64)
    return float(torch.trapezoid(rate(t), t))


# ------------------------------------------------------------------ stochastic sampler


def test_policy_gradient_of_the_reverse_sde(bed):
    # ∇η = ∫ g² h [∇V − κθh] dt, with ∇V = wΦ: wherever the states are.
    theta = 0.1
    exact = bed.integral(
        lambda t: bed.g_sq(t) * bed.h(t) * (W * bed.kept(t) - KAPPA * theta * bed.h(t))
    )
    assert exact == pytest.approx(0.99998920, abs=2e-7)
    step = 1e-4
    difference = linear_eta(bed, theta + step) - linear_eta(bed, theta - step)
    assert difference / (2 * step) == pytest.approx(exact, abs=1e-7)
    best = W * bed.variance / KAPPA  # θ* = S₀w/κ = .6
    assert (linear_eta(bed, best + step) - linear_eta(bed, best - step)) / step < 1e-4


def test_performance_difference_of_the_reverse_sde(bed):
    def rate(t: Tensor) -> Tensor:
        x = torch.zeros(len(t), 1, dtype=F64)  # the gap does not depend on the state
        actions = (bed.score(bed.family(theta), x, t) for theta in (0.9, 0.1, 0.0))
        return advantage_rate(W * bed.kept(t)[:, None], *actions, bed.g_sq(t), KAPPA)

    t = torch.linspace(1e-9, 1, 20001, dtype=F64)
    computed = float(torch.trapezoid(rate(t), t))
    assert computed == pytest.approx(0.159998, abs=1e-6)
    assert computed == pytest.approx(linear_eta(bed, 0.9) - linear_eta(bed, 0.1), abs=1e-6)


def test_a_fine_sampler_has_that_objective(bed):
    times, kernel = torch.linspace(1, 1e-6, 4001, dtype=F64), EulerMaruyama(Memoryless())
    computed = {}
    for theta in (0.1, 0.9):
        steps, base = (bed.steps(kernel, p, times) for p in (bed.family(theta), bed.exact()))
        laws = steps.laws()
        computed[theta] = W * float(laws[-1, 0]) - KAPPA * steps.kl(base, laws)
        assert computed[theta] == pytest.approx(linear_eta(bed, theta), abs=2e-3)
    assert computed[0.9] - computed[0.1] == pytest.approx(0.159998, abs=1e-3)


# ------------------------------------------------------------------ deterministic sampler


def test_everything_holds_for_the_ode(bed):
    # V = reward ∘ flow, ∇V = w√(S₀/v), q = ½g²∇V·(a − s): the same formulas with σ = 0.
    theta, times = 0.3, torch.linspace(1, 0, 801, dtype=F64)
    kept = float((bed.variance / bed.state_variance(ONE)).sqrt() * bed.process.alpha(ONE))
    mean, variance = bed.solve(solvers.heun, bed.family(theta), times)
    assert mean == pytest.approx((bed.mean + theta) * (1 - kept), abs=1e-5)
    assert variance == pytest.approx(bed.variance / float(bed.state_variance(ONE)), abs=1e-5)

    def rate(t: Tensor) -> Tensor:
        x = torch.zeros(len(t), 1, dtype=F64)
        actions = [bed.score(bed.family(p), x, t) for p in (theta, 0.0, 0.0)]
        slope = W * (bed.variance / bed.state_variance(t)).sqrt()[:, None]
        return advantage_rate(slope, *actions, bed.g_sq(t) / 2, 0.0)

    t = torch.linspace(1e-9, 1, 20001, dtype=F64)
    difference = float(torch.trapezoid(rate(t), t))
    assert difference == pytest.approx(W * theta * (1 - kept), abs=1e-6)
    base, _ = bed.solve(solvers.heun, bed.exact(), times)
    assert W * (mean - base) == pytest.approx(difference, abs=1e-5)


# ------------------------------------------------------------------ the advantage rate


def one_step(bed, t: float, x: float, theta: float, action: float, step: float) -> float:
    """(Q^Δ − V)/Δ: the action frozen over one Euler step, then the policy."""
    now = torch.tensor([t], dtype=F64)
    start, a = torch.tensor([[x]], dtype=F64), torch.tensor([[action]], dtype=F64)
    moved = EulerMaruyama(Memoryless())(
        bed.process, start, bed.acting(start, now, a), now, now - step
    )
    nodes, weights = gauss_hermite(3, now)
    arrivals = moved.mean + moved.std * nodes[:, None]
    arrived = value(bed, now - step, arrivals, theta)[:, 0]
    base = bed.score(bed.exact(), start, now)
    cost = KAPPA / 2 * float(bed.g_sq(now) * (a - base)[:, 0] ** 2) * step
    return (float(arrived @ weights) - cost - float(value(bed, now, start, theta))) / step


def test_advantage_rate_is_the_limit_of_one_step(bed):
    t, x = torch.tensor([0.4], dtype=F64), torch.tensor([[0.3]], dtype=F64)
    a = torch.tensor([[1.3]], dtype=F64)
    scores = [bed.score(policy, x, t) for policy in (bed.family(0.2), bed.exact())]
    rate = float(advantage_rate(slope(bed, t, x, 0.2), a, *scores, bed.g_sq(t), KAPPA))
    assert rate == pytest.approx(-0.7820961, abs=5e-8)
    steps, table = (1e-2, 1e-3, 1e-4, 1e-5), (-0.70059, -0.77401, -0.78129, -0.78202)
    computed = [one_step(bed, 0.4, 0.3, 0.2, 1.3, step) for step in steps]
    assert computed == pytest.approx(table, abs=6e-6)
    assert (computed[1] - rate) / (computed[2] - rate) == pytest.approx(10, rel=0.01)  # O(Δ)


def test_advantage_rate_of_the_policy_itself_is_zero(bed):
    # (P1): E_{a ~ N(s, Σ)} q = 0, whatever the state.
    t, x = torch.rand(50, dtype=F64) + 1e-3, torch.randn(50, 1, dtype=F64)
    mean, base = (bed.score(policy, x, t) for policy in (bed.family(0.2), bed.exact()))
    nodes, weights = gauss_hermite(3, x)
    rates = [
        advantage_rate(slope(bed, t, x, 0.2), mean + 0.7 * z, mean, base, bed.g_sq(t), KAPPA, 0.49)
        for z in nodes
    ]
    torch.testing.assert_close(weights @ torch.stack(rates), torch.zeros(50, dtype=F64))


# ------------------------------------------------------------------ trust regions


def test_the_surrogate_errs_in_second_order(bed):
    """(η − L)/d² → −1 and path KL/d² = 2: the gap is of the order of the KL, not of its root."""
    old = 0.1
    for d in (0.4, 0.2, 0.1, 0.05):
        surrogate = quadratic_eta(bed, old) + gained(bed, old, old + d, under=old)
        gap = quadratic_eta(bed, old + d) - surrogate
        assert gap / d**2 == pytest.approx(-1.0, abs=2e-3)
        kl = bed.integral(lambda t, d=d: bed.g_sq(t) * (d * bed.h(t)) ** 2 / 2)
        assert kl / d**2 == pytest.approx(2.0, rel=1e-4)
        assert float(kl_penalty(torch.tensor(kl), 0.51)) > -gap  # so C = ½ makes a lower bound


def test_performance_difference_under_the_new_policy(bed):
    difference = quadratic_eta(bed, 0.6) - quadratic_eta(bed, 0.1)
    assert difference == pytest.approx(0.30, abs=1e-9)
    assert gained(bed, 0.1, 0.6, under=0.6) == pytest.approx(difference, abs=2e-5)
