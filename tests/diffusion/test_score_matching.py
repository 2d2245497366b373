"""Score matching: identities by quadrature, estimators by their spread, weights, laws of times.

Data N(m, s²) have v = α²s² + σ², score −(x − αm)/v and, for the noise weight, a floor of α²s²/v a
dimension. Losses of affine scores are quadratic in (x0, ε), so a Gauss–Hermite grid is exact.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from scoretune.diffusion import estimates, grids
from scoretune.diffusion.estimates import perturb, prediction_named, target
from scoretune.diffusion.matching import score_matching as sm
from scoretune.diffusion.matching import weightings as w
from scoretune.diffusion.processes import (
    EDM,
    OU,
    VE,
    VP,
    ContractiveOU,
    ContractiveSubVP,
    ContractiveVP,
    Cosine,
    Process,
    RectifiedFlow,
    SubVP,
    diffusion_sq,
    noise_ratio,
)
from scoretune.diffusion.theory import contraction
from scoretune.rl import tilt
from slow_cases import quick_ones

M, S_SQ = 0.7, 0.25
NAMES = ["epsilon", "sample", "v_prediction", "velocity"]
PROCESSES: list[Process] = [
    VP(),
    SubVP(),
    VE(),
    EDM(),
    OU(),
    Cosine(),
    ContractiveOU(),
    ContractiveVP(),
    ContractiveSubVP(),
]
EVERYWHERE = [*PROCESSES, RectifiedFlow()]
every_process = pytest.mark.parametrize("process", EVERYWHERE, ids=lambda p: type(p).__name__)


def hermite(nodes: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Two standard normals on a product grid and their weights, exact to degree 2·nodes − 1."""
    place, mass = tilt.gauss_hermite(nodes, torch.zeros((), dtype=torch.float64))
    a, b = torch.meshgrid(place, place, indexing="ij")
    return a.reshape(-1, 1), b.reshape(-1, 1), (mass[:, None] * mass).flatten() / mass.sum() ** 2


def at(process: Process, share: float) -> Tensor:
    return torch.tensor(process.horizon * share, dtype=torch.float64)


# --------------------------------------------------------------------------- identities


@every_process
@pytest.mark.parametrize("share", [0.05, 0.4, 0.9])
@pytest.mark.parametrize(("a", "b"), [(0.3, 0.8), (-1.0, 2.5)])
def test_four_losses_of_an_affine_score(process, share, a, b):
    # Model −(x−a)/b: explicit (1/b − 1/v)²v + ((αm−a)/b)², implicit less 1/v, denoising plus
    # 1/σ² − 1/v (arXiv 2402.07487 Thms 3.1, 3.3).
    t = at(process, share)
    alpha, sigma = process.alpha(t), process.sigma(t)
    v = alpha**2 * S_SQ + sigma**2
    z, eps, mass = hermite()
    x0 = M + math.sqrt(S_SQ) * z
    x = perturb(process, t.expand(len(x0)), x0, eps)

    def model(x):
        return -(x - a) / b

    exact = (1 / b - 1 / v) ** 2 * v + ((alpha * M - a) / b) ** 2
    explicit = (mass * sm.explicit(model(x), -(x - alpha * M) / v)).sum()
    implicit = (mass * sm.implicit(model, x)).sum()
    sliced = (mass * sm.sliced(model, x)).sum()  # Rademacher in one dimension is exact
    denoising = (mass * sm.denoising(model(x), eps, sigma.expand(len(eps)))).sum()
    torch.testing.assert_close(explicit, exact, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(implicit, exact - 1 / v, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(sliced, exact - 1 / v, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(denoising, exact + 1 / sigma**2 - 1 / v, rtol=1e-9, atol=1e-9)


def test_implicit_is_explicit_less_a_constant_for_any_score_and_law():
    # A bimodal law and a model that is not affine, by the trapezoid rule.
    law = tilt.Mixture.of([0.3, 0.7], [[-1.0], [1.0]], 0.3)
    x = torch.linspace(-7, 7, 20001, dtype=torch.float64)[:, None]
    law = law.to(x)
    density, exact = law.log_density(x).exp(), law.score(x)

    def mean(each):
        return float(torch.trapezoid(density * each.detach(), x[:, 0]))

    constants = []
    for scale in (0.3, 1.0, 2.0):

        def model(x, scale=scale):
            return torch.tanh(scale * x) - x**3 / 10

        difference = mean(sm.explicit(model(x), exact)) - mean(sm.implicit(model, x))
        constants.append(difference)
    assert constants == pytest.approx([mean((exact**2)[:, 0])] * 3, rel=1e-6)


def test_identities_by_monte_carlo():
    process, t = VP(), torch.full((2_000_000,), 0.4)
    x0, eps = M + math.sqrt(S_SQ) * torch.randn(2_000_000, 1), torch.randn(2_000_000, 1)
    x = perturb(process, t, x0, eps)
    alpha, sigma = process.alpha(t[:1]), process.sigma(t[:1])
    v = alpha**2 * S_SQ + sigma**2

    def model(x):
        return -(x - 0.1) / 1.2

    constant = float(1 / sigma**2 - 1 / v)
    with torch.no_grad():
        explicit = float(sm.explicit(model(x), -(x - alpha * M) / v).mean())
        denoising = float(sm.denoising(model(x), eps, sigma.expand(len(eps))).mean())
        sliced = float(sm.sliced(model, x, directions="gaussian").mean())
    assert denoising == pytest.approx(explicit + constant, abs=3e-3)
    assert sliced == pytest.approx(explicit - float(1 / v), abs=8e-3)  # four deviations


@pytest.mark.parametrize(
    ("directions", "reduced", "variance"),
    [("gaussian", False, 148), ("gaussian", True, 60), ("rademacher", True, 12.5)],
)
def test_spread_of_the_sliced_loss(directions, reduced, variance):
    # Ten dimensions, Cov = diag(½ … 2), score −x/1.3: mean Σλ/1.69 − 20/1.3 for every estimator.
    lam = torch.linspace(0.5, 2, 10, dtype=torch.float64)
    x = lam.sqrt() * torch.randn(100_000, 10, dtype=torch.float64)
    with torch.no_grad():
        loss = sm.sliced(lambda x: -x / 1.3, x, directions=directions, reduced=reduced)
        implicit = sm.implicit(lambda x: -x / 1.3, x)
    mean = float(lam.sum()) / 1.69 - 20 / 1.3
    assert float(loss.mean()) == pytest.approx(mean, abs=4 * math.sqrt(variance / 1e5))
    assert float(loss.var()) == pytest.approx(variance, rel=0.1)
    assert float(implicit.var()) == pytest.approx(12.5, rel=0.05)
    if directions == "rademacher":  # a diagonal Jacobian leaves nothing to chance
        torch.testing.assert_close(loss, implicit)


def test_divergence_of_a_linear_field_is_its_trace():
    matrix = torch.randn(6, 6, dtype=torch.float64)
    x = torch.randn(4, 2, 3, dtype=torch.float64)

    def field(x):
        return (x.flatten(1) @ matrix.T).view_as(x)

    value, trace = sm.divergence(field, x)
    torch.testing.assert_close(value, field(x))
    torch.testing.assert_close(trace, matrix.trace().expand(4))
    many = x[:1].expand(100_000, 2, 3)
    for kind in ("rademacher", "gaussian"):
        guess = sm.divergence(field, many, sm.random_directions(many, kind))[1]
        assert float(guess.mean()) == pytest.approx(float(matrix.trace()), abs=0.15)
    assert float(sm.divergence(lambda x: torch.ones_like(x), x)[1].abs().max()) == 0
    with pytest.raises(ValueError, match="rademacher or gaussian"):
        sm.random_directions(x, "cauchy")


def test_directions_follow_their_generator():
    x = torch.zeros(3, 5)
    a, b = (
        sm.sliced(lambda x: x**3, x + 1, generator=torch.Generator().manual_seed(7), reduced=False)
        for _ in range(2)
    )
    torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("loss", [sm.implicit, sm.sliced])
def test_derivative_losses_are_differentiable_and_accept_half_precision(loss):
    # E ‖s‖² + 2∇·s of s = −θx, x ~ N(0, 1), is θ² − 2θ in each dimension: slope 2θ − 2.
    theta = torch.tensor(0.4, requires_grad=True)
    x = torch.randn(50_000, 2).bfloat16()
    each = loss(lambda x: -theta * x, x)
    assert each.dtype == torch.float32 and each.shape == (50_000,)
    each.mean().backward()
    assert float(theta.grad) == pytest.approx(2 * (2 * 0.4 - 2), abs=0.05)
    with torch.no_grad():
        assert not loss(lambda x: -theta * x, x[:4]).requires_grad


@every_process
def test_denoising_loss_is_the_same_for_recycled_scores(process):
    # The time-change law: at equal ρ, s_B(x) = s_A(x/c)/c with c = α_B/α_A, and σ²‖s + ε/σ‖² is one
    # number for both, and so is the floor s²/(s² + ρ²).
    base, t = EDM(), torch.tensor([0.05, 0.3, 0.8], dtype=torch.float64)
    tau = grids.time_of_ratio(process, t)
    x0, eps = torch.randn(2, 3, 4, dtype=torch.float64)
    c = process.alpha(tau)[:, None]

    def score(x):  # any function of the state and of ρ
        return -torch.sin(x) / t[:, None] - x

    ours = sm.denoising(score(perturb(process, tau, x0, eps) / c) / c, eps, process.sigma(tau))
    theirs = sm.denoising(score(perturb(base, t, x0, eps)), eps, t)
    torch.testing.assert_close(process.sigma(tau) ** 2 * ours, t**2 * theirs)
    v = process.alpha(tau) ** 2 * S_SQ + process.sigma(tau) ** 2
    torch.testing.assert_close(process.alpha(tau) ** 2 * S_SQ / v, S_SQ / (S_SQ + t**2))


# --------------------------------------------------------------------------- likelihood


@pytest.mark.parametrize(
    "process",
    quick_ones([VP(), EDM(), RectifiedFlow(), OU(), ContractiveSubVP()], EDM(), RectifiedFlow()),
    ids=lambda p: repr(p)[:9],
)
def test_log_likelihood_of_a_gaussian(process, gaussian):
    # The exact flow is x_T = αm + √(v_T/v_s)(x − α_s m): ln p = ln π(x_T) + D/2 ln(v_T/v_s).
    data, t_end = gaussian(M, S_SQ), 0.01 * process.horizon
    x = torch.tensor([[0.2, -0.5], [1.3, 0.9], [0.7, 2.0]], dtype=torch.float64)
    (mean, v), (mean_end, v_end) = data.law(process, process.horizon), data.law(process, t_end)
    far = mean + math.sqrt(v / v_end) * (x - mean_end)
    prior = torch.distributions.Normal(0.0, process.prior_std)
    exact = (prior.log_prob(far) + 0.5 * math.log(v / v_end)).sum(1)
    errors = []
    for steps in (100, 200):
        if isinstance(process, RectifiedFlow):
            times = grids.uniform(process, steps, t_end, dtype=torch.float64)
        else:
            times = grids.karras(process, steps, t_end=t_end, dtype=torch.float64)
        computed, end = sm.log_likelihood(process, data.field(process), x, times)
        errors.append(float((computed - exact).abs().max()))
    assert errors[1] < 2e-2 and errors[0] / errors[1] == pytest.approx(4, abs=0.5)  # order 2
    torch.testing.assert_close(end, far, rtol=2e-2, atol=2e-2)
    probe = sm.random_directions(x)  # its Jacobian is diagonal, so Hutchinson's trace is exact
    guess, _ = sm.log_likelihood(process, data.field(process), x, times, probe=probe)
    torch.testing.assert_close(guess, computed)


# ------------------------------------------------------------------------------- bounds


def path_kl(process: Process, times: Tensor, noise_errors: Tensor, *, eta: float = 1.0) -> Tensor:
    """KL between the path laws of an exact and an approximate sampler of stochasticity η, scalar.

        ((1+η²)/2η)² ½∫g² E‖ŝ − s‖² dt = ((1+η²)/2η)² ∫ E‖ε̂ − E[ε|x]‖² d ln ρ     (Girsanov)

    `noise_errors` are the mean squared errors of ε̂ at the decreasing `times`, both [N+1]; the
    trapezoid in ln ρ is exact for a constant error. With KL(p_T‖π) it bounds KL(p_0‖p̂_0)
    (arXiv 2101.09258 Thm 1, η = 1), and no η gives less than η = 1.
    """
    depth = torch.log(noise_ratio(process, times))
    return ((1 + eta**2) / (2 * eta)) ** 2 * torch.trapezoid(noise_errors, -depth)


@pytest.mark.parametrize(
    ("eta", "expected"), [(1.0, 0.09583), (0.5, 0.14973), (2.0, 0.14973), (1.5, 0.11246)]
)
def test_path_kl_of_a_constant_noise_error(eta, expected):
    # ((1+η²)/2η)² ln(ρ_T/ρ_0) ‖Δε‖²: VP down to t = 1e-3, Δε = 0.1.
    times = grids.uniform(VP(), 50, 1e-3, dtype=torch.float64)
    computed = path_kl(VP(), times, torch.full_like(times, 0.01), eta=eta)
    assert float(computed) == pytest.approx(expected, abs=6e-6)


def test_the_likelihood_bound_holds_for_a_wrong_score(gaussian):
    # A constant error e of the score moves the mean by s²∫αe dρ²/(s²+ρ²) = 0.0758 for VP, e = 0.1,
    # and leaves the variance: KL(p_0‖p̂_0) is known, and so is √(½ KL)'s total variation.
    process, e = VP(), 0.1
    times = grids.karras(process, 4000, t_end=1e-4, dtype=torch.float64)
    rho, alpha, sigma = noise_ratio(process, times), process.alpha(times), process.sigma(times)
    shift = float(torch.trapezoid(-S_SQ * alpha * e * 2 * rho / (S_SQ + rho**2), rho))
    assert shift == pytest.approx(0.0758, abs=2e-4)
    kl = shift**2 / (2 * S_SQ)
    bound = path_kl(process, times, (e * sigma) ** 2)
    assert float(bound) == pytest.approx(0.5 * e**2 * 10.05, rel=1e-3)  # ½e²∫β
    assert kl < float(bound)
    assert float(path_kl(process, times, (e * sigma) ** 2, eta=1.3)) > float(bound)
    prior = contraction.forgetting_bound(process, second_moment=M**2 + S_SQ)
    apart = math.erf(shift / math.sqrt(S_SQ) / (2 * math.sqrt(2)))  # of two normals
    assert apart < prior + contraction.pinsker(float(bound))


def test_total_variation_bounds_of_the_tutorial():
    # g² = 2 and a score error of ε at any time: ε√(T/2).
    times = grids.uniform(OU(), 4000, 1e-3, dtype=torch.float64)
    path = path_kl(OU(), times, (0.1 * OU().sigma(times)) ** 2)
    assert contraction.pinsker(float(path)) == pytest.approx(0.1 * math.sqrt(5.0 / 2), rel=1e-3)
    # VP's prior: the total variation of N(αm, v) and N(0, 1) by quadrature is below its bound.
    process = VP(0.1, 3.0)
    alpha = float(process.alpha(torch.tensor(1.0)))
    v = alpha**2 * S_SQ + 1 - alpha**2
    x = torch.linspace(-9, 9, 100_001, dtype=torch.float64)
    p, q = (
        torch.distributions.Normal(mean, math.sqrt(var)).log_prob(x).exp()
        for mean, var in ((alpha * M, v), (0.0, 1.0))
    )
    apart = float(torch.trapezoid((p - q).abs(), x)) / 2
    assert 0.1 < apart < contraction.forgetting_bound(process, second_moment=M**2 + S_SQ)
    with pytest.raises(ValueError, match="preserve variance"):
        contraction.forgetting_bound(EDM(), second_moment=1.0)


# ------------------------------------------------------------------------------ weights


@given(st.floats(0.01, 0.99), st.integers(0, 1000))
def test_errors_of_one_network_are_proportional(share, seed):
    # ‖ε̂ − ε‖² = SNR ‖x̂0 − x0‖² = σ²‖ŝ − s‖².
    torch.manual_seed(seed)
    for process in (VP(), RectifiedFlow(), ContractiveSubVP()):
        t = at(process, share)[None]
        x0, eps, output = torch.randn(3, 1, 6, dtype=torch.float64)
        x = perturb(process, t, x0, eps)
        estimate = estimates.read(process, estimates.noise, t, x, output)
        noise = ((output - eps) ** 2).sum(1)
        data = ((estimate.data - x0) ** 2).sum(1)
        score = sm.denoising(-output / process.sigma(t), eps, process.sigma(t))
        torch.testing.assert_close(noise, data / noise_ratio(process, t) ** 2)
        torch.testing.assert_close(noise, process.sigma(t) ** 2 * score)


@pytest.mark.parametrize("process", [VP(), RectifiedFlow(), VE()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("name", w.WEIGHTS)
def test_a_weight_means_the_same_for_every_prediction(process, name):
    weight = w.WEIGHTS[name]
    t = torch.tensor([1e-3, 0.1, 0.5, 0.9, 0.999], dtype=torch.float64)
    x0, eps, off = torch.randn(3, 5, 8, dtype=torch.float64)
    x = perturb(process, t, x0, eps)
    wanted = weight(process, t) * (off**2).sum(1)
    wrong = estimates.read(process, estimates.noise, t, x, eps + off)
    for prediction in map(prediction_named, NAMES):
        if process == VE() and prediction.name == "v_prediction":
            continue  # σ of 50 beside α of 1 leaves v too few digits
        output = target(process, prediction, t, wrong.data, wrong.noise)
        error = ((output - target(process, prediction, t, x0, eps)) ** 2).sum(1)
        computed = w.on_output(weight, process, prediction, t) * error
        torch.testing.assert_close(computed, wanted, rtol=1e-6, atol=0)


def test_weights_of_the_papers():
    process, t = VP(), torch.tensor([0.01, 0.2, 0.6], dtype=torch.float64)
    rho, alpha, sigma = noise_ratio(process, t), process.alpha(t), process.sigma(t)
    on_data = {name: weight(process, t) / rho**2 for name, weight in w.WEIGHTS.items()}
    snr = 1 / rho**2
    torch.testing.assert_close(on_data["noise"], snr)
    torch.testing.assert_close(on_data["data"], torch.ones_like(t))
    torch.testing.assert_close(on_data["v"], snr + 1)
    torch.testing.assert_close(on_data["min_snr"], snr.clamp(max=5))
    torch.testing.assert_close(on_data["edm"], (rho**2 + 0.25) / (0.5 * rho) ** 2)
    score = w.likelihood(process, t) * sigma**2  # on ‖ŝ − s‖²
    torch.testing.assert_close(score, diffusion_sq(process, t))
    turn = process.sde(t)[1] * alpha / (2 * sigma)  # u = φ'v, φ' = −α'/σ = βα/(2σ)
    torch.testing.assert_close(on_data["velocity"], turn**2 * (snr + 1))
    flow = w.WEIGHTS["velocity"](RectifiedFlow(), t)
    torch.testing.assert_close(flow, 1 / (1 - t) ** 2)
    # EDM's network F has effective weight 1: the weight is 1/c_out².
    torch.testing.assert_close(on_data["edm"], (rho**2 + 0.25) / (0.25 * rho**2))


@pytest.mark.parametrize("name", w.WEIGHTS)
def test_weights_on_a_velocity_are_finite_without_signal(name):
    # In float32, at rectified flow's t = 1 and near it: both w and κ are infinite, w/κ² is not.
    t = torch.tensor([1 - 1e-3, 1 - 1e-7, 1.0])
    computed = w.on_output(w.WEIGHTS[name], RectifiedFlow(), estimates.velocity, t)
    exact = {
        "noise": (1 - t) ** 2,
        "data": t**2,
        "v": ((1 - t) ** 2 + t**2) ** 2,
        "velocity": torch.ones(3),
        "likelihood": 2 * (1 - t) / t,
        "edm": (1 - t) ** 2 + 4 * t**2,
        "min_snr": (1 - t) ** 2,
    }[name]
    torch.testing.assert_close(computed, exact, rtol=1e-5, atol=3e-6)
    noise = w.on_output(w.WEIGHTS["noise"], RectifiedFlow(), estimates.noise, t)
    torch.testing.assert_close(noise, torch.ones(3))


@pytest.mark.parametrize("make", [w.EDMWeight, w.MinSNR, lambda x: w.LogNormal(0, x)])
def test_constants_are_checked(make):
    for value in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="finite and > 0"):
            make(value)


# ------------------------------------------------------------------------ laws of times


def shares(count: int) -> Tensor:
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


@every_process
@pytest.mark.parametrize("name", w.TIMES)
def test_times_increase_with_the_share_and_stay_inside(process, name):
    law, t_min = w.TIMES[name], 1e-3 * process.horizon
    share = torch.cat([torch.zeros(1), torch.rand(200).sort()[0], torch.tensor([1 - 2**-24])])
    if name == "importance" and isinstance(process, RectifiedFlow):
        with pytest.raises(ValueError, match="use uniform"):
            law(process, share, t_min)
        return
    t, factor = law(process, share, t_min)
    assert t.dtype == factor.dtype == torch.float32
    assert bool((t.diff() >= 0).all()) and bool(torch.isfinite(factor).all())
    assert float(t[0]) == pytest.approx(t_min, rel=0.05)  # a tail may be 8 deviations away
    assert float(t.min()) >= t_min * (1 - 1e-6) and float(t.max()) <= process.horizon


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_importance_keeps_the_expectation(process):
    t_min = 1e-2 * process.horizon
    t, factor = w.importance(process, shares(20_000), t_min)
    plain, _ = w.uniform(process, shares(200_000), t_min)
    for function in (torch.ones_like, torch.cos, lambda t: w.likelihood(process, t)):
        wanted = float(function(plain).mean())
        assert float((factor * function(t)).mean()) == pytest.approx(wanted, rel=1e-3, abs=1e-4)
    constant = factor * w.likelihood(process, t)  # every time counts alike
    ends = noise_ratio(process, torch.tensor([t_min, process.horizon], dtype=torch.float64))
    span = 2 * float(torch.log(ends[1] / ends[0])) / (process.horizon - t_min)
    torch.testing.assert_close(constant, torch.full_like(t, span))


@pytest.mark.parametrize(
    ("t_min", "spread"),
    [
        (1e-5, {"noise": 3.14, "likelihood": 45.7, "plain": 81.0, "importance": 2.08}),
        (1e-3, {"likelihood": 8.7, "plain": 18.5, "importance": 2.34}),
        (1e-2, {"likelihood": 5.4, "plain": 9.4, "importance": 2.65}),
    ],
)
def test_spread_of_the_loss_at_the_optimum(t_min, spread):
    # There the error of ε is N(0, floor): moments 1 and 3 of its square, and t by quadrature that
    # is dense near 0.
    process, share = VP(), shares(200_000)

    def moments(weight, t, factor):
        floor = process.alpha(t) ** 2 * S_SQ
        floor = floor / (floor + process.sigma(t) ** 2)
        return weight * floor, factor

    dense = t_min * torch.exp(share * math.log(1 / t_min))
    density = dense * math.log(1 / t_min) / (1 - t_min)
    weights = {
        "noise": torch.ones_like(dense),
        "likelihood": w.likelihood(process, dense),
        "plain": 1 / process.sigma(dense) ** 2,
    }
    t, factor = w.importance(process, share, t_min)
    cases = {name: moments(weight, dense, density) for name, weight in weights.items()}
    cases["importance"] = moments(factor * w.likelihood(process, t), t, torch.ones_like(t))
    means = {name: float((loss * mass).mean()) for name, (loss, mass) in cases.items()}
    for name, expected in spread.items():
        loss, mass = cases[name]
        computed = math.sqrt(float((3 * loss**2 * mass).mean()) / means[name] ** 2 - 1)
        assert computed == pytest.approx(expected, rel=0.1), name
    assert means["importance"] == pytest.approx(means["likelihood"], rel=1e-4)  # unbiased


def test_lognormal_and_logit_normal_have_their_moments():
    share = shares(100_000)
    t, _ = w.LogNormal()(EDM(), share, 1e-4)
    assert float(torch.log(t).mean()) == pytest.approx(-1.2, abs=1e-3)
    assert float(torch.log(t).std()) == pytest.approx(1.2, abs=1e-3)
    vp, _ = w.LogNormal()(VP(), share, 1e-5)  # the same law of ρ, cut at ρ = 0.0011
    assert float(torch.log(noise_ratio(VP(), vp)).mean()) == pytest.approx(-1.2, abs=1e-2)
    t, _ = w.LogitNormal(0.5, 0.8)(RectifiedFlow(), share, 1e-9)
    assert float(torch.logit(t).mean()) == pytest.approx(0.5, abs=1e-3)
    assert float(torch.logit(t).std()) == pytest.approx(0.8, abs=1e-3)
    high, _ = w.LogNormal(mean=3.0)(EDM(), share, 30.0)  # cut on the left: nothing piles up there
    assert float((high < 30.01).double().mean()) < 1e-3
