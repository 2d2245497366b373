"""Processes: α, σ against f, g², known values, and the tabulated embedding."""

import math
import pickle

import pytest
import torch
from scipy.interpolate import PchipInterpolator

from scoretune.diffusion.estimates import Estimate
from scoretune.diffusion.processes import (
    EDM,
    OU,
    VE,
    VP,
    ContractiveOU,
    ContractiveSubVP,
    ContractiveVP,
    Cosine,
    GeometricVE,
    RectifiedFlow,
    SubVP,
    Tabulated,
    diffusion_sq,
    drift_rate,
    expand,
    half_log_snr,
    log_snr,
    noise_ratio,
    process_named,
    rates,
    score,
    time_of_ratio,
)

F64 = torch.float64


def _inner_times(process):
    return process.horizon * torch.linspace(0.0205, 0.9305, 23, dtype=F64)


def test_rates_match_finite_differences(process):
    t, step = _inner_times(process), 1e-6 * process.horizon
    alpha_rate, sigma_rate = rates(process, t)
    for method, rate in ((process.alpha, alpha_rate), (process.sigma, sigma_rate)):
        numeric = (method(t + step) - method(t - step)) / (2 * step)
        torch.testing.assert_close(rate, numeric, rtol=2e-6, atol=1e-8)


def test_sde_integrates_to_alpha_and_sigma(process):
    # α' = fα and (σ²)' = 2fσ² + g², arXiv 2402.07487.
    t, step = _inner_times(process), 1e-6 * process.horizon
    f, g_sq = drift_rate(process, t), diffusion_sq(process, t)
    log_alpha = (torch.log(process.alpha(t + step)) - torch.log(process.alpha(t - step))) / 2 / step
    variance = (process.sigma(t + step) ** 2 - process.sigma(t - step) ** 2) / (2 * step)
    torch.testing.assert_close(f, log_alpha, rtol=2e-6, atol=1e-8)
    torch.testing.assert_close(g_sq, variance - 2 * f * process.sigma(t) ** 2, rtol=1e-5, atol=1e-8)


def test_snr_falls_and_names_agree(process):
    t = _inner_times(process)
    ratio = noise_ratio(process, t)
    assert (ratio.diff() > 0).all()
    torch.testing.assert_close(half_log_snr(process, t), -torch.log(ratio))
    torch.testing.assert_close(log_snr(process, t), -2 * torch.log(ratio))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_shape_and_dtype(process, dtype):
    t = torch.rand(2, 3, dtype=dtype) * process.horizon * 0.9 + 0.01
    for value in (process.alpha(t), process.sigma(t), *rates(process, t)):
        assert value.shape == t.shape
        assert value.dtype == dtype
        assert torch.isfinite(value).all()
    assert process.alpha(t[0, 0]).shape == ()


def test_small_times_keep_their_digits(process):
    t = torch.tensor([1e-6, 1e-5, 1e-4, 1e-2])
    blurred = process.sigma_min if isinstance(process, GeometricVE) else 0
    assert float(process.sigma(torch.zeros(()))) == pytest.approx(blurred)
    assert float(process.alpha(torch.zeros(()))) == 1
    exact = process.sigma(t.double())
    torch.testing.assert_close(process.sigma(t).double(), exact, rtol=1e-6, atol=0)


def test_processes_are_values(process):
    process.sigma(torch.ones(1))  # a filled cache is no part of the value
    copy = pickle.loads(pickle.dumps(process))
    assert copy == process
    assert hash(copy) == hash(process)
    assert process.prior_std > 0


def test_known_constants():
    one = torch.tensor(1.0, dtype=F64)
    assert float(VP(0.1, 20.0).alpha(one)) == pytest.approx(0.00657159, rel=1e-5)
    assert float(noise_ratio(VP(), one)) == pytest.approx(152.167, rel=1e-5)
    assert float(drift_rate(RectifiedFlow(), one / 2)) == -2
    assert float(diffusion_sq(RectifiedFlow(), one / 2)) == 2
    assert float(noise_ratio(RectifiedFlow(), one)) == math.inf
    assert VE(0.01, 50.0).prior_std == pytest.approx(float(VE(0.01, 50.0).sigma(one)), rel=1e-12)
    assert OU(1.0, math.sqrt(2), 3.0).prior_std == pytest.approx(1)
    assert EDM(80.0).prior_std == EDM(80.0).horizon == 80
    assert float(SubVP().sigma(one)) == pytest.approx(float(VP().sigma(one)) ** 2)
    assert float(Cosine().alpha(one)) == pytest.approx(0, abs=1e-7)


def test_time_of_ratio_inverts_the_ratio(process):
    t = _inner_times(process)
    torch.testing.assert_close(
        time_of_ratio(process, noise_ratio(process, t)), t, rtol=1e-11, atol=1e-12
    )
    lowest, highest = noise_ratio(process, torch.tensor([0.0, process.horizon], dtype=F64))
    beyond = torch.stack([lowest / 2 - 1, highest * 2 + 1]).clamp(min=0)
    ends = torch.tensor([0.0, process.horizon], dtype=F64)
    torch.testing.assert_close(time_of_ratio(process, beyond), ends, rtol=1e-7, atol=1e-12)
    near = time_of_ratio(process, torch.tensor(0.02))  # a closed form is the bisection's limit
    assert float(noise_ratio(process, near)) == pytest.approx(0.02, rel=1e-7)


# arXiv 2402.07487 and 2401.13115: α, σ and ρ at the horizon.
@pytest.mark.parametrize(
    ("process", "alpha", "sigma", "ratio"),
    [
        (VP(0.1, 20), 0.00657159, None, 152.167),
        (SubVP(0.1, 20), 0.00657159, None, 152.16400),
        (ContractiveSubVP(0.01, 8), 7.40755, 53.8718, 7.27255),
        (ContractiveSubVP(1, 8), None, None, 9.3828),
        (ContractiveVP(0.01, 8), None, None, 0.990846),
        (ContractiveOU(1, math.sqrt(2), 3), None, 20.0606, 0.99876),
        (GeometricVE(), 1, 50, 50),
    ],
)
def test_what_is_left_at_the_horizon(process, alpha, sigma, ratio):
    end = torch.tensor(process.horizon, dtype=F64)
    if alpha is not None:
        assert float(process.alpha(end)) == pytest.approx(alpha, rel=1e-5)
    if sigma is not None:
        assert float(process.sigma(end)) == pytest.approx(sigma, rel=1e-5)
    assert float(noise_ratio(process, end)) == pytest.approx(
        ratio, rel=5e-4 if ratio < 10 else 1e-5
    )


def test_prior_is_the_noise_at_the_horizon(process):
    # What a sampler starts from: exactly, or but for the signal that a stationary law forgets.
    end = torch.tensor(process.horizon, dtype=F64)
    sigma, left = float(process.sigma(end)), float(process.alpha(end))
    forgotten = left**2 if left < 0.1 else 0
    assert sigma == pytest.approx(process.prior_std, rel=1e-6 + forgotten)


def test_contraction_is_a_growing_signal(process):
    # arXiv 2401.13115: sampling contracts where f > 0; the others have f <= 0.
    f = drift_rate(process, _inner_times(process))
    assert bool((f > 0).all()) == type(process).__name__.startswith("Contractive")


def test_contractive_vp_and_ou_never_lose_the_signal():
    t = torch.linspace(0, 1, 50, dtype=F64)
    assert (noise_ratio(ContractiveVP(0.01, 80), t) < 1 + 1e-12).all()
    assert (noise_ratio(ContractiveOU(1, math.sqrt(2), 30), 30 * t) < 1 + 1e-12).all()
    assert float(noise_ratio(ContractiveSubVP(0.01, 80), t[-1])) > 1e8


def test_a_process_is_read_from_its_name(process):
    if isinstance(process, Tabulated):
        return
    assert process_named(repr(process)) == process
    assert process_named(type(process).__name__) == type(process)()


def test_names_of_processes():
    assert process_named("VE(sigma_max=80)") == VE(sigma_max=80.0)
    assert process_named(" VP(0.1, 10) ") == VP(0.1, 10)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SubVp", "unknown process 'SubVp': did you mean 'SubVP'?"),
        ("VE(sigma_mx=80)", "unknown constant of VE 'sigma_mx': did you mean 'sigma_max'?"),
        ("VE(", "cannot read the process 'VE(': write its name and constants"),
        ("VE(__import__('os'))", "cannot read the process"),
        ("VE(sigma_max=-1)", "cannot make the process 'VE(sigma_max=-1)': VE needs finite"),
        ("VP(1, 2, 3)", "cannot make the process"),
        ("Tabulated", "unknown process 'Tabulated'"),
    ],
)
def test_bad_names_are_one_line(text, message):
    with pytest.raises(ValueError) as error:
        process_named(text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_velocity_is_the_probability_flow_drift(process):
    # u = α'x0 + σ'ε = f x − ½ g² s.
    t = _inner_times(process)
    x0, eps = torch.randn(2, len(t), 4, dtype=F64)
    alpha_rate, sigma_rate = rates(process, t)
    u = expand(alpha_rate, x0) * x0 + expand(sigma_rate, x0) * eps
    x = expand(process.alpha(t), x0) * x0 + expand(process.sigma(t), x0) * eps
    s = score(process, Estimate(x0, eps), t)
    flow = expand(drift_rate(process, t), x) * x - expand(diffusion_sq(process, t), x) * s / 2
    torch.testing.assert_close(u, flow, rtol=1e-8, atol=1e-8)


def test_expand_keeps_images_narrow_and_coefficients_wide():
    t = torch.rand(3, dtype=F64)
    assert expand(t, torch.zeros(3, 4, 2, 2)).shape == (3, 1, 1, 1)
    assert expand(t, torch.zeros(3, 4)).dtype == torch.float32
    assert expand(t, torch.zeros(3, 4, dtype=torch.bfloat16)).dtype == torch.float32
    assert expand(t, torch.zeros(3, dtype=F64)).shape == (3,)


def test_table_of_stable_diffusion(sd15):
    table = torch.tensor(sd15.alphas_cumprod, dtype=F64)
    ends = torch.tensor([1 / 1000, 1.0], dtype=F64)
    rho = noise_ratio(sd15, ends)
    assert float(table[0]) == pytest.approx(0.99915, abs=1e-7)
    assert float(table[-1]) == pytest.approx(0.0046601, abs=5e-8)
    assert rho.tolist() == pytest.approx([0.029167, 14.6146], rel=2e-5)
    assert float(sd15.log_decay(ends[1])) == pytest.approx(5.36872, abs=1e-5)
    assert float(sd15.alpha(ends[1])) == pytest.approx(0.068265, rel=1e-5)
    assert repr(sd15) == "Tabulated(0.99915, …, 0.0046601; n=1000)"
    linear = Tabulated.linear()
    assert linear.alphas_cumprod[-1] == pytest.approx(4.0358e-5, rel=1e-4)
    assert float(noise_ratio(linear, ends[1])) == pytest.approx(157.4, rel=1e-3)


@pytest.mark.parametrize("make", [Tabulated.scaled_linear, Tabulated.linear])
def test_table_is_exact_at_its_nodes(make):
    process = make()
    table = torch.tensor(process.alphas_cumprod, dtype=F64)
    nodes = torch.arange(1, 1001) / 1000
    error = (process.alpha(nodes).double() ** 2 - table).abs().max()
    assert float(error) < 1e-7  # float32
    nodes = torch.arange(1, 1001, dtype=F64) / 1000
    assert float((process.alpha(nodes) ** 2 - table).abs().max()) < 1e-14
    torch.testing.assert_close(process.label(nodes), torch.arange(1000, dtype=F64))


@pytest.mark.parametrize("name", ["scaled_linear", "linear"])
def test_tables_are_those_of_diffusers(name):
    diffusers = pytest.importorskip("diffusers")
    start, end = {"scaled_linear": (0.00085, 0.012), "linear": (1e-4, 0.02)}[name]
    theirs = diffusers.DDIMScheduler(beta_start=start, beta_end=end, beta_schedule=name)
    ours = torch.tensor(getattr(Tabulated, name)(start, end).alphas_cumprod)
    assert torch.equal(ours, theirs.alphas_cumprod)


def test_table_interpolates_as_pchip():
    table = (0.99, 0.9, 0.88, 0.5, 0.2, 0.19, 0.01)
    decay = [0.0, *(-math.log(a) for a in table)]
    nodes = torch.linspace(0, 1, 8, dtype=F64)
    reference = PchipInterpolator(nodes.numpy(), decay)
    t = torch.linspace(0.003, 0.997, 301, dtype=F64)
    ours = Tabulated(table)
    expected = torch.tensor(reference(t.numpy()))
    torch.testing.assert_close(ours.log_decay(t), expected, rtol=1e-12, atol=1e-13)
    beta = torch.tensor(reference.derivative()(t.numpy()))
    torch.testing.assert_close(ours.sde(t)[1], beta, rtol=1e-10, atol=1e-10)
    assert (ours.sde(t)[1] >= 0).all()


def test_cached_table_made_in_inference_mode_serves_training():
    process, t = Tabulated.scaled_linear(n=10), torch.rand(3)
    with torch.inference_mode():
        process.sigma(t)
    x = torch.randn(3, 2, requires_grad=True)
    (expand(process.sigma(t), x) * x).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VP(0.1, math.inf), "need finite 0 < beta_min <= beta_max"),
        (lambda: VP(2.0, 1.0), "need finite 0 < beta_min <= beta_max"),
        (lambda: SubVP(-0.1, 1.0), "need finite 0 < beta_min <= beta_max"),
        (lambda: OU(0.0), "OU needs finite constants > 0"),
        (lambda: VE(2.0, 1.0), "VE needs finite constants > 0 in increasing order"),
        (lambda: EDM(math.nan), "EDM needs finite constants > 0"),
        (lambda: Cosine(-1.0), "Cosine needs finite constants > 0"),
        (lambda: ContractiveOU(horizon=math.inf), "ContractiveOU needs finite constants > 0"),
        (lambda: ContractiveVP(0.0, 1.0), "need finite 0 < beta_min <= beta_max"),
        (lambda: ContractiveSubVP(1.0, math.nan), "need finite 0 < beta_min <= beta_max"),
        (lambda: RectifiedFlow(1.1), "RectifiedFlow needs a horizon in"),
        (lambda: GeometricVE(1.0, 1.0), "GeometricVE needs finite constants > 0 in increasing"),
        (lambda: Tabulated(torch.ones(3)), "alphas_cumprod must be a tuple of floats"),
        (lambda: Tabulated((0.5,)), "alphas_cumprod needs at least 2 entries, got 1"),
        (lambda: Tabulated((0.5, 0.0)), "alphas_cumprod must lie in"),
        (lambda: Tabulated((0.5, math.nan)), "alphas_cumprod must lie in"),
        (lambda: Tabulated((0.5, 0.6)), "alphas_cumprod must decrease strictly"),
        (lambda: Tabulated.linear(0.1, 0.02), "need n >= 2 and 0 < beta_start <= beta_end < 1"),
    ],
)
def test_errors_name_the_thing_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


class Plain:
    """A process of someone else's: rectified flow without a closed form."""

    horizon = 1.0
    prior_std = 1.0

    def alpha(self, t):
        return 1 - t

    def sigma(self, t):
        return t * torch.ones_like(t)


def test_derivatives_are_taken_where_no_closed_form_is_given():
    t = torch.tensor(0.4).expand(3)
    with torch.no_grad():
        numbers = [*rates(Plain(), t), drift_rate(Plain(), t), diffusion_sq(Plain(), t)]
    with torch.inference_mode():
        assert torch.equal(rates(Plain(), t.clone())[1], numbers[1])
    expected = [*rates(RectifiedFlow(), t), drift_rate(RectifiedFlow(), t)]
    for ours, theirs in zip(numbers, [*expected, diffusion_sq(RectifiedFlow(), t)], strict=True):
        torch.testing.assert_close(ours, theirs)
