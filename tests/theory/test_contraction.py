"""What samplers forget, carry and are bound by, against closed forms and simulation."""

from __future__ import annotations

import math

import pytest
import torch

from scoretune.commands.reproduce import contractive_point, contractive_theory, tutorial_processes
from scoretune.diffusion import grids
from scoretune.diffusion.kernels import Constant, EulerMaruyama
from scoretune.diffusion.processes import (
    EDM,
    OU,
    VE,
    VP,
    ContractiveOU,
    ContractiveSubVP,
    ContractiveVP,
    RectifiedFlow,
    SubVP,
    noise_ratio,
)
from scoretune.diffusion.recycling import matched
from scoretune.diffusion.solvers.stochastic import euler_maruyama
from scoretune.diffusion.theory import contraction, gaussian
from slow_cases import quick_ones

F64 = torch.float64
PROCESSES = {
    "OU": OU(1.0, math.sqrt(2), 5.0),
    "VP": VP(),
    "sub-VP": SubVP(),
    "VE": VE(),
    "EDM": EDM(),
    "COU": ContractiveOU(1.0, math.sqrt(2), 5.0),
    "COU10": ContractiveOU(1.0, 10.0, 3.0),
    "CVP": ContractiveVP(0.01, 8.0),
    "CsubVP": ContractiveSubVP(0.01, 8.0),
    "CsubVP1": ContractiveSubVP(1.0, 8.0),
}
everywhere = pytest.mark.parametrize("name", list(PROCESSES))

ARRIVALS = {  # (mean, std) at t = 0 of N(1, ¼) from the prior, η = 0, ½, 1, 1.5, 2
    "VP": [(0.996714, 0.500008), (0.999213, 0.5), (0.999989, 0.5), (1, 0.5), (1, 0.5)],
    "sub-VP": [(0.996714, 0.500019), (0.999213, 0.500001), (0.999989, 0.5), (1, 0.5), (1, 0.5)],
    "VE": [(0.990000, 0.499975), (0.996838, 0.499998), (0.999900, 0.5), (1, 0.5), (1, 0.5)],
    "EDM": [(0.993750, 0.499990), (0.998243, 0.499999), (0.999961, 0.5), (1, 0.5), (1, 0.5)],
    "COU10": [
        (0.929378, 0.498752),
        (0.963594, 0.499669),
        (0.995013, 0.499994),
        (0.999818, 0.5),
        (0.999998, 0.5),
    ],
    "CVP": [
        (0.549490, 0.446386),
        (0.630912, 0.464697),
        (0.797041, 0.489594),
        (0.925090, 0.498595),
        (0.981442, 0.499914),
    ],
    "CsubVP": [
        (0.931410, 0.498822),
        (0.964899, 0.499692),
        (0.995295, 0.499994),
        (0.999835, 0.5),
        (0.999998, 0.5),
    ],
    "CsubVP1": [
        (0.946784, 0.499292),
        (0.974440, 0.499837),
        (0.997168, 0.499998),
        (0.999928, 0.5),
        (1, 0.5),
    ],
}
ETAS = (0.0, 0.5, 1.0, 1.5, 2.0)


@pytest.mark.parametrize("name", ARRIVALS)
def test_where_the_reverse_dynamics_arrive_golden(name):
    for eta, (mean, std) in zip(ETAS, ARRIVALS[name], strict=True):
        computed = gaussian.arrival(PROCESSES[name], mean=1.0, variance=0.25, eta=eta)
        assert computed[0] == pytest.approx(mean, abs=6e-7)
        assert math.sqrt(computed[1]) == pytest.approx(std, abs=6e-7)


@everywhere
@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0, 2.0])
def test_transitions_keep_the_marginals_and_compose(name, eta):
    process, law = PROCESSES[name], {"mean": 1.0, "variance": 0.25, "eta": eta}
    t = torch.tensor([0.9, 0.4, 0.1], dtype=F64)[:, None] * process.horizon
    x = torch.tensor([[0.3], [-1.2]], dtype=F64)

    def moments(now, then, at):
        step = gaussian.transition(process, at, now.expand(2), then.expand(2), **law)
        return step.mean, step.std

    mean, std = moments(t[0], t[1], process.alpha(t[0]) * torch.ones(2, 1, dtype=F64))
    assert torch.allclose(mean, process.alpha(t[1]).expand(2, 1))  # the mean stays αm
    ends = torch.tensor([[0.0], [1.0]], dtype=F64)
    slope = moments(t[0], t[1], ends)[0].diff(dim=0)
    v = gaussian.state_variance(process, t, 0.25)
    assert float(slope**2 * v[0] + std[0] ** 2) == pytest.approx(float(v[1]), rel=1e-10)
    middle, spread = moments(t[0], t[1], x)
    two, last = moments(t[1], t[2], middle)
    direct, whole = moments(t[0], t[2], x)
    assert torch.allclose(two, direct, rtol=1e-10, atol=1e-12)
    carried = moments(t[1], t[2], ends)[0].diff(dim=0) ** 2 * spread**2 + last**2
    assert torch.allclose(carried, whole**2, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("name", quick_ones(PROCESSES, "OU", "VP", "VE", "CsubVP"))
def test_moments_of_the_sde_are_the_closed_form(name):
    process = PROCESSES[name]
    for eta in (0.0, 1.0):
        coarse, fine = (tutorial_processes.moments(process, eta, steps) for steps in (100, 200))
        assert fine < 2e-4
        assert fine < coarse / 8 or fine < 1e-9  # of order 4


@pytest.mark.parametrize("name", ["VP", "VE", "CsubVP"])
def test_a_point_is_the_limit_of_gaussian_data(name):
    process, t, t_next = PROCESSES[name], torch.tensor([0.8], dtype=F64), torch.tensor([0.3])
    x = torch.tensor([[0.4]], dtype=F64)
    law = {"mean": 0.5, "variance": 1e-14, "eta": 1.3}
    computed = gaussian.transition(process, x, t, t_next.double(), **law)
    kept = (noise_ratio(process, t_next.double()) / noise_ratio(process, t)) ** (1.3**2)
    alpha, sigma = process.alpha(t), process.sigma(t)
    after = process.alpha(t_next.double()), process.sigma(t_next.double())
    noise = (x - alpha * 0.5) / sigma
    assert torch.allclose(computed.mean, after[0] * 0.5 + after[1] * kept * noise, rtol=1e-6)
    assert torch.allclose(computed.std, after[1] * torch.sqrt(1 - kept**2), rtol=1e-6)


# ---------------------------------------------------------------- contraction and amplification

AMPLIFIED = {  # data variance 1: score η = 0, 1; noise η = 0, 1; bias η = 0, 1
    "OU": (5.00, 1.99, 5.69, 3.13, 0.0067, 4.5e-5),
    "VP": (5.03, 1.99, 5.72, 3.13, 0.0066, 4.3e-5),
    "sub-VP": (4.89, 1.84, 5.72, 3.13, 0.0066, 4.3e-5),
    "VE": (49.0, 7.82, 4.61, 3.10, 0.020, 4e-4),
    "COU": (0.784, 1.245, 0.881, 1.571, 0.707, 0.5),
    "CVP": (0.690, 1.11, 0.875, 1.56, 0.710, 0.505),
    "CsubVP": (27.2, 13.3, 2.68, 2.87, 0.136, 0.0186),
}
QUARTER = {
    "OU": (2.645, 0.757, 3.19, 1.567),
    "VP": (2.656, 0.757, 3.206, 1.568),
    "sub-VP": (2.576, 0.692, 3.206, 1.568),
    "VE": (24.75, 2.303, 2.649, 1.561),
    "CVP": (0.493, 0.591, 0.718, 1.103),
    "CsubVP": (14.10, 3.888, 1.686, 1.502),
    "CsubVP1": (23.00, 4.954, 1.813, 1.518),
}


@pytest.mark.parametrize(("variance", "table"), [(1.0, AMPLIFIED), (0.25, QUARTER)])
def test_amplification_golden(variance, table):
    for name, expected in table.items():
        process = PROCESSES[name]
        computed = [
            contraction.amplification(process, variance=variance, eta=eta, of=of)
            for of in ("score", "noise")
            for eta in (0.0, 1.0)
        ]
        biases = [contraction.initial_bias(process, variance=variance, eta=e) for e in (0.0, 1.0)]
        for one, other in zip([*computed, *biases], expected, strict=False):
            assert one == pytest.approx(other, rel=0.012)


@everywhere
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_an_error_of_the_noise_knows_only_the_last_ratio(name, eta):
    process = PROCESSES[name]
    ratio = float(noise_ratio(process, torch.tensor(process.horizon, dtype=F64)))
    computed = contraction.amplification(process, variance=0.3, eta=eta, of="noise")
    closed = contraction.noise_amplification(ratio, variance=0.3, eta=eta)
    assert computed == pytest.approx(closed, rel=1e-9)


def test_without_a_limit_to_the_noise_golden():
    wanted = {0.5: 5.818, 0.7: 3.970, 1.0: math.pi, 1.2: 3.0016, 1.305: 2.9871, 2.0: 3.333}
    for eta, value in wanted.items():
        computed = contraction.noise_amplification(math.inf, variance=1.0, eta=eta)
        assert computed == pytest.approx(value, abs=6e-4)
    with pytest.raises(ValueError, match="no closed form"):
        contraction.noise_amplification(3.0, variance=1.0, eta=0.5)
    with pytest.raises(ValueError, match="finite"):
        contraction.amplification(RectifiedFlow(), variance=1.0, eta=1.0)


def test_ve_has_a_closed_form():
    for variance in (0.1, 1.0, 4.0):
        computed = contraction.amplification(VE(), variance=variance, eta=1.0)
        closed = variance * math.log1p(VE().prior_std ** 2 / variance)
        assert computed == pytest.approx(closed, rel=1e-8)


@everywhere
@pytest.mark.parametrize("eta", [0.0, 1.0, 1.7])
def test_memory_is_what_the_rate_integrates_to(name, eta):
    process = PROCESSES[name]
    t = process.horizon * torch.linspace(1e-3, 0.9, 20_001, dtype=F64)
    rate = contraction.rate(process, t, 1 / gaussian.state_variance(process, t, 0.5), eta=eta)
    memory = contraction.memory(process, t, variance=0.5, eta=eta)
    whole = torch.trapezoid(rate, t)
    assert float(torch.log(memory[0] / memory[-1])) == pytest.approx(float(whole), rel=1e-4)


@pytest.mark.parametrize("name", [n for n in contractive_theory.PROCESSES if n != "VE(.01, 50)"])
def test_a_wrong_score_moves_samples_as_predicted(name):
    process = contractive_theory.PROCESSES[name]
    computed = contractive_theory.simulated(process, 0.25, 0.1, 3000)
    predicted = 0.1 * contraction.amplification(process, variance=0.25, eta=1.0)
    assert computed == pytest.approx(predicted, rel=0.02)


def test_a_wrong_score_under_vp_golden():
    computed = contractive_theory.simulated(VP(), 0.25, 0.1, 6000)
    assert computed == pytest.approx(0.0758, abs=2e-4)


# ---------------------------------------------------------------------------------- bounds


def test_theorem_1_golden():
    computed = contractive_theory.bounds([1.0, 2.0, 4.0])
    bounds = {name: [row["bound"] for row in rows] for name, rows in computed.items()}
    actual = {name: [row["actual"] for row in rows] for name, rows in computed.items()}
    assert bounds["OU"] == pytest.approx([7.56, 58.9, 21606], rel=2e-3)
    assert bounds["COU"] == pytest.approx([2.04, 2.59, 4.24], rel=2e-3)
    assert actual["OU"] == pytest.approx([0.326, 0.197, 0.350], abs=6e-4)
    assert actual["COU"] == pytest.approx([1.20, 1.15, 1.14], abs=6e-3)
    for rows in computed.values():
        assert all(row["actual"] < row["sharper"] <= row["bound"] for row in rows)


@pytest.mark.parametrize("error", [0.0, 0.05, 0.3])
@everywhere
def test_bounds_are_bounds(name, error):
    process = PROCESSES[name]
    last = torch.tensor(process.horizon, dtype=F64)
    there = float(process.alpha(last)), float(gaussian.state_variance(process, last, 0.5))
    start = gaussian.wasserstein(there, (0.0, process.prior_std**2))
    bound = contraction.wasserstein_bound(
        process, initial_error=start, score_error=error, variance=0.5
    )
    shift = error * contraction.amplification(process, variance=0.5, eta=1.0)
    mean, variance = gaussian.arrival(process, mean=1.0, variance=0.5, eta=1.0)
    for sign in (1, -1):
        assert gaussian.wasserstein((mean + sign * shift, variance), (1.0, 0.5)) <= bound
    if name == "CVP":
        concave = contraction.log_concave_bound(concavity=2.0, second_moment=1.5, score_error=error)
        assert abs(mean + shift - 1.0) <= concave


def test_the_papers_own_term_where_g_squared_is_2():
    for horizon in (1.0, 4.0):
        process = OU(1.0, math.sqrt(2), horizon)
        computed = contraction.total_variation_bound(process, initial=0.1, score_error=0.2)
        assert computed == pytest.approx(0.1 + 0.2 * math.sqrt(horizon / 2), rel=1e-9)
    assert contraction.forgetting_bound(VP(), second_moment=2.0) == pytest.approx(0.00657159)


# ---------------------------------------------------------------------------- the experiments


@pytest.mark.parametrize(("error", "low", "high"), [(1.0, 0.16, 0.21), (0.5, 0.17, 0.22)])
def test_a_point_and_a_wrong_score(error, low, high):
    for horizon, column in ((1.0, 0), (5.0, 1)):
        computed = {}
        for process in ("OU", "COU"):
            runs = [
                contractive_point.distance(process, error, horizon, seed=seed, n=4000)
                for seed in range(2)
            ]
            computed[process] = sum(runs) / len(runs)
            wanted = contractive_point.REFERENCE[error][process][column]
            assert computed[process] == pytest.approx(wanted, abs=0.02)
        assert low < computed["OU"] - computed["COU"] < high


def test_steps_of_contractive_ou_are_not_free_of_the_horizon():
    """Data N(.5, 4), θ = σ̄ = 1, step 0.02: the error grows in proportion to T, OU's does not."""
    from scoretune.commands.reproduce.tutorial_convergence import by_step

    computed = by_step([1.0, 2.0, 4.0, 8.0])
    contractive = [row[0] for row in computed["COU"]]
    assert contractive == pytest.approx([0.0173, 0.0354, 0.0713, 0.1407], abs=1e-4)
    assert [row[0] for row in computed["OU"]][2:] == pytest.approx([0.0218, 0.0218], abs=1e-4)


def test_a_ve_network_for_contractive_sub_vp_golden():
    t = torch.tensor([0.1, 0.5, 1.0], dtype=F64)
    tau, c = matched(VE(), ContractiveSubVP(), t)
    assert tau.tolist() == pytest.approx([0.168928, 0.546024, 0.773644], abs=1e-6)
    assert c.tolist() == pytest.approx(ContractiveSubVP().alpha(t).tolist())


def test_euler_maruyama_finds_the_closed_form():
    process, law = ContractiveVP(0.01, 8.0), {"mean": 1.0, "variance": 0.25}
    field, means = gaussian.exact(process, **law), []
    times = grids.uniform(process, 200, 1e-4, dtype=F64)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        x = process.prior_std * torch.randn(20_000, 1, generator=generator)
        x = euler_maruyama(process, field, x, times, eta=1.0, generator=generator)
        means.append(float(x.mean()))
    assert sum(means) / 3 == pytest.approx(0.797041, abs=0.01)


def test_the_exact_field_is_the_score():
    process, x = SubVP(), torch.linspace(-3, 3, 7, dtype=F64)[:, None]
    t = torch.full((7,), 0.4, dtype=F64)
    estimate = gaussian.exact(process, mean=0.3, variance=0.6)(x, t)
    score = -estimate.noise[:, 0] / process.sigma(t)
    v = gaussian.state_variance(process, t, 0.6)
    assert torch.allclose(score, -(x[:, 0] - process.alpha(t) * 0.3) / v)
    mixed = process.alpha(t)[:, None] * estimate.data + process.sigma(t)[:, None] * estimate.noise
    assert torch.allclose(mixed, x)
    step = EulerMaruyama(Constant(1.0))(process, x, estimate, t, t - 1e-6)
    law = {"mean": 0.3, "variance": 0.6, "eta": 1.0}
    exact = gaussian.transition(process, x, t, t - 1e-6, **law)
    assert torch.allclose(step.mean, exact.mean, atol=1e-9)
    assert torch.allclose(step.std, exact.std, rtol=1e-4)
