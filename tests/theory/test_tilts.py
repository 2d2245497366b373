"""Optimal controls in closed form: the optimum of KL-regularised fine-tuning is a tilt."""

from __future__ import annotations

import math

import pytest
import torch
from tests.theory.conftest import expectation
from torch import Tensor

from scoretune.commands.doctor.laws.learning import LAWS
from scoretune.diffusion import solvers
from scoretune.diffusion.kernels import EulerMaruyama, Memoryless
from scoretune.diffusion.processes import VP, RectifiedFlow
from scoretune.rl.tilt import (
    Mixture,
    Quadratic,
    gauss_hermite,
    optimal_score,
    optimal_value,
    optimum,
    tilt_kl,
    tilted,
)

F64 = torch.float64
EXPECTED = {law.name: law.expected for law in LAWS}  # the golden numbers of the doctor
KAPPA = 0.5
GAUSSIAN = Mixture.gaussian([1.0], 0.25)
PAIR = Mixture.of([0.3, 0.7], [[-2.0], [1.0]], 0.16)
PLANE = Mixture.of([1.0, 2.0, 1.0], [[0.0, 1.0], [2.0, -1.0], [-1.0, 0.5]], 0.1)
TARGET = Quadratic.around([2.0], 2.0)
CASES = {
    "gaussian linear": (GAUSSIAN, Quadratic.linear([1.2])),
    "gaussian quadratic": (GAUSSIAN, TARGET),
    "pair linear": (PAIR, Quadratic.linear([0.3])),
    "pair quadratic": (PAIR, TARGET),
    "plane linear": (PLANE, Quadratic.linear([0.4, -1.0])),
    "plane quadratic": (PLANE, Quadratic.around([1.0, 0.0], 1.5)),
}
every_case = pytest.mark.parametrize(("law", "reward"), CASES.values(), ids=CASES)


def noisy_states(law: Mixture, process, count: int = 60) -> tuple[Tensor, Tensor, Tensor]:
    """(x, α, σ) at times of the whole path."""
    t = torch.linspace(0.01, 0.99, count, dtype=F64)
    alpha, sigma = process.alpha(t), process.sigma(t)
    x0 = law.draw(count)
    return alpha[:, None] * x0 + sigma[:, None] * torch.randn_like(x0), alpha, sigma


# ------------------------------------------------------------------ golden tilts


def test_a_linear_reward_moves_a_gaussian():
    best, log_z = tilted(GAUSSIAN, Quadratic.linear([1.2]), KAPPA)  # N(m₀ + S₀w/κ, S₀)
    assert float(best.mean) == pytest.approx(1.6) and float(best.variance) == pytest.approx(0.25)
    assert float(log_z) == pytest.approx(2.4 + 2.4**2 * 0.25 / 2)


def test_a_quadratic_reward_narrows_a_gaussian():
    best, _ = tilted(GAUSSIAN, TARGET, KAPPA)
    assert float(best.mean) == pytest.approx(1.5) and float(best.variance) == pytest.approx(0.125)
    assert float(TARGET.mean(best)) == pytest.approx(-0.375)
    assert float(tilt_kl(GAUSSIAN, TARGET, KAPPA)) == pytest.approx(
        EXPECTED["tilt of N(1, ¼): KL"], abs=5e-5
    )
    assert float(optimum(GAUSSIAN, TARGET, KAPPA)) == pytest.approx(
        EXPECTED["tilt of N(1, ¼): optimum"], abs=5e-7
    )
    assert float(TARGET.mean(GAUSSIAN)) == pytest.approx(-1.25)  # η(0)


def test_a_linear_reward_weighs_and_moves_a_mixture():
    best, log_z = tilted(PAIR, Quadratic.linear([0.3]), KAPPA)
    assert best.log_weights.exp().tolist() == pytest.approx([0.06616, 0.93384], abs=5e-6)
    assert best.means[:, 0].tolist() == pytest.approx([-1.904, 1.096])
    assert float(best.mean) == pytest.approx(0.89753, abs=5e-6)
    assert KAPPA * float(log_z) == pytest.approx(0.170285, abs=5e-7)


def test_value_and_control_of_the_quadratic_case(bed):
    # V* = −½k(x̂−μ)²/(1+kv/κ) − (κ/2)ln(1+kv/κ);  s* − s_pre = h(S₀k/κ)(μ−x̂)/(1+kv/κ).
    t = torch.linspace(0.01, 1, 100, dtype=F64)
    x = torch.randn(100, 1, dtype=F64)
    alpha, sigma = bed.process.alpha(t), bed.process.sigma(t)
    data = bed.exact()(x, t).data[:, 0]
    grown = 1 + 2 / KAPPA * bed.variance * sigma**2 / bed.state_variance(t)
    value = -((data - 2) ** 2) / grown - KAPPA / 2 * grown.log()
    torch.testing.assert_close(optimal_value(GAUSSIAN, TARGET, KAPPA, x, alpha, sigma), value)
    control = optimal_score(GAUSSIAN, TARGET, KAPPA, x, alpha, sigma)
    control = control - bed.score(bed.exact(), x, t)
    expected = bed.h(t) * bed.variance * 2 / KAPPA * (2 - data) / grown
    torch.testing.assert_close(control[:, 0], expected)


# ------------------------------------------------------------------ laws of every tilt


@every_case
@pytest.mark.parametrize("process", [VP(), RectifiedFlow()], ids=["VP", "RectifiedFlow"])
def test_the_optimal_action_is_the_score_of_the_diffused_tilt(law, reward, process):
    x, alpha, sigma = noisy_states(law, process)
    x.requires_grad_()
    value = optimal_value(law, reward, KAPPA, x, alpha, sigma)
    (slope,) = torch.autograd.grad(value.sum(), x)
    pretrained = law.diffused(alpha, sigma).score(x)
    best = optimal_score(law, reward, KAPPA, x, alpha, sigma)
    torch.testing.assert_close(pretrained + slope / KAPPA, best, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("law", [GAUSSIAN, PAIR], ids=["gaussian", "pair"])
@pytest.mark.parametrize("reward", [Quadratic.linear([0.3]), TARGET], ids=["linear", "quadratic"])
def test_the_value_by_quadrature_of_the_posterior(law, reward):
    """Cole–Hopf by Gauss–Hermite, as for any reward: V* = κ ln Σ_k r_k E_k e^{R/κ}."""
    x, alpha, sigma = noisy_states(law, VP())
    x.requires_grad_()
    posterior = law.posterior(x, alpha, sigma)
    value = KAPPA * expectation(posterior, lambda z: torch.exp(reward(z) / KAPPA)).log()
    torch.testing.assert_close(value, optimal_value(law, reward, KAPPA, x, alpha, sigma))
    (slope,) = torch.autograd.grad(value.sum(), x)
    best = optimal_score(law, reward, KAPPA, x, alpha, sigma)
    gap = law.diffused(alpha, sigma).score(x) + slope / KAPPA - best
    assert float(gap.detach().abs().max()) < 1e-6


@every_case
def test_no_law_does_better_than_the_tilt(law, reward):
    # η(p) = E_p[R] − κ KL(p ‖ law) = κ ln Z − κ KL(p ‖ p*): by quadrature of samples of p*.
    best, log_z = tilted(law, reward, KAPPA)
    x = best.draw(100)
    torch.testing.assert_close(best.log_density(x), law.log_density(x) + reward(x) / KAPPA - log_z)
    value = reward.mean(best) - KAPPA * tilt_kl(law, reward, KAPPA)
    torch.testing.assert_close(value, optimum(law, reward, KAPPA))
    if law.means.shape[-1] == 1:  # KL as the integral that it is
        kl = expectation(best, lambda z: best.log_density(z) - law.log_density(z), nodes=80)
        assert float(kl) == pytest.approx(float(tilt_kl(law, reward, KAPPA)), rel=1e-4)


@every_case
def test_scores_and_posteriors_are_bayes(law, reward):
    x, alpha, sigma = noisy_states(law, VP())
    x.requires_grad_()
    noisy = law.diffused(alpha, sigma)
    (slope,) = torch.autograd.grad(noisy.log_density(x).sum(), x)
    torch.testing.assert_close(noisy.score(x), slope)
    tweedie = (x + sigma[:, None] ** 2 * slope) / alpha[:, None]
    torch.testing.assert_close(law.posterior(x, alpha, sigma).mean, tweedie)
    # Tilting commutes with conditioning: the posterior of p* is the tilt of the posterior.
    once = tilted(law, reward, KAPPA)[0].posterior(x, alpha, sigma)
    twice = tilted(law.posterior(x, alpha, sigma), reward, KAPPA)[0]
    torch.testing.assert_close(once.mean, twice.mean)
    torch.testing.assert_close(once.variance, twice.variance)


@every_case
def test_at_the_data_the_value_is_the_reward(law, reward):
    x = law.draw(20)
    ones, zeros = torch.ones(20, dtype=F64), torch.zeros(20, dtype=F64)
    torch.testing.assert_close(optimal_value(law, reward, KAPPA, x, ones, zeros), reward(x))
    none = optimal_value(law, reward, KAPPA, x, zeros, ones)  # and at pure noise it is η*
    torch.testing.assert_close(none, optimum(law, reward, KAPPA).expand(20))


def test_samples_have_the_moments():
    samples = PLANE.draw(200_000)
    torch.testing.assert_close(samples.mean(0), PLANE.mean, atol=0.01, rtol=0)
    assert float(samples.var(0).mean()) == pytest.approx(float(PLANE.variance), rel=0.01)
    quadrature = expectation(PAIR, lambda z: (z[..., 0] - PAIR.mean[0]) ** 2)
    assert float(quadrature) == pytest.approx(float(PAIR.variance))


def test_gauss_hermite_is_exact_for_polynomials():
    points, weights = gauss_hermite(5, torch.zeros((), dtype=F64))
    moments = [float(weights @ points**k) for k in range(10)]
    assert moments == pytest.approx([1, 0, 1, 0, 3, 0, 15, 0, 105, 0], abs=1e-12)


def test_what_has_no_optimum_is_refused():
    with pytest.raises(ValueError, match="κ > 0"):
        tilted(GAUSSIAN, TARGET, 0.0)
    with pytest.raises(ValueError, match="no finite mass"):
        tilted(GAUSSIAN, Quadratic.around([0.0], -2.0), KAPPA)
    with pytest.raises(ValueError, match="weights and variance"):
        Mixture.of([1.0, 0.0], [[0.0], [1.0]], 0.1)


# ------------------------------------------------------------------ the tilt by sampling


@pytest.mark.parametrize(
    ("count", "mean", "variance", "eta"),
    [
        (10, 1.5357, 0.16267, -0.64756),
        (50, 1.5070, 0.13096, -0.66549),
        (200, 1.5017, 0.12644, -0.67125),
    ],
)
def test_the_optimal_control_samples_the_tilt(bed, count, mean, variance, eta):
    """Euler–Maruyama on t = (uniform)², propagated exactly: nothing here is a sample."""
    times, kernel = torch.linspace(1, 0, count + 1, dtype=F64) ** 2, EulerMaruyama(Memoryless())
    steps, base = (bed.steps(kernel, p, times) for p in (bed.exact(1.5, 0.125), bed.exact()))
    laws = steps.laws()
    computed = laws[-1].tolist()
    assert computed == pytest.approx([mean, variance], abs=5e-5)
    reward = -((computed[0] - 2) ** 2) - computed[1]
    assert reward - KAPPA * steps.kl(base, laws) == pytest.approx(eta, abs=5e-6)
    assert abs(eta - -0.673287) < 0.5 / count


def test_the_optimal_control_serves_the_ode_too(bed):
    times = torch.linspace(1, 0, 201, dtype=F64)
    computed = bed.solve(solvers.heun, bed.exact(1.5, 0.125), times)
    assert computed == pytest.approx((1.4975, 0.1257), abs=2e-3)
    assert math.isclose(computed[0], 1.5, abs_tol=0.0066)  # α(T) is not quite 0
