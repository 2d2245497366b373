"""The reward gap of arXiv 2510.10767 where it is known, and the samplers of any η behind it."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import optimize, special

from scoretune.diffusion import grids, solvers
from scoretune.diffusion.estimates import Estimate
from scoretune.diffusion.kernels import (
    CPS,
    GDDIM,
    Constant,
    DanceSDE,
    EulerMaruyama,
    Exponential,
    FlowSDE,
    Memoryless,
    Posterior,
    Renoise,
    Still,
)
from scoretune.diffusion.paths import kl_factor
from scoretune.diffusion.processes import (
    EDM,
    OU,
    VE,
    VP,
    ContractiveSubVP,
    RectifiedFlow,
    SubVP,
    Tabulated,
    diffusion_sq,
    every_process,
    noise_ratio,
    score,
)
from scoretune.diffusion.solvers.base import KernelSampler
from scoretune.diffusion.theory import contraction, gaussian, reward_gap
from scoretune.rl import tilt

F64 = torch.float64
BEST = {"mean": 2 / 3, "variance": 1 / 3, "centre": 1.0}
LAW = {"mean": 2 / 3, "variance": 1 / 3}
PAIR = tilt.Mixture.of([0.3, 0.7], [[-1.0], [1.0]], 0.04)
ETAS = (0.0, 0.5, 1.0, 1.5, 2.0, 10.0)


def slope(x):
    return -2 * (x - 1)


def vp(decay):
    return VP(decay, decay)


# ------------------------------------------------------------------ closed forms

TABLE = {  # T: R(0), R(1), gaps of η = ½, 1, 1.2, 2
    1: (-0.694444, -0.562500, 0.043492, 0.131944, 0.164323, 0.236003),
    2: (-0.576258, -0.479290, 0.037858, 0.096968, 0.112156, 0.131084),
    5: (-0.496888, -0.450312, 0.022279, 0.046576, 0.050185, 0.052434),
    10: (-0.470431, -0.445922, 0.013346, 0.024509, 0.025566, 0.025986),
    20: (-0.457362, -0.444815, 0.007616, 0.012547, 0.012839, 0.012917),
    50: (-0.449591, -0.444504, 0.003463, 0.005087, 0.005138, 0.005146),
    100: (-0.447014, -0.444459, 0.001862, 0.002555, 0.002568, 0.002570),
}


@pytest.mark.parametrize("noise", TABLE)
def test_rewards_and_gaps_under_ve_golden(noise):
    process, golden = EDM(float(noise)), TABLE[noise]
    rewards = [reward_gap.reward(process, eta=eta, **BEST) for eta in (0.0, 1.0)]
    gaps = [reward_gap.gap(process, eta=eta, **BEST) for eta in (0.5, 1.0, 1.2, 2.0)]
    assert [*rewards, *gaps] == pytest.approx(golden, abs=1e-6)


def test_the_best_law_golden():
    for weight in (0.1, 1.0, 3.0):
        law, _ = tilt.tilted(
            tilt.Mixture.gaussian([0.0], 1.0), tilt.Quadratic.around([1.0], 2.0), weight
        )
        variance = 1 / (1 + 2 / weight)
        assert float(law.variance) == pytest.approx(variance)
        assert float(law.mean) == pytest.approx(variance * 2 / weight)
    assert reward_gap.expected((2 / 3, 1 / 3), 1.0) == pytest.approx(-4 / 9)


@pytest.mark.parametrize(
    ("decay", "golden"),
    [(2, 0.35146), (4, 0.28831), (6, 0.26788), (8, 0.26070), (10.05, 0.25806)],
)
def test_gaps_under_vp_golden(decay, golden):
    computed = reward_gap.gap(vp(decay), eta=1.0, **BEST) * math.exp(decay / 2)
    assert computed == pytest.approx(golden, abs=5e-6)
    rising = VP(0.1, 2 * decay - 0.1)  # of β, only its integral matters
    assert reward_gap.gap(rising, eta=1.0, **BEST) * math.exp(decay / 2) == pytest.approx(computed)


def test_gaps_under_the_table_of_stable_diffusion_golden(sd15):
    gaps = [reward_gap.gap(sd15, eta=eta, **BEST) for eta in (0.5, 1.0, 1.2, 1.5, 2.0)]
    assert gaps == pytest.approx([0.01111, 0.01858, 0.01911, 0.01926, 0.01928], abs=6e-6)


@pytest.mark.parametrize(
    ("weight", "one", "two"),
    [
        (0.1, 0.002345, 0.002388),
        (0.3, 0.008706, 0.009002),
        (1.0, 0.024509, 0.025986),
        (3.0, 0.031598, 0.034444),
        (10.0, 0.016354, 0.018593),
    ],
)
def test_gaps_by_how_far_a_policy_was_tuned_golden(weight, one, two):
    variance = 1 / (1 + 2 / weight)
    law = {"mean": 2 * variance / weight, "variance": variance, "centre": 1.0}
    gaps = [reward_gap.gap(EDM(10.0), eta=eta, **law) for eta in (1.0, 2.0)]
    assert gaps == pytest.approx([one, two], abs=1e-6)


@pytest.mark.parametrize("centre", [-0.5, 0.2, 1.0, 3.0])
def test_the_gap_is_its_polynomial_in_q(centre):
    """VE with π² = T²: R(η) = −(m − c)² − s² + 2m(m − c)q − (m² − s²)q², for any centre."""
    m, variance, process = 0.8, 0.5, EDM(3.0)
    law = {"mean": m, "variance": variance, "centre": centre}
    for eta in ETAS:
        q = (variance / (variance + 9)) ** ((1 + eta**2) / 2)
        by_hand = -((m - centre) ** 2) - variance
        by_hand += 2 * m * (m - centre) * q - (m**2 - variance) * q**2
        computed = reward_gap.reward(process, eta=eta, **law)
        assert computed == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.parametrize("process", [EDM(1e3), vp(16.0), OU(1.0, math.sqrt(2), 8.0)], ids=repr)
def test_the_gap_tends_to_its_rate(process):
    for law in (BEST, {"mean": -1.0, "variance": 0.3, "centre": 0.5}):
        limit = reward_gap.asymptotic_gap(process, **law)
        for eta in (1.0, 1.5, 5.0):
            assert reward_gap.gap(process, eta=eta, **law) == pytest.approx(limit, rel=4e-3)
    assert reward_gap.gap_rate(**BEST) == pytest.approx(0.256600, abs=1e-6)


def test_rates_are_slopes():
    """ln gap against ln T: −1; against B: −½; and against ln T at half the speed if m = c: −2."""
    wide, wider = (reward_gap.gap(EDM(t), eta=1.0, **BEST) for t in (1e3, 1e4))
    assert math.log10(wider / wide) == pytest.approx(-1, abs=1e-3)
    long, longer = (reward_gap.gap(vp(b), eta=1.0, **BEST) for b in (20.0, 24.0))
    assert math.log(longer / long) / 4 == pytest.approx(-0.5, abs=1e-3)
    central = {"mean": 1.0, "variance": 1 / 3, "centre": 1.0}
    wide, wider = (reward_gap.gap(EDM(t), eta=1.0, **central) for t in (1e3, 1e4))
    assert math.log10(wider / wide) == pytest.approx(-2, abs=1e-3)


def test_the_gap_grows_with_eta_and_saturates():
    gaps = [
        reward_gap.gap(EDM(10.0), eta=eta, **BEST) for eta in (0.0, 0.3, 0.7, 1.0, 1.5, 2.0, 9.0)
    ]
    assert gaps == sorted(gaps)
    q = math.sqrt(1 / 3 / (1 / 3 + 100))
    assert gaps[-1] == pytest.approx(2 / 3 * 2 / 3 * q + (4 / 9 - 1 / 3) * q**2, abs=1e-12)


def test_no_gap_without_a_wrong_prior():
    # α_T m = 0 and π² = v_T: the prior is the law of x_T.
    law = {"mean": 0.0, "variance": 1.0, "centre": 1.0}  # the stationary law of OU, and of VP
    for eta in ETAS:
        for process in (OU(), VP()):
            assert reward_gap.gap(process, eta=eta, **law) == pytest.approx(0, abs=1e-15)
        assert reward_gap.gap(RectifiedFlow(), eta=eta, **BEST) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("process", [EDM(5.0), vp(6.0)], ids=repr)
def test_simulation_finds_the_closed_form(process):
    count, generator = 400_000, torch.Generator().manual_seed(0)
    times = grids.karras(process, 2, t_end=0.0, dtype=F64)[:, None].expand(-1, count)
    for eta in (0.0, 1.0, 2.0):
        x = process.prior_std * torch.randn(count, 1, generator=generator, dtype=F64)
        for t, t_next in pairwise(times):
            x = gaussian.transition(process, x, t, t_next, eta=eta, **LAW).draw(generator)
        rewards = -((x - 1) ** 2)
        error = float(rewards.std()) / math.sqrt(count)
        claimed = reward_gap.reward(process, eta=eta, **BEST)
        assert float(rewards.mean()) == pytest.approx(claimed, abs=3 * error)


# ------------------------------------------------------------------ any law on the line


def test_two_modes_golden():
    assert reward_gap.smooth_gap_rate(PAIR, slope) == pytest.approx(0.60195, abs=1e-5)
    assert reward_gap.smooth_gap(EDM(100.0), PAIR, slope) * 100 == pytest.approx(0.591, abs=1e-3)
    for decay, golden in ((6, 0.5753), (8, 0.5918), (10.05, 0.5983)):
        computed = reward_gap.smooth_gap(vp(decay), PAIR, slope) * math.exp(decay / 2)
        assert computed == pytest.approx(golden, abs=4e-4)
    slopes = [reward_gap.smooth_gap(EDM(t), PAIR, slope) for t in (1e3, 1e4)]
    assert math.log10(slopes[1] / slopes[0]) == pytest.approx(-1, abs=2e-3)


@pytest.mark.parametrize(
    ("noise", "golden"), [(5, 0.078149566), (10, 0.049370613), (20, 0.027379524)]
)
def test_two_modes_by_another_quadrature(noise, golden):
    """Over z ~ N(0, 1) with the quantile map itself, which all but jumps where F_T = 0.3. The
    golden numbers are scipy's adaptive quadrature of the same."""

    def below(x, std):
        return 0.3 * special.ndtr((x + 1) / std) + 0.7 * special.ndtr((x - 1) / std)

    wide = math.hypot(0.2, noise)
    jump = optimize.brentq(lambda z: below(noise * z, wide) - 0.3, -5, 5)
    near = [jump + sign * 10.0**-k for sign in (-1, 1) for k in range(11)]
    edges = np.array(sorted([-7.5, jump, 7.5, *near]))
    nodes, shares = np.polynomial.legendre.leggauss(60)
    half = np.diff(edges)[:, None] / 2
    z = (edges[:-1, None] + half * (1 + nodes)).ravel()
    weights = (half * shares).ravel() * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    low, high = np.full_like(z, -4.0), np.full_like(z, 4.0)
    for _ in range(60):
        middle = (low + high) / 2
        under = below(middle, 0.2) < below(noise * z, wide)
        low, high = np.where(under, middle, low), np.where(under, high, middle)
    posterior = PAIR.posterior(torch.from_numpy(noise * z)[:, None], 1.0, float(noise))
    by_sde = tilt.Quadratic.around([1.0], 2.0).mean(posterior).numpy()
    gap = float(weights @ (by_sde + (low - 1) ** 2))
    assert gap == pytest.approx(golden, abs=1e-8)
    assert reward_gap.smooth_gap(EDM(float(noise)), PAIR, slope) == pytest.approx(golden, abs=1e-9)


@pytest.mark.parametrize("process", [EDM(2.0), vp(4.0), SubVP()], ids=repr)
def test_the_quadrature_finds_gaussian_closed_forms(process):
    one = tilt.Mixture.gaussian([2 / 3], 1 / 3)
    computed = reward_gap.smooth_gap(process, one, slope)
    assert computed == pytest.approx(reward_gap.gap(process, eta=1.0, **BEST), abs=1e-10)
    assert reward_gap.smooth_gap_rate(one, slope) == pytest.approx(reward_gap.gap_rate(**BEST))


def test_a_linear_reward_knows_only_means():
    """r = x: what is lost is the mean that the prior lacks, mq."""
    one, process = tilt.Mixture.gaussian([2 / 3], 1 / 3), EDM(2.0)
    means = [
        2 / 3 - reward_gap.lost(one, torch.ones_like, lambda x, cdf=cdf: cdf(process, one, x))
        for cdf in (reward_gap.ode_cdf, reward_gap.sde_cdf)
    ]
    wanted = [gaussian.arrival(process, eta=eta, **LAW)[0] for eta in (0.0, 1.0)]
    assert means == pytest.approx(wanted, abs=1e-11)


def test_quantiles_are_inverses():
    shares = torch.tensor([1e-6, 0.1, 0.29, 0.31, 0.9, 1 - 1e-6], dtype=F64)
    assert torch.allclose(
        reward_gap.cdf(PAIR, reward_gap.quantile(PAIR, shares)), shares, atol=1e-13
    )


# ------------------------------------------------------------------ finite steps


def test_gaps_of_few_steps_golden():
    process, computed = EDM(5.0), []
    for count in (10, 20, 40, 80, 160, 1000):
        times = grids.karras(process, count, t_end=1e-3, dtype=F64)
        sde, ode = (
            reward_gap.expected(gaussian.after_steps(process, GDDIM(eta), times, **LAW), 1.0)
            for eta in (1.0, 0.0)
        )
        computed.append(sde - ode)
    assert computed == pytest.approx([0.0973, 0.0856, 0.0708, 0.0601, 0.0537, 0.0478], abs=6e-5)
    assert computed[-1] - reward_gap.gap(process, eta=1.0, **BEST) == pytest.approx(
        0.0012, abs=1e-4
    )


STD_OF_FLOW = {  # rectified flow, shift 3, N(1, ¼): std by number of steps
    Still(): (0.3697, 0.4446, 0.4716, 0.4856, 0.4964),
    FlowSDE(0.7): (0.4244, 0.4668, 0.4836, 0.4923, 0.4986),
    DanceSDE(0.3): (0.3852, 0.4507, 0.4747, 0.4872, 0.4968),
    1.0: (0.3301, 0.4034, 0.4420, 0.4672, 0.4906),
    1.5: (0.3030, 0.3682, 0.4118, 0.4453, 0.4824),
}


@pytest.mark.parametrize("level", STD_OF_FLOW, ids=str)
def test_what_flow_samplers_make_of_gaussian_data_golden(level):
    kernel = GDDIM(level) if isinstance(level, float) else EulerMaruyama(level)
    flow, computed = RectifiedFlow(), []
    for count in (10, 25, 50, 100, 400):
        times = grids.shifted(flow, count, 3.0, dtype=F64)
        mean, variance = gaussian.after_steps(flow, kernel, times, mean=1.0, variance=0.25)
        assert mean == pytest.approx(1.0, abs=1e-9)
        computed.append(math.sqrt(variance))
    assert computed == pytest.approx(STD_OF_FLOW[level], abs=1e-4)


@pytest.mark.parametrize(
    "kernel",
    [
        GDDIM(0.0),
        GDDIM(1.3),
        Renoise(Posterior(0.7)),
        EulerMaruyama(Constant(0.6)),
        Exponential(Memoryless()),
    ],
    ids=str,
)
@pytest.mark.parametrize("process", [VP(), VE(), ContractiveSubVP(1.0, 8.0)], ids=repr)
def test_moments_in_steps_are_those_of_the_kernel(make_bed, process, kernel):
    """By `weights` against the kernel's own mean at 0 and 1, from a start of one's own too."""
    times = grids.karras(process, 12, dtype=F64)
    bed = make_bed(process=process)
    for start in (None, (0.3, 0.8)):
        steps = bed.steps(kernel, bed.exact(), times)
        wanted = steps.laws(*(start or (0.0, process.prior_std**2)))[-1].tolist()
        computed = gaussian.after_steps(
            process, kernel, times, mean=1.0, variance=0.25, start=start
        )
        assert computed == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("name", ["ddim", "heun", "dpmpp_2m", "edm_heun"])
def test_solvers_tend_to_the_ode(name):
    process, errors = VP(), []
    exact = gaussian.arrival(process, mean=1.0, variance=0.25, eta=0.0)
    for count in (40, 400):
        times = grids.karras(process, count, t_end=1e-5, dtype=F64)
        solver = solvers.SOLVERS[name].function
        computed = gaussian.after_solver(process, solver, times, mean=1.0, variance=0.25)
        errors.append(gaussian.wasserstein(computed, exact))
    assert errors[1] < errors[0] / 5
    assert errors[1] < (5e-3 if name == "ddim" else 2e-4)
    times = grids.karras(process, 40, dtype=F64)
    ddim = gaussian.after_solver(process, solvers.ddim, times, mean=1.0, variance=0.25)
    step = gaussian.after_steps(process, GDDIM(0.0), times, mean=1.0, variance=0.25)
    assert ddim == pytest.approx(step, rel=1e-12)


def test_the_bias_of_a_sampler_golden():
    """W2 at t = 1e-3 under VP from the exact law; from the prior, what that does wrong too."""
    process = VP()
    for count, golden in ((10, 1.666e-01), (80, 3.816e-02), (640, 5.829e-03)):
        times = grids.uniform(process, count, t_end=1e-3, dtype=F64)
        start = gaussian.law(process, times[0], mean=1.0, variance=0.25)
        computed = reward_gap.sampler_bias(process, GDDIM(1.0), times, start=start)
        assert computed == pytest.approx(golden, rel=3e-4)
    ends = torch.tensor([1.0, 0.0], dtype=F64)
    ode, sde = (reward_gap.sampler_bias(process, None, ends, eta=eta) for eta in (0.0, 1.0))
    assert ode == pytest.approx(1 - 0.996714, abs=1e-6)
    assert sde == pytest.approx(1 - 0.999989, abs=1e-6)
    assert reward_gap.sampler_bias(process, None, ends, 0.04) < ode  # narrower data remember less


# ------------------------------------------------------------------ marginals at every η


@pytest.mark.parametrize("process", every_process(), ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("eta", ETAS)
def test_exact_steps_keep_the_marginals(process, eta):
    """From the law of x_T, N steps of the exact transition end in the law of x_t: to rounding."""
    end = 1e-3 * process.horizon
    times = grids.uniform(process, 9, t_end=end, dtype=F64)
    law = {"mean": 1.0, "variance": 0.25}
    start, wanted = (gaussian.law(process, t, **law) for t in times[[0, -1]])
    computed = gaussian.after_steps(process, None, times, eta=eta, start=start, **law)
    assert computed == pytest.approx(wanted, abs=1e-12)
    assert reward_gap.sampler_bias(process, None, times, eta=eta, start=start) < 1e-12


GDDIM_W2 = {  # η: W2 at N = 10, 20, 40, 80, 160, 320, 640
    0.5: (1.389e-1, 7.842e-2, 4.272e-2, 2.258e-2, 1.168e-2, 5.963e-3, 3.017e-3),
    1.0: (1.666e-1, 1.084e-1, 6.618e-2, 3.816e-2, 2.102e-2, 1.120e-2, 5.829e-3),
    1.2: (1.782e-1, 1.223e-1, 7.824e-2, 4.688e-2, 2.662e-2, 1.450e-2, 7.663e-3),
    2.0: (2.082e-1, 1.678e-1, 1.266e-1, 8.828e-2, 5.694e-2, 3.430e-2, 1.955e-2),
}


def biases(kernel, counts):
    """W2 on uniform times of VP to t = 1e-3, of the steps alone."""
    process, computed = VP(), []
    for count in counts:
        times = grids.uniform(process, count, t_end=1e-3, dtype=F64)
        start = gaussian.law(process, times[0], mean=1.0, variance=0.25)
        computed.append(reward_gap.sampler_bias(process, kernel, times, start=start))
    return computed


@pytest.mark.parametrize("eta", GDDIM_W2)
def test_the_bias_of_gddim_vanishes_like_a_step_golden(eta):
    computed = biases(GDDIM(eta), [10 * 2**k for k in range(7)])
    assert computed == pytest.approx(GDDIM_W2[eta], rel=4e-4)
    coarse, fine = biases(GDDIM(eta), [10_000, 20_000])
    assert math.log2(coarse / fine) == pytest.approx(1, abs=0.05)


def test_the_bias_of_gddim_grows_with_eta():
    for count in (20, 160):
        computed = [biases(GDDIM(eta), [count])[0] for eta in (0.5, 1.0, 1.2, 2.0, 10.0)]
        assert computed == sorted(computed)


# ------------------------------------------------------------------ gDDIM at any η


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("eta", [1.2, 10.0, 50.0])
def test_gddim_has_likelihoods_where_ddim_has_no_step(sd15, dtype, eta):
    """The grid of Stable Diffusion 1.5 at 50 steps: c² > σ'² for DDIM(1.2), and every step of
    gDDIM(η) has a finite mean, std, log-probability and gradient."""
    times = grids.diffusers_times(sd15, 50, dtype=dtype)
    t, t_next = times[:-1], times[1:]
    radicand = sd15.sigma(t_next) ** 2 - Posterior(1.2)(sd15, t, t_next) ** 2
    assert float(radicand.min()) < 0
    with pytest.raises(ValueError, match="use GDDIM"):
        Renoise(Posterior(1.2)).weights(sd15, t, t_next)
    generator = torch.Generator().manual_seed(0)
    x, data, noise = torch.randn(3, 50, 4, generator=generator, dtype=dtype)
    data.requires_grad_()
    step = GDDIM(eta)(sd15, x, Estimate(data, noise), t, t_next)
    log_prob = step.log_prob(step.draw(generator).detach())
    (slopes,) = torch.autograd.grad(log_prob.sum(), data)
    for computed in (step.mean, step.std, log_prob, slopes):
        assert computed.dtype == dtype
        assert torch.isfinite(computed).all()
    assert (step.std > 0).all()
    assert (slopes.abs().amax(1) > 0).all()


def rewards_of(eta, mean, log_variance, times, process):
    """E r after gDDIM(η) along `times`, exactly."""
    moments = {"mean": mean, "variance": math.exp(log_variance)}
    return reward_gap.expected(gaussian.after_steps(process, GDDIM(eta), times, **moments), 1.0)


@pytest.mark.parametrize("eta", [0.3, 1.0, 2.0, 10.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_policy_gradients_through_gddim_are_unbiased(eta, seed):
    """E[r Σ ∇ ln p] is ∇ E r for the mean and the log-variance of the policy, to 3.5 standard
    errors of 200,000 paths; E[∇ ln p] = 0."""
    process, count, generator = vp(5.0), 200_000, torch.Generator().manual_seed(seed)
    times, at = grids.karras(process, 4, t_end=0.05, dtype=F64), (0.4, math.log(0.5))
    mean, log_variance = (torch.full((count, 1), a, dtype=F64, requires_grad=True) for a in at)
    x, total = torch.randn(count, 1, generator=generator, dtype=F64), torch.zeros(count, dtype=F64)
    kernel = GDDIM(eta)
    for t, t_next in pairwise(times[:, None].expand(-1, count)):
        alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
        away = (x - alpha * mean) / (alpha**2 * log_variance.exp() + sigma**2)
        estimate = Estimate(mean + alpha * log_variance.exp() * away, sigma * away)
        step = kernel(process, x, estimate, t, t_next)
        x = step.draw(generator).detach()
        total = total + step.log_prob(x)
    scores = [part[:, 0] for part in torch.autograd.grad(total.sum(), (mean, log_variance))]
    rewards = -((x[:, 0] - 1) ** 2)
    rewards = rewards - rewards_of(eta, *at, times, process)
    for k, computed in enumerate(scores):
        low, high = (
            rewards_of(eta, *(a + h * (i == k) for i, a in enumerate(at)), times, process)
            for h in (-1e-4, 1e-4)
        )
        for samples, wanted in ((rewards * computed, (high - low) / 2e-4), (computed, 0.0)):
            error = float(samples.std()) / math.sqrt(count)
            assert float(samples.mean()) == pytest.approx(wanted, abs=3.5 * error)


@pytest.mark.parametrize("eta", [0.3, 1.0, 2.0, 10.0])
def test_the_kl_of_two_gddim_steps(eta):
    """(e^h − e^{−η²h})²/(2(1 − e^{−2η²h})) ‖Δε‖² under every process, also by its own samples."""
    for process in (VP(), EDM(), RectifiedFlow()):
        ends = torch.tensor([0.6, 0.45], dtype=F64) * process.horizon
        ratio = process.sigma(ends) / process.alpha(ends)
        h, moved = math.log(float(ratio[0] / ratio[1])), 0.1
        x = torch.zeros(1, 3, dtype=F64)
        base = Estimate(x, x)
        other = Estimate(x - ratio[0] * moved, x + moved)
        first, second = (GDDIM(eta)(process, x, e, ends[:1], ends[1:]) for e in (base, other))
        expected = (math.exp(h) - math.exp(-(eta**2) * h)) ** 2 / 2
        expected *= 3 * moved**2 / -math.expm1(-2 * eta**2 * h)
        assert float(second.kl(first)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("eta", "golden"), [(0.5, 0.14973), (1.0, 0.09583), (1.5, 0.11246), (2.0, 0.14973)]
)
def test_path_kl_in_800_steps_golden(eta, golden):
    """((1+η²)/2η)² ln(ρ_T/ρ_ε) Δε², VP, ε = 1e-3, Δε = 0.1, within 1.5 % by gDDIM's own steps."""
    process, count = VP(), 800
    times = grids.karras(process, count, rho=1e6, t_end=1e-3, dtype=F64)  # equal steps of ln ρ
    t, t_next = times[:-1], times[1:]
    ratio = (process.sigma(t) / process.alpha(t))[:, None]
    zero, moved = torch.zeros(count, 1, dtype=F64), torch.full((count, 1), 0.1, dtype=F64)
    base = GDDIM(eta)(process, zero, Estimate(zero, zero), t, t_next)
    other = GDDIM(eta)(process, zero, Estimate(-ratio * moved, moved), t, t_next)
    assert float(other.kl(base).sum()) == pytest.approx(golden, rel=0.015)
    first, last = noise_ratio(process, times[[0, -1]]).log().tolist()
    factor = float(kl_factor(torch.tensor(eta, dtype=F64)))
    assert factor * 0.01 * (first - last) == pytest.approx(golden, abs=6e-6)


def test_the_most_robust_stochasticity_golden():
    """The amplification of an error of ε̂ is least at η = 1.305, where it is 2.9871."""
    computed = optimize.minimize_scalar(
        lambda eta: contraction.noise_amplification(math.inf, variance=1.0, eta=eta),
        bounds=(0.5, 4),
        method="bounded",
        options={"xatol": 1e-6},
    )
    assert computed.x == pytest.approx(1.305, abs=1e-3)
    assert computed.fun == pytest.approx(2.9871, abs=5e-5)
    for eta, golden in ((0.5, 5.818), (0.7, 3.970), (1.5, 3.025), (3, 4.295), (5, 6.583)):
        amplified = contraction.noise_amplification(math.inf, variance=1.0, eta=eta)
        assert amplified == pytest.approx(golden, abs=6e-4)


# ------------------------------------------------------------------ steps of GRPO's papers


@pytest.mark.parametrize("pair", [(0.95, 0.9), (0.7, 0.55), (0.3, 0.1), (0.05, 0.0)])
@pytest.mark.parametrize("paper", ["flow", "dance"])
def test_grpo_steps_are_euler_maruyama_of_the_family(pair, paper):
    """Flow-GRPO's noise a is η = a/√2, DanceGRPO's ε is η(t) = ε√((1−t)/2t): the mean and the
    variance of x + d[fx − (1+η²)/2 g²s], η²g²|d|, written out."""
    flow, (now, then), level = RectifiedFlow(), pair, 0.7
    t, t_next = (torch.tensor([at], dtype=F64) for at in pair)
    x, data = torch.randn(2, 1, 6, dtype=F64)
    estimate = Estimate(data, (x - (1 - now) * data) / now)
    eta = level / math.sqrt(2) if paper == "flow" else level * math.sqrt((1 - now) / (2 * now))
    kernel = EulerMaruyama(FlowSDE(level) if paper == "flow" else DanceSDE(level))
    step, d = kernel(flow, x, estimate, t, t_next), then - now
    g_sq, s = float(diffusion_sq(flow, t)), score(flow, estimate, t)
    assert g_sq == pytest.approx(2 * now / (1 - now), rel=1e-14)
    mean = x + d * (-x / (1 - now) - (1 + eta**2) / 2 * g_sq * s)
    torch.testing.assert_close(step.mean, mean, rtol=0, atol=1e-12)
    assert float(step.std) ** 2 == pytest.approx(eta**2 * g_sq * -d, abs=1e-12)
    same = EulerMaruyama(Constant(eta))(flow, x, estimate, t, t_next)
    torch.testing.assert_close(step.mean, same.mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(step.std, same.std, rtol=0, atol=1e-12)


@pytest.fixture
def sd15():
    return Tabulated.scaled_linear()


def test_samplers_agree_with_what_is_said_of_them():
    """Samples of a kernel through the sampler that users call: their moments, 3 standard errors."""
    process, count, generator = EDM(5.0), 200_000, torch.Generator().manual_seed(1)
    times = grids.karras(process, 8, t_end=1e-3, dtype=F64)
    for eta in (0.0, 1.2, 10.0):
        x = process.prior_std * torch.randn(count, 1, generator=generator, dtype=F64)
        field = gaussian.exact(process, **LAW)
        x = KernelSampler(GDDIM(eta))(process, field, x, times, generator=generator)
        mean, variance = gaussian.after_steps(process, GDDIM(eta), times, **LAW)
        assert float(x.mean()) == pytest.approx(mean, abs=3 * math.sqrt(variance / count))
        assert float(x.var()) == pytest.approx(variance, rel=3 * math.sqrt(2 / count))


@pytest.mark.parametrize(("count", "cps"), [(400, 0.0804), (1600, 0.0763)])
def test_coefficient_preserving_sampling_keeps_its_bias(count, cps):
    """Its noise is a share of σ' however short the step (arXiv 2509.05952): W2 to N(1, ¼) of CPS
    at level .7 tends to no limit near 0, where gDDIM's falls like 1/N."""
    process = RectifiedFlow()
    times = grids.shifted(process, count, 3.0, dtype=F64)

    def apart(kernel):
        computed = gaussian.after_steps(process, kernel, times, mean=1.0, variance=0.25)
        return gaussian.wasserstein(computed, (1.0, 0.25))

    assert apart(Renoise(CPS(0.7))) == pytest.approx(cps, abs=5e-5)
    assert apart(GDDIM(1.0)) < 4 / count
