"""One network under many processes: densities, scores and samplers agree (arXiv 2401.13115)."""

from functools import partial
from itertools import pairwise

import pytest
import torch

from scoretune.diffusion.estimates import Estimate
from scoretune.diffusion.grids import karras
from scoretune.diffusion.kernels import GDDIM, Constant, EulerMaruyama
from scoretune.diffusion.processes import (
    EDM,
    VE,
    VP,
    ContractiveSubVP,
    ContractiveVP,
    Cosine,
    RectifiedFlow,
    SubVP,
    Tabulated,
    diffusion_sq,
    expand,
    noise_ratio,
    score,
    time_of_ratio,
)
from scoretune.diffusion.recycling import check_recyclable, matched, recycled
from scoretune.diffusion.solvers import ddim, dpmpp_2m, heun
from scoretune.rl.tilt import Mixture

F64 = torch.float64
LAW = Mixture.of([0.3, 0.7], [[-1.0, 0.5], [1.0, -0.2]], 0.04)
TARGETS = [
    ContractiveSubVP(),
    VP(0.1, 7.0),
    SubVP(0.1, 7.0),
    EDM(40.0),
    ContractiveVP(),
    RectifiedFlow(0.95),
]


def exact(process):
    """E[x0 | x] and E[ε | x] of the mixture under a process."""

    def field(x, t):
        alpha, sigma = process.alpha(t), process.sigma(t)
        data = LAW.posterior(x, alpha, sigma).mean
        return Estimate(data, (x - expand(alpha, x) * data) / expand(sigma, x))

    return field


def log_density(process, x, t):
    return LAW.diffused(process.alpha(t), process.sigma(t)).log_density(x)


def test_clock_of_the_paper():
    # arXiv 2401.13115 Thm 4: τ = ln(1 + g²/σ_min²)/(2 ln(σ_max/σ_min)), c = e^{B/2}.
    base, process = VE(0.01, 50), ContractiveSubVP(0.01, 8)
    t = torch.tensor([0.1, 0.5, 1.0], dtype=F64)
    tau, c = matched(base, process, t)
    assert tau.tolist() == pytest.approx([0.168928, 0.546024, 0.773644], abs=5e-7)
    torch.testing.assert_close(c, process.alpha(t))
    g = 2 * torch.sinh(process.log_decay(t) / 2)
    closed = torch.log1p((g / 0.01) ** 2) / (2 * torch.log(torch.tensor(5000.0, dtype=F64)))
    torch.testing.assert_close(tau, closed)


@pytest.mark.parametrize("process", TARGETS, ids=repr)
def test_densities_and_scores_of_a_mixture(process):
    # p_B(t, x) = c^{−d} p_A(τ, x/c), and the score has the factor 1/c.
    base, d = VE(0.01, 50), 2
    generator = torch.Generator().manual_seed(1)
    t = process.horizon * (0.05 + 0.9 * torch.rand(64, generator=generator, dtype=F64))
    x = 3 * torch.randn(64, d, generator=generator, dtype=F64)
    tau, c = matched(base, process, t)
    theirs = log_density(base, x / c[:, None], tau) - d * torch.log(c)
    torch.testing.assert_close(log_density(process, x, t), theirs, rtol=0, atol=1e-10)
    estimate = recycled(exact(base), base, process)(x, t)
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(log_density(process, leaf, t).sum(), leaf)
    torch.testing.assert_close(score(process, estimate, t), slope, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(
        score(process, estimate, t),
        score(base, exact(base)(x / c[:, None], tau), tau) / c[:, None],
        rtol=1e-10,
        atol=1e-10,
    )


@pytest.mark.parametrize("process", TARGETS, ids=repr)
@pytest.mark.parametrize("solver", [ddim, partial(dpmpp_2m, lower_order_final=False)])
def test_samplers_in_the_noise_ratio_cannot_tell(process, solver):
    # x/α is the same to rounding on the same grid of ρ.
    base = VE(0.01, 50)
    ratios = noise_ratio(process, karras(process, 12, t_end=0.02 * process.horizon, dtype=F64))
    times, theirs = time_of_ratio(process, ratios), time_of_ratio(base, ratios)
    noise = torch.randn(32, 2, dtype=F64)
    start = process.alpha(times[0]), base.alpha(theirs[0])
    x = solver(process, recycled(exact(base), base, process), start[0] * noise, times)
    y = solver(base, exact(base), start[1] * noise, theirs)
    gap = x / process.alpha(times[-1]) - y / base.alpha(theirs[-1])
    assert float(gap.abs().max()) < 1e-10


def test_samplers_in_native_time_can():
    base, process = VE(0.01, 50), ContractiveSubVP()
    ratios = noise_ratio(process, karras(process, 12, t_end=0.02, dtype=F64))
    times, theirs = time_of_ratio(process, ratios), time_of_ratio(base, ratios)
    noise = torch.randn(32, 2, dtype=F64)
    x = heun(process, recycled(exact(base), base, process), process.alpha(times[0]) * noise, times)
    y = heun(base, exact(base), noise, theirs)
    assert float((x / process.alpha(times[-1]) - y).abs().max()) > 1e-3


def test_a_kernel_step_of_gddim_is_the_same_step():
    base, process = Cosine(), ContractiveSubVP()
    times = torch.tensor([0.8, 0.6], dtype=F64)
    tau, c = matched(base, process, times)
    x = torch.randn(1, 5, dtype=F64)
    estimate = Estimate(torch.randn(1, 5, dtype=F64), torch.randn(1, 5, dtype=F64))
    ours = GDDIM(1.3)(process, x, estimate, times[:1], times[1:])
    same = GDDIM(1.3)(base, x / c[0], estimate, tau[:1], tau[1:])
    torch.testing.assert_close(ours.mean, same.mean * c[1])
    torch.testing.assert_close(ours.std, same.std * c[1])
    other = EulerMaruyama(Constant(1.3))
    native = other(process, x, estimate, times[:1], times[1:]).std / c[1]
    assert float((native - other(base, x / c[0], estimate, tau[:1], tau[1:]).std).abs()) > 1e-3


def test_noise_per_ratio_is_the_process_s_own():
    # dρ²/dt = g²/α² for every process: what makes them one.
    for process in TARGETS:
        t = process.horizon * torch.linspace(0.1, 0.9, 9, dtype=F64)
        h = 1e-6 * process.horizon
        slope = (noise_ratio(process, t + h) ** 2 - noise_ratio(process, t - h) ** 2) / (2 * h)
        torch.testing.assert_close(
            diffusion_sq(process, t) / process.alpha(t) ** 2, slope, rtol=1e-6, atol=1e-8
        )


@pytest.mark.parametrize(
    ("base", "process", "trained", "wanted"),
    [
        (Tabulated.scaled_linear(), VE(), "14.6146", "50"),
        (ContractiveVP(), ContractiveSubVP(), "0.990846", "7.27255"),
        (VP(), RectifiedFlow(), "152.167", "inf"),
    ],
)
def test_a_network_is_not_called_beyond_its_noise(base, process, trained, wanted):
    with pytest.raises(ValueError) as error:
        check_recyclable(base, process)
    message = str(error.value)
    assert f"knows noise up to σ/α = {trained}" in message
    assert f"starts from {wanted}: choose constants" in message
    assert "\n" not in message


def test_every_process_can_stand_in_for_itself(process):
    check_recyclable(process, process)
    t = process.horizon * torch.linspace(0.1, 0.9, 5, dtype=F64)
    tau, c = matched(process, process, t)
    torch.testing.assert_close(tau, t)
    torch.testing.assert_close(c, torch.ones_like(c))
    for a, b in pairwise(tau):
        assert b > a
