"""Sums along a path: nodes in their strata, weights that add up, a path KL no grid can change."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from scoretune.commands.reproduce import units
from scoretune.commands.reproduce.units import CHANGES, COUNTS, GRIDS, S0, THETA, continuous, kls
from scoretune.diffusion import grids
from scoretune.diffusion.estimates import Estimate
from scoretune.diffusion.kernels import (
    CPS,
    GDDIM,
    Constant,
    DanceSDE,
    EulerMaruyama,
    FlowSDE,
    Memoryless,
    Posterior,
    Renoise,
    Still,
    response,
    stochasticity,
)
from scoretune.diffusion.paths import angle, girsanov_weights, jittered, kl_factor, log_snr_steps
from scoretune.diffusion.processes import (
    VP,
    Process,
    RectifiedFlow,
    Tabulated,
    diffusion_sq,
    log_snr,
)
from slow_cases import slow

F64 = torch.float64
PAIRS = [(units.PROCESSES[process], grid) for process, grid in units.PAIRS]
every_grid = pytest.mark.parametrize(
    ("process", "grid"), PAIRS, ids=[f"{type(p).__name__}-{g}" for p, g in PAIRS]
)


# ---------------------------------------------------------------------------- where nodes lie


@every_grid
def test_jittered_nodes_lie_in_their_strata(process, grid, case):
    for n in (2, 3, 8):
        with case(n):
            times = GRIDS[grid](process, n, t_end=1e-3, dtype=F64)
            nodes = jittered(process, times, 300)
            assert nodes.shape == (n + 1, 300)
            assert nodes.dtype == times.dtype
            assert torch.equal(nodes[0], times[:1].expand(300))
            assert torch.equal(nodes[-1], times[-1:].expand(300))
            assert bool((nodes.diff(dim=0) < 0).all())
            phi, at = angle(process, times), angle(process, nodes)
            for k in range(1, n):
                high = phi[0] if k == 1 else (phi[k - 1] + phi[k]) / 2
                low = phi[-1] if k == n - 1 else (phi[k] + phi[k + 1]) / 2
                assert bool(((at[k] < high) & (at[k] > low)).all())
                share = (at[k] - low) / (high - low)  # uniform: mean ½ and deviation 1/√12
                assert float(share.mean()) == pytest.approx(0.5, abs=4 / 12**0.5 / 300**0.5)
                assert float(share.std()) == pytest.approx(12**-0.5, rel=0.15)


def test_one_step_has_nothing_to_jitter():
    times = grids.uniform(VP(), 1)
    nodes = jittered(VP(), times, 4)
    assert torch.equal(nodes, times[:, None].expand(2, 4))
    assert torch.equal(log_snr_steps(VP(), times, nodes), torch.zeros(1, 4))


def test_jitter_is_of_the_generator_and_of_each_sample():
    times = grids.karras(VP(), 6)
    one, same, other = (
        jittered(VP(), times, 50, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert len(one[3].unique()) == 50


def test_strict_order_even_for_a_long_fine_grid():
    """In float32, where neighbours of 500 nodes are close."""
    for process, grid in PAIRS:
        nodes = jittered(process, GRIDS[grid](process, 500, t_end=1e-3), 40)
        assert bool((nodes.diff(dim=0) < 0).all())


# ---------------------------------------------------------------------------- weights


@every_grid
def test_log_snr_steps_add_up_to_the_span(process, grid):
    # The stratum next to the data spans a ratio of σ's that only a fine grid resolves.
    times = GRIDS[grid](process, 4000, t_end=0.05, dtype=F64)
    nodes = times[:, None]
    t, steps = times[1:-1], log_snr_steps(process, times, nodes)[:, 0]
    assert float(steps[0]) == 0
    known = t <= 0.9 * process.horizon  # the log-SNR of rectified flow is −∞ at its horizon
    ends = torch.stack([(t[known][0] + times[:-2][known][0]) / 2, times[-1]])
    span = log_snr(process, ends)
    assert float(steps[1:][known].sum()) == pytest.approx(float(span[1] - span[0]), rel=2e-3)


def test_log_snr_steps_are_unbiased():
    """Three jittered nodes know the whole span, on average."""
    process, times = VP(), torch.tensor([1.0, 0.7, 0.4, 0.2, 0.1], dtype=F64)
    found = log_snr_steps(process, times, jittered(process, times, 40_000)).sum(0)
    span = log_snr(process, times[[0, -1]])
    assert float(found.mean()) == pytest.approx(
        float(span[1] - span[0]), abs=4 * float(found.std()) / 200
    )
    assert float(found.std()) / 200 < 0.05


def test_kl_factor_golden_and_limits():
    eta = torch.tensor([1.0, 0.5, 2.0, 1e-3, 0.0])
    factor = kl_factor(eta)
    # ((1 + ¼)/1)², symmetric in η ↔ 1/η, and 1/(4η²) for small η.
    golden = torch.tensor([1.0, 1.5625, 1.5625, 2.5e5, 1.0])
    torch.testing.assert_close(factor, golden, rtol=1e-5, atol=0)
    assert torch.isfinite(factor).all()
    assert float(kl_factor(torch.linspace(0.1, 3, 200)).min()) >= 1.0  # least at η = 1


def test_kl_weights_golden():
    # ½ · 1.5625 · (4/3)² · 0.3 for σ/α = ¾, η = ½, Δℓ = .3.
    t, eta = torch.tensor([0.6 / 1.4]), torch.tensor([0.5])  # where rectified flow has σ/α = ¾
    weight = girsanov_weights(RectifiedFlow(), t, eta, torch.tensor([0.3]))
    assert float(weight) == pytest.approx(0.5 * 1.5625 * (4 / 3) ** 2 * 0.3)


def test_a_kl_weight_is_the_kl_of_a_short_step():
    """w‖Δx̂‖² is what the transition of a kernel says of a small step, for every η."""
    process, x = VP(), torch.randn(4, 3, dtype=F64)
    t = torch.tensor([0.1, 0.3, 0.6, 0.9], dtype=F64)
    t_next = t - 1e-5
    step = log_snr(process, t_next) - log_snr(process, t)
    change = torch.randn(4, 3, dtype=F64)
    for eta in (0.5, 1.0, 2.0):
        for kernel in (GDDIM(eta), EulerMaruyama(Constant(eta)), Renoise(Posterior(eta))):
            laws = [
                kernel(process, x, estimate_of(process, x, t, data), t, t_next)
                for data in (torch.zeros_like(x), change)
            ]
            found = laws[1].kl(laws[0])
            weight = girsanov_weights(process, t, stochasticity(kernel, process, t, t_next), step)
            torch.testing.assert_close(found, weight * (change**2).sum(1), rtol=1e-3, atol=0)


def test_a_step_that_forgets_the_state_weighs_what_its_own_kl_does():
    process, x = VP(), torch.randn(4, 3, dtype=F64)
    t, t_next = (torch.tensor(v, dtype=F64) for v in ([0.4, 0.5, 0.7, 0.9], [0.1, 0.3, 0.6, 0.7]))
    kernel, change = Renoise(CPS(1.0)), torch.randn(4, 3, dtype=F64)
    laws = [
        kernel(process, x, estimate_of(process, x, t, data), t, t_next)
        for data in (torch.zeros_like(x), change)
    ]
    eta = stochasticity(kernel, process, t, t_next)
    assert bool(torch.isinf(eta).all())  # no member of the marginal-preserving family
    weight = girsanov_weights(process, t, eta, torch.full_like(t, 0.2), t_next)
    torch.testing.assert_close(laws[1].kl(laws[0]), weight * (change**2).sum(1))


def estimate_of(process: Process, x: Tensor, t: Tensor, data: Tensor) -> Estimate:
    """The estimate at x whose data are `data`."""
    alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
    return Estimate(data, (x - alpha * data) / sigma)


# ---------------------------------------------------------------------------- portability


@pytest.mark.parametrize(
    ("process", "grid"),
    [slow(p, g) if isinstance(p, Tabulated) else (p, g) for p, g in PAIRS],
    ids=[f"{type(p).__name__}-{g}" for p, g in PAIRS],
)
def test_the_path_kl_is_portable(process, grid):
    """Within 2 % of the continuous limit at every number of steps, for every change and η."""
    exact = {name: continuous(process, change, 1e-3) for name, change in CHANGES.items()}
    if isinstance(process, VP):  # data by t = 0, noise by t = 1
        assert continuous(process, CHANGES["family"], 1e-6) == pytest.approx(
            THETA**2 / (2 * S0), rel=1e-3
        )
    for n in COUNTS:
        times = GRIDS[grid](process, n, t_end=1e-3)
        batch = 100_000 // n
        nodes = jittered(process, times, batch, torch.Generator().manual_seed(n))
        for name, change in CHANGES.items():
            found = kls(process, times, nodes, change)
            error = float(found.std()) / batch**0.5
            assert error < 0.007 * exact[name], (n, name)
            assert float(found.mean()) == pytest.approx(exact[name], rel=0.02), (n, name)
        half = kls(process, times, nodes, CHANGES["family"], eta=0.5)
        assert float(half.mean()) == pytest.approx(1.25**2 * exact["family"], rel=0.02), n


@every_grid
def test_fixed_nodes_tend_to_the_continuous_path_kl(process, grid):
    """Without jitter it is a midpoint rule in φ: good on fine grids, not on coarse ones."""
    for name, change in CHANGES.items():
        exact, off = continuous(process, change, 1e-3), {}
        for n in (100, 500, 2000):
            times = GRIDS[grid](process, n, t_end=1e-3)
            off[n] = abs(float(kls(process, times, times[:, None], change)) / exact - 1)
        assert off[100] < 0.07, name
        assert off[500] < 0.01, name
        assert off[2000] < 0.002, name


def test_karras_nodes_need_no_jitter_for_a_table():
    """What the shipped model is trained with: ten fixed Karras steps are within 1 %."""
    process = Tabulated.scaled_linear()
    exact = continuous(process, CHANGES["family"], 1e-3)
    for n in (5, 10, 20):
        times = grids.karras(process, n)
        assert float(kls(process, times, times[:, None], CHANGES["family"])) == pytest.approx(
            exact, rel=0.01
        )


@pytest.mark.parametrize(("eta", "golden"), [(1.0, 0.5), (0.5, 0.78125)])
def test_the_eta_family_golden(eta, golden):
    # Δs = α for data of variance 1: ½ ∫ sin 2φ dφ = ½, and ½ · (1.25)² for η = ½.
    process, times = VP(), grids.uniform(VP(), 10, t_end=1e-5)
    nodes = jittered(process, times, 40_000, torch.Generator().manual_seed(0))
    found = kls(process, times, nodes, lambda a, s: a, eta)
    assert float(found.mean()) == pytest.approx(golden, rel=0.01)


# ---------------------------------------------------------------------------- kernels

KERNELS = [
    GDDIM(0.0),
    GDDIM(0.7),
    GDDIM(1.0),
    GDDIM(2.0),
    GDDIM(FlowSDE(0.7)),
    Renoise(Still()),
    Renoise(Posterior(0.6)),
    Renoise(Posterior(1.0)),
    Renoise(CPS(0.4)),
    EulerMaruyama(Memoryless()),
    EulerMaruyama(DanceSDE(0.3)),
]


def some_steps(process: Process) -> tuple[Tensor, Tensor]:
    end = grids.default_end(process) or 1e-3
    share = torch.tensor([[0.95, 0.9], [0.7, 0.3], [0.2, 0.19], [0.05, 0.0]], dtype=F64)
    times = end + share * (process.horizon - end)
    return times[:, 0], times[:, 1]


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_the_response_is_the_derivative_by_the_data(processes, kernel, case):
    for name, process in processes.items():
        with case(name):
            t, t_next = some_steps(process)
            x = torch.randn(4, 3, dtype=F64)
            data = torch.randn(4, 3, dtype=F64, requires_grad=True)
            mean = kernel(process, x, estimate_of(process, x, t, data), t, t_next).mean
            slope = torch.autograd.grad(mean.sum(), data)[0]
            found = response(kernel, process, t, t_next)
            torch.testing.assert_close(slope, found[:, None].expand(4, 3), rtol=1e-9, atol=1e-12)


def test_the_response_of_gddim_in_closed_form(process):
    # α'(1 − (ρ'/ρ)^{1+η²}), and −(1 + η²)/2 α dℓ for a short step.
    t, t_next = some_steps(process)
    kept = (process.sigma(t_next) / process.alpha(t_next)) / (process.sigma(t) / process.alpha(t))
    for eta in (0.0, 0.7, 1.0):
        expected = process.alpha(t_next) * (1 - kept ** (1 + eta**2))
        torch.testing.assert_close(response(GDDIM(eta), process, t, t_next), expected)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_the_response_of_a_short_step_is_that_of_continuous_time(processes, eta, case):
    """(1+η²)/2 α dℓ, whatever the kernel: what the form `rate` multiplies a slope by."""
    for name, process in processes.items():
        with case(name):
            t = some_steps(process)[0]
            t_next = t * (1 - 1e-5)
            step = log_snr(process, t_next) - log_snr(process, t)
            expected = (1 + eta**2) / 2 * process.alpha(t) * step
            for kernel in (GDDIM(eta), Renoise(Posterior(eta)), EulerMaruyama(Constant(eta))):
                found = response(kernel, process, t, t_next)
                torch.testing.assert_close(found, expected, rtol=2e-3, atol=0)


@pytest.mark.parametrize(
    ("kernel", "eta"),
    [
        (GDDIM(0.7), 0.7),
        (GDDIM(0.0), 0.0),
        (GDDIM(FlowSDE(0.7)), 0.7 / math.sqrt(2)),
        (EulerMaruyama(Constant(1.3)), 1.3),
        (EulerMaruyama(Memoryless()), 1.0),
        (EulerMaruyama(Still()), 0.0),
        (Renoise(Still()), 0.0),
        (Renoise(Posterior(1.0)), 1.0),  # ancestral DDPM is a step of η = 1, however long
    ],
    ids=str,
)
def test_stochasticity_is_what_was_prescribed(processes, kernel, eta, case):
    for name, process in processes.items():
        with case(name):
            found = stochasticity(kernel, process, *some_steps(process))
            torch.testing.assert_close(
                found, torch.full((4,), eta, dtype=F64), rtol=1e-6, atol=1e-9
            )


def test_stochasticity_of_a_scale_that_varies():
    t, t_next = some_steps(VP())
    dance = stochasticity(EulerMaruyama(DanceSDE(0.3)), VP(), t, t_next)
    torch.testing.assert_close(dance, 0.3 / torch.sqrt(diffusion_sq(VP(), t)))


@pytest.mark.parametrize("kernel", [Renoise(Posterior(0.6)), Renoise(CPS(0.4))], ids=str)
def test_a_step_of_given_std_is_as_noisy_as_gddim_of_that_eta(processes, kernel, case):
    for name, process in processes.items():
        with case(name):
            t, t_next = some_steps(process)
            x = torch.zeros(4, 1, dtype=F64)
            std = kernel(process, x, Estimate(x, x), t, t_next).std
            for k, eta in enumerate(stochasticity(kernel, process, t, t_next)):
                same = GDDIM(float(eta))(process, x, Estimate(x, x), t, t_next).std
                torch.testing.assert_close(same[k], std[k])


@pytest.mark.parametrize("eta", [0.3, 0.6, 1.0, 1.5])
def test_stochasticity_of_ddims_eta_in_small_steps(processes, eta, case):
    """DDIM(η) is the family's η as its steps shrink: −ln(1 − η²(1 − q²)) / (2h) → η²."""
    for name, process in processes.items():
        with case(name):
            t = some_steps(process)[0]
            off = []
            for step in (1e-2, 1e-3, 1e-4):
                found = stochasticity(Renoise(Posterior(eta)), process, t, t * (1 - step))
                off.append(float((found - eta).abs().max()))
            assert off[2] < 3e-3
            assert eta == 1.0 or off[2] < 0.2 * off[1] < 0.04 * off[0] + 1e-6


@pytest.mark.parametrize(
    "kernel",
    [
        GDDIM(1.0),
        Renoise(Posterior(1.0)),
        Renoise(Posterior(0.5)),
        Renoise(CPS(0.4)),
    ],
    ids=str,
)
def test_a_start_from_pure_noise_weighs_nothing_and_is_finite(kernel):
    """Rectified flow begins at α = 0, where σ/α is infinite."""
    process = RectifiedFlow()
    times = grids.uniform(process, 4, t_end=0.01)
    nodes = times[:, None]
    etas = stochasticity(kernel, process, times[:-1], times[1:])[:, None]
    weights = girsanov_weights(process, nodes[:-1], etas, log_snr_steps(process, times, nodes))
    assert torch.isfinite(weights).all()
    assert float(weights[0]) == 0
    assert torch.isfinite(response(kernel, process, times[:-1], times[1:])).all()


@pytest.mark.parametrize(("count", "apart"), [(4, 0.1), (16, 0.05), (64, 0.03)])
def test_a_path_to_data_without_noise_has_a_finite_kl(count, apart):
    """Rectified flow to t = 0: a velocity off by 1 costs ln(1/t), cut at t = 1e-3.

    With Δx̂ = −tΔu, ½(α/σ)²‖Δx̂‖² dℓ = (1−t) dt/t, whose integral from 1e-3 to 1 is ln 1000 − .999.
    Few steps leave more empty at the end (`paths.MARGIN` of a wide stratum), and find less.
    """
    process, batch = RectifiedFlow(), 20_000
    times = torch.linspace(1, 0, count + 1)
    found = []
    for seed in range(3):
        nodes = jittered(process, times, batch, torch.Generator().manual_seed(seed))
        steps = log_snr_steps(process, times, nodes)
        assert float(nodes[-2].min()) > 0.99e-3
        weights = girsanov_weights(process, nodes[:-1], torch.ones_like(nodes[:-1]), steps)
        found.append(float((weights * nodes[:-1] ** 2).sum(0).mean()))
    assert found == pytest.approx([math.log(1000) - 0.999] * 3, rel=apart)
