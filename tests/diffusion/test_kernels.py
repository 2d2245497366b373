"""Kernels: exact laws on Gaussian data, papers' formulas, limits, and refusals."""

import math
from itertools import product

import pytest
import torch

from scoretune.diffusion.estimates import Estimate, read, velocity
from scoretune.diffusion.grids import diffusers_times, time_of_ratio, uniform
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
    _quadrature,
    response,
    score_weight,
    stochasticity,
)
from scoretune.diffusion.processes import EDM, VE, VP, RectifiedFlow, expand, noise_ratio

F64 = torch.float64
FAMILY = {  # kernel -> the η of the marginal-preserving family it approximates
    "EM ODE": (EulerMaruyama(Still()), 0.0),
    "EM .5": (EulerMaruyama(Constant(0.5)), 0.5),
    "EM 1": (EulerMaruyama(Memoryless()), 1.0),
    "FlowSDE": (EulerMaruyama(FlowSDE(0.7)), 0.7 / math.sqrt(2)),
    "DDIM": (Renoise(Still()), 0.0),
    "DDIM .5": (Renoise(Posterior(0.5)), 0.5),
    "DDPM": (Renoise(Posterior(1.0)), 1.0),
    "gDDIM 0": (GDDIM(0.0), 0.0),
    "gDDIM .5": (GDDIM(0.5), 0.5),
    "gDDIM 1": (GDDIM(Memoryless()), 1.0),
    "gDDIM 2": (GDDIM(2.0), 2.0),
    "EI 0": (Exponential(Still()), 0.0),
    "EI .5": (Exponential(Constant(0.5)), 0.5),
    "EI 1": (Exponential(Memoryless()), 1.0),
}


def _time(value):
    return torch.tensor([value], dtype=F64)


def _exact_step(process, data, eta, t, s):
    """Formula (2): multiplier √(v_s/v_t)(u_s/u_t)^{η²/2} and variance v_s(1 − (u_s/u_t)^{η²})."""
    (_, v_t), (_, v_s) = data.law(process, t), data.law(process, s)
    u_t = v_t / float(process.alpha(torch.tensor(t, dtype=F64))) ** 2
    u_s = v_s / float(process.alpha(torch.tensor(s, dtype=F64))) ** 2
    shrink = (u_s / u_t) ** (eta**2)
    return math.sqrt(v_s / v_t * shrink), v_s * (1 - shrink)


@pytest.mark.parametrize("family", FAMILY)
def test_kernels_converge_to_the_exact_transition(processes, gaussian, family, case):
    # The composed map x' = a x + b + c ξ tends to formula (2), with order one.
    for name, process in processes.items():
        with case(name):
            (kernel, eta), data = FAMILY[family], gaussian(0.7, 0.25)
            top = min(3.0, 0.8 * float(noise_ratio(process, _time(process.horizon))))
            t, s = (float(time_of_ratio(process, _time(ratio))) for ratio in (top, 0.3))
            a_exact, c_exact = _exact_step(process, data, eta, t, s)
            errors = []
            for n in (60, 120):
                # Equal steps of ln(σ/α), which are good steps for every process.
                ratios = torch.linspace(math.log(top), math.log(0.3), n + 1, dtype=F64).exp()
                times = time_of_ratio(process, ratios)
                low = data.propagate(kernel, process, times, start=(0.0, 1e-300))
                high = data.propagate(kernel, process, times, start=(1.0, 1e-300))
                errors.append(abs(high[0] - low[0] - a_exact) + abs(low[1] - c_exact))
            assert errors[1] < 0.06
            assert 1.6 < errors[0] / errors[1] < 2.4


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 1.5, 2.0, 10.0])
def test_gddim_is_exact_for_point_masses_in_one_step(processes, gaussian, eta, case):
    for name, process in processes.items():
        with case(name):
            data = gaussian(0.7, 0.0)
            t, s = (float(time_of_ratio(process, _time(ratio))) for ratio in (5.0, 0.1))
            [(a, _, c_sq)] = data.coefficients(GDDIM(eta), process, _time(t), _time(s))
            a_exact, c_exact = _exact_step(process, data, eta, t, s)
            assert a == pytest.approx(a_exact, abs=1e-12)
            assert c_sq == pytest.approx(c_exact, abs=1e-12)
            mean, variance = data.propagate(GDDIM(eta), process, torch.tensor([t, s], dtype=F64))
            assert (mean, variance) == pytest.approx(data.law(process, s), rel=1e-9)


def test_gddim_one_is_ddim_one(process):
    t = process.horizon * torch.tensor([0.95, 0.5, 0.1], dtype=F64)
    x, x0, eps = torch.randn(3, 3, 4, dtype=F64)
    for t_next in (0.97 * t, 0.5 * t, 0 * t):
        ours = GDDIM(1.0)(process, x, Estimate(x0, eps), t, t_next)
        ddim = Renoise(Posterior(1.0))(process, x, Estimate(x0, eps), t, t_next)
        torch.testing.assert_close(ours.mean, ddim.mean, rtol=0, atol=1e-12 * process.prior_std)
        torch.testing.assert_close(ours.std, ddim.std, rtol=0, atol=1e-12 * process.prior_std)


def test_stds_on_the_grid_of_stable_diffusion(sd15):
    times = diffusers_times(sd15, 50, dtype=F64)
    golden = {
        1.0: [0.4545, 0.3908, 0.2877, 0.1771, 0.03948],
        1.2: [0.5322, 0.4603, 0.3404, 0.2084, 0.04068],
        1.5: [0.6367, 0.5563, 0.4147, 0.2516, 0.04120],
        2.0: [0.7760, 0.6917, 0.5240, 0.3120, 0.04128],
    }
    k = torch.tensor([0, 10, 25, 40, 48])
    x = torch.zeros(5, 1, dtype=F64)
    for eta, expected in golden.items():
        step = GDDIM(eta)(sd15, x, Estimate(x, x), times[k], times[k + 1])
        torch.testing.assert_close(
            step.std.flatten(), torch.tensor(expected, dtype=F64), rtol=0, atol=5.1e-5
        )


@pytest.mark.parametrize(
    ("n", "limit"),
    [(10, 1.007), (20, 1.017), (25, 1.022), (50, 1.0456), (100, 1.092), (200, 1.179)],
)
def test_largest_eta_of_ddim(sd15, n, limit):
    times = diffusers_times(sd15, n, dtype=F64)
    limits = Posterior.limit(sd15, times[:-1], times[1:])
    assert float(limits.min()) == pytest.approx(limit, abs=6e-4)
    assert int(limits.argmin()) == n - 2  # the second-to-last step binds
    x = torch.zeros(1, 1, dtype=F64)
    step = (sd15, x, Estimate(x, x), times[-3:-2], times[-2:-1])
    assert torch.isfinite(Renoise(Posterior(limit - 1e-3))(*step).mean).all()
    with pytest.raises(ValueError, match=r"Posterior\(eta=1.2\) asks for more .* use GDDIM\(eta\)"):
        Renoise(Posterior(1.2))(*step)
    assert torch.isfinite(GDDIM(10.0)(*step).std).all()


SD3_STEPS = {  # t -> s on SD3's own ten-step grid, stds of Flow-GRPO, Dance, CPS, gDDIM .495 and 1
    (1.0, 0.9601): [0.700, 0.060, 0.856, 0.960, 0.960],
    (0.9133, 0.8577): [0.536, 0.071, 0.764, 0.420, 0.704],
    (0.7073, 0.6022): [0.353, 0.097, 0.537, 0.273, 0.469],
    (0.4649, 0.2780): [0.282, 0.130, 0.248, 0.159, 0.249],
    (0.2780, 0.0089): [0.225, 0.156, 0.0080, 0.0082, 0.0089],
}


@pytest.mark.parametrize("pair", SD3_STEPS)
def test_stds_of_flow_kernels(pair):
    t, s = _time(pair[0]), _time(pair[1])
    x = torch.zeros(1, 1, dtype=F64)
    kernels = [
        EulerMaruyama(FlowSDE(0.7)),
        EulerMaruyama(DanceSDE(0.3)),
        Renoise(CPS(0.7)),
        GDDIM(FlowSDE(0.7)),
        GDDIM(1.0),
    ]
    stds = [float(k(RectifiedFlow(), x, Estimate(x, x), t, s).std) for k in kernels]
    assert stds == pytest.approx(SD3_STEPS[pair], abs=6e-4)


@pytest.mark.parametrize("pair", [(1.0, 0.95), (0.9, 0.8), (0.5, 0.2), (0.1, 0.0)])
def test_flow_sde_is_the_step_of_flow_grpo(pair):
    t, s = _time(pair[0]), _time(pair[1])
    x, u = torch.randn(2, 1, 6, dtype=F64)
    estimate = read(RectifiedFlow(), velocity, t, x, u)
    step = EulerMaruyama(FlowSDE(0.7))(RectifiedFlow(), x, estimate, t, s)
    delta = t - s
    below = 1 - t if pair[0] < 1 else 1 - s
    sigma_sq = 0.7**2 * t / below
    mean = x * (1 - sigma_sq * delta / (2 * t)) - u * delta * (1 + sigma_sq * (1 - t) / (2 * t))
    torch.testing.assert_close(step.mean, mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(step.std[:, 0], torch.sqrt(sigma_sq * delta), rtol=0, atol=1e-12)


@pytest.mark.parametrize("pair", [(1.0, 0.95), (0.5, 0.4)])
def test_dance_sde_is_the_step_of_dance_grpo(pair):
    t, s = _time(pair[0]), _time(pair[1])
    x, u = torch.randn(2, 1, 6, dtype=F64)
    estimate = read(RectifiedFlow(), velocity, t, x, u)
    step = EulerMaruyama(DanceSDE(0.3))(RectifiedFlow(), x, estimate, t, s)
    score = -(x - (1 - t) * estimate.data) / t**2
    mean = x - (t - s) * u + 0.045 * score * (t - s)
    torch.testing.assert_close(step.mean, mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(step.std[:, 0], 0.3 * torch.sqrt(t - s), rtol=0, atol=1e-12)


def test_memoryless_noise_of_rectified_flow_is_g():
    t, s = _time(0.6), _time(0.5)
    x = torch.randn(1, 3, dtype=F64)
    step = EulerMaruyama(Memoryless())(RectifiedFlow(), x, Estimate(x, x), t, s)
    assert float(step.std) == pytest.approx(math.sqrt(2 * 0.6 / 0.4 * 0.1))


def test_euler_maruyama_is_the_textbook_formula():
    # μ = x + d[f x − (1+η²)/2 g² s] for VP, where nothing is singular.
    process, t, s, eta = VP(), _time(0.6), _time(0.55), 1.3
    x, eps = torch.randn(2, 1, 5, dtype=F64)
    data = (x - expand(process.sigma(t), x) * eps) / expand(process.alpha(t), x)
    step = EulerMaruyama(Constant(eta))(process, x, Estimate(data, eps), t, s)
    f, g_sq = (float(value) for value in process.sde(t))
    score = -eps / float(process.sigma(t))
    mean = x - 0.05 * (f * x - (1 + eta**2) / 2 * g_sq * score)
    torch.testing.assert_close(step.mean, mean, rtol=1e-12, atol=1e-12)
    assert float(step.std) == pytest.approx(eta * math.sqrt(g_sq * 0.05))


def test_exponential_integrator_is_the_textbook_formula():
    # x' = (α'/α)x + (1+η²)/2 I s + η α'√(ρ²−ρ'²) ξ with I = 2(e^{(B−B')/2} − 1) for VP.
    process, t, s, eta = VP(), _time(0.6), _time(0.3), 1.3
    x, eps = torch.randn(2, 1, 5, dtype=F64)
    sigma, alpha = process.sigma(t), process.alpha(t)
    data = (x - expand(sigma, x) * eps) / expand(alpha, x)
    step = Exponential(Constant(eta))(process, x, Estimate(data, eps), t, s)
    gone = process.log_decay(t) - process.log_decay(s)
    pull = (1 + eta**2) / 2 * 2 * (torch.exp(gone / 2) - 1)
    mean = torch.exp(gone / 2) * x - pull * eps / sigma
    torch.testing.assert_close(step.mean, mean, rtol=1e-12, atol=1e-12)
    lost = noise_ratio(process, t) ** 2 - noise_ratio(process, s) ** 2
    assert float(step.std) == pytest.approx(float(eta * process.alpha(s) * torch.sqrt(lost)))


@pytest.mark.parametrize("pair", [(1.0, 0.0), (1.0, 0.9), (0.7, 0.2), (0.1, 0.09), (1e-3, 0.0)])
def test_weight_of_a_frozen_score(pair):
    t, s = _time(pair[0]), _time(pair[1])
    assert float(score_weight(VP(), t, s)) == pytest.approx(
        2 * math.expm1(float(VP().log_decay(t) - VP().log_decay(s)) / 2), rel=1e-12
    )
    assert float(_quadrature(VP(), t, s)) == pytest.approx(
        float(score_weight(VP(), t, s)), rel=1e-10
    )
    for process in (VE(), EDM()):  # α = 1: what is left of ∫ dρ²
        lost = noise_ratio(process, t) ** 2 - noise_ratio(process, s) ** 2
        assert float(score_weight(process, t, s)) == pytest.approx(float(lost), rel=1e-9)


@pytest.mark.parametrize("pair", [(0.95, 0.8), (0.6, 0.5), (0.2, 0.0)])
def test_weight_of_a_frozen_score_of_rectified_flow(pair):
    # I = α' ∫ α dρ² with α = 1/(1 + ρ): 2α'[ρ − ρ' − ln((1 + ρ)/(1 + ρ'))].
    t, s = _time(pair[0]), _time(pair[1])
    high, low = (float(noise_ratio(RectifiedFlow(), time)) for time in (t, s))
    exact = 2 * (1 - pair[1]) * (high - low - math.log((1 + high) / (1 + low)))
    assert float(score_weight(RectifiedFlow(), t, s)) == pytest.approx(exact, rel=1e-10)


def test_weight_of_a_frozen_score_by_fine_steps(process):
    # I = α' ∫ α dρ² as a sum of midpoints.
    t, s = 0.7 * process.horizon, 0.4 * process.horizon
    nodes = torch.linspace(s, t, 4001, dtype=F64)
    squares = noise_ratio(process, nodes) ** 2
    middles = process.alpha((nodes[1:] + nodes[:-1]) / 2)
    summed = process.alpha(_time(s)) * (middles * squares.diff()).sum()
    assert float(score_weight(process, _time(t), _time(s))) == pytest.approx(
        float(summed), rel=1e-5
    )


@pytest.mark.parametrize("family", FAMILY)
def test_response_and_stochasticity_of_every_kernel(processes, family, case):
    for name, process in processes.items():
        with case(name):
            kernel, eta = FAMILY[family]
            t, s = process.horizon * _time(0.6), process.horizon * _time(0.599)
            x, data = torch.randn(2, 1, 3, dtype=F64)
            alpha, sigma = expand(process.alpha(t), x), expand(process.sigma(t), x)
            before, after = (
                kernel(process, x, Estimate(data, (x - alpha * data) / sigma), t, s).mean
                for data in (data, data + 1)
            )
            slope = response(kernel, process, t, s).expand(1, 3)
            assert after - before == pytest.approx(slope, rel=1e-6)
            assert float(stochasticity(kernel, process, t, s)) == pytest.approx(eta, abs=0.02)


ALL_KERNELS = [kernel for kernel, _ in FAMILY.values()] + [
    EulerMaruyama(DanceSDE(0.3)),
    Renoise(CPS(0.7)),
    Renoise(CPS(1.0)),
    GDDIM(10.0),
    GDDIM(30.0),
]


@pytest.mark.parametrize("kernel", ALL_KERNELS, ids=str)
def test_nothing_is_nan_from_horizon_to_data(processes, kernel, case):
    for (name, process), dtype in product(processes.items(), (torch.float32, F64)):
        with case(name, dtype):
            times = uniform(process, 7, t_end=0.0, dtype=dtype)
            if isinstance(kernel, Exponential) and isinstance(process, RectifiedFlow):
                times[0] = 0.99  # this one cannot begin without any signal
            t, s = times[:-1], times[1:]
            x, x0, eps = torch.randn(3, 7, 2, 2, dtype=dtype)
            step = kernel(process, x, Estimate(x0, eps), t, s)
            assert step.mean.dtype == dtype
            assert step.std.shape == (7, 1, 1)
            assert torch.isfinite(step.mean).all()
            assert torch.isfinite(step.std).all()
            assert (step.std >= 0).all()
            noisy = ~step.deterministic
            assert torch.isfinite(step.draw()).all()
            assert noisy.shape == (7,)
            alone = kernel(process, x[:1], Estimate(x0[:1], eps[:1]), t[:1], s[:1])
            assert torch.equal(alone.mean, step.mean[:1])  # samples of a batch do not meet


def test_a_step_of_no_length_is_the_identity(process):
    t = process.horizon * torch.tensor([0.2, 0.33, 0.61, 0.77], dtype=torch.float32)
    x0, eps = torch.randn(2, 4, 3)
    x = expand(process.alpha(t), x0) * x0 + expand(process.sigma(t), x0) * eps
    for kernel in (GDDIM(1.0), GDDIM(3.0), Renoise(Posterior(1.0)), EulerMaruyama(Memoryless())):
        step = kernel(process, x, Estimate(x0, eps), t, t)
        torch.testing.assert_close(step.mean, x, rtol=1e-3, atol=1e-3 * process.prior_std)
        assert float(step.std.max()) < 1e-2 * process.prior_std


def test_large_eta_is_fresh_renoising(sd15):
    t, s = _time(0.5), _time(0.48)
    x, x0, eps = torch.randn(3, 1, 3, dtype=F64)
    step = GDDIM(1e3)(sd15, x, Estimate(x0, eps), t, s)
    torch.testing.assert_close(step.mean, expand(sd15.alpha(s), x) * x0)
    assert float(step.std) == pytest.approx(float(sd15.sigma(s)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Constant(-1.0), "Constant eta must be finite and >= 0, got -1"),
        (lambda: FlowSDE(math.nan), "FlowSDE a must be finite"),
        (lambda: DanceSDE(math.inf), "DanceSDE level must be finite"),
        (lambda: Posterior(-0.1), "Posterior eta must be finite"),
        (lambda: CPS(1.5), r"CPS level must lie in \[0, 1\], got 1.5"),
        (lambda: GDDIM(-1.0), "GDDIM eta must be finite"),
        (lambda: EulerMaruyama(Posterior(1.0)), "EulerMaruyama needs a scale that prescribes eta"),
        (lambda: GDDIM(CPS(0.5)), "GDDIM needs a scale that prescribes eta.*use it with Renoise"),
        (lambda: Renoise(Constant(1.0)), "Renoise needs a scale that prescribes std"),
        (lambda: Exponential(Posterior(1.0)), "Exponential needs a scale that prescribes eta"),
        (lambda: Renoise(Memoryless()), "use it with EulerMaruyama or GDDIM"),
    ],
)
def test_errors_name_the_thing_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
