"""Deterministic solvers, the registry of all of them, and what they refuse."""

import math
from functools import partial
from inspect import signature
from typing import get_args

import pytest
import torch

from scoretune.core.config import OdeSolver
from scoretune.diffusion import solvers
from scoretune.diffusion.estimates import Estimate
from scoretune.diffusion.grids import shifted, time_of_ratio, uniform
from scoretune.diffusion.kernels import CPS, GDDIM, DanceSDE, EulerMaruyama, FlowSDE, Renoise
from scoretune.diffusion.processes import VP, RectifiedFlow, every_process, expand, noise_ratio
from scoretune.diffusion.solvers import (
    ODE_SOLVERS,
    SOLVERS,
    Churn,
    ddim,
    ddim_step,
    dpmpp_2m,
    dpmpp_2m_step,
    edm_heun,
    euler,
    euler_step,
    heun,
    rk45,
    solver_named,
    velocity_of,
)
from scoretune.diffusion.solvers.base import KernelSampler
from slow_cases import slow

F64 = torch.float64
NAMES = sorted({type(process).__name__ for process in every_process()})


def _label(value):
    return value if isinstance(value, str) else getattr(value, "__name__", str(value))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def reach(process):
    """σ/α at the horizon."""
    return float(noise_ratio(process, torch.tensor(process.horizon, dtype=F64)))


@pytest.mark.parametrize("solver", [euler, ddim, heun, dpmpp_2m, edm_heun], ids=_label)
def test_orders_of_convergence(process, solver, gaussian, w2):
    data = gaussian(0.7, 0.25)
    ends = torch.tensor([min(5.0, 0.9 * reach(process)), 0.05], dtype=F64)
    distances = []
    for n in (80, 160):  # ρ-grids, so that every process has equally good steps
        ratios = torch.linspace(*(ends**0.2).tolist(), n + 1, dtype=F64) ** 5
        times = time_of_ratio(process, ratios)
        end = data.law(process, float(times[-1]))
        distances.append(w2(data.solve(solver, process, times), end))
    order = SOLVERS[solver.__name__].order
    assert math.log2(distances[0] / distances[1]) == pytest.approx(order, abs=0.15)


quick_but_for_the_table = pytest.mark.parametrize(
    "process",
    [slow(name) if name == "Tabulated" else name for name in NAMES],
    indirect=True,
)
"""A table's thousand kinks make small steps."""


@quick_but_for_the_table
@pytest.mark.parametrize("end", [0.0, 0.01])
def test_rk45_is_the_exact_map(process, gaussian, end):
    # The flow of N(m, s²) is x ↦ α'm + √(v'/v)(x − αm), from the very start to the very end.
    data = gaussian(0.7, 0.25)
    times = uniform(process, 3, t_end=end * process.horizon, dtype=F64)
    (centre, v), (centre_end, v_end) = (data.law(process, float(t)) for t in times[[0, -1]])
    x = centre + math.sqrt(v) * torch.randn(4, 3, 2, generator=seeded(0), dtype=F64)
    exact = centre_end + math.sqrt(v_end / v) * (x - centre)
    out = rk45(process, data.field(process), x, times)
    torch.testing.assert_close(out, exact, rtol=0, atol=1e-4)
    finer = rk45(process, data.field(process), x, times, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(finer, exact, rtol=0, atol=1e-6)


def test_rk45_asks_in_the_dtype_of_the_images(gaussian):
    seen = set()

    def field(x, t):
        seen.add((x.dtype, t.dtype, tuple(t.shape)))
        return gaussian().field(VP())(x, t)

    out = rk45(VP(), field, torch.randn(3, 2), uniform(VP(), 1))
    assert seen == {(torch.float32, torch.float32, (3,))}
    assert out.dtype == torch.float32
    rows = uniform(VP(), 2)[:, None] * torch.tensor([1.0, 0.9])
    with pytest.raises(ValueError, match="rk45 takes its own steps for the whole batch"):
        rk45(VP(), field, torch.randn(2, 2), rows)


def test_single_steps_are_the_solvers_steps(process, gaussian):
    t, t_next, t_last = (share * process.horizon for share in torch.tensor([0.8, 0.5, 0.3]))
    x, field = torch.randn(4, 3, generator=seeded(0)), gaussian().field(process)
    pair, last = [time.expand(4) for time in (t, t_next)], t_last.expand(4)
    close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)
    for step, solver in ((euler_step, euler), (ddim_step, ddim)):
        ahead = step(process, x, field(x, pair[0]), *pair)
        close(ahead, solver(process, field, x, torch.stack([t, t_next])))
    alpha, sigma = expand(process.alpha(pair[1]), x), expand(process.sigma(pair[1]), x)
    first = field(x, pair[0])
    close(ddim_step(process, x, first, *pair), alpha * first.data + sigma * first.noise)
    moved = x + expand(pair[1] - pair[0], x) * velocity_of(process, first, pair[0])
    close(euler_step(process, x, first, *pair), moved)
    ahead = dpmpp_2m_step(process, x, first, *pair, None)
    second = dpmpp_2m_step(
        process, ahead, field(ahead, pair[1]), pair[1], last, (first.data, pair[0])
    )
    grid = torch.stack([t, t_next, t_last])
    close(second, dpmpp_2m(process, field, x, grid, lower_order_final=False))


FLOW = {  # output std on N(1, .25), shift 3, from N(0, 1) at t = 1; N = 10, 25, 50, 100, 400
    "euler": (euler, [0.3697, 0.4446, 0.4716, 0.4856, 0.4964]),
    "ddim": (ddim, [0.3697, 0.4446, 0.4716, 0.4856, 0.4964]),
    "Flow-GRPO": (EulerMaruyama(FlowSDE(0.7)), [0.4244, 0.4668, 0.4836, 0.4923, 0.4986]),
    "Dance": (EulerMaruyama(DanceSDE(0.3)), [0.3852, 0.4507, 0.4747, 0.4872, 0.4968]),
    "CPS": (Renoise(CPS(0.7)), [0.3276, 0.3771, 0.3969, 0.4085, 0.4196]),
    "gDDIM 1": (GDDIM(1.0), [0.3301, 0.4034, 0.4420, 0.4672, 0.4906]),
    "gDDIM 1.5": (GDDIM(1.5), [0.3030, 0.3682, 0.4118, 0.4453, 0.4824]),
}


@pytest.mark.parametrize("name", FLOW)
def test_rectified_flow_from_pure_noise(name, gaussian):
    sampler, expected = FLOW[name]
    data = gaussian()
    run = data.solve if sampler in (euler, ddim) else data.propagate
    for n, std in zip((10, 25, 50, 100, 400), expected, strict=True):
        times = shifted(RectifiedFlow(), n, 3.0, dtype=F64)
        mean, variance = run(sampler, RectifiedFlow(), times, start=(0.0, 1.0))
        # Flow-GRPO's rule at t = 1 costs the mean nothing either.
        assert mean == pytest.approx(1, abs=1e-9)
        assert math.sqrt(variance) == pytest.approx(std, abs=6e-5)


def test_heun_on_rectified_flow():
    # Fifty steps give mean 1.000 and variance .251 on N(1, .25).
    process, times = RectifiedFlow(), uniform(RectifiedFlow(), 50, dtype=F64)
    calls = []

    def field(x, t):
        calls.append(float(t[0]))
        v = (1 - t) ** 2 / 4 + t**2
        centred = x - (1 - t)[:, None]
        return Estimate(1 + ((1 - t) / 4 / v)[:, None] * centred, (t / v)[:, None] * centred)

    out = heun(process, field, torch.tensor([[0.0], [1.0]], dtype=F64), times)
    assert float(out[0]) == pytest.approx(1, abs=1e-3)
    assert float((out[1] - out[0]) ** 2) == pytest.approx(0.251, abs=3e-3)
    assert min(calls) > 0
    assert len(calls) == 99


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_from_the_horizon_to_the_data(process, name, gaussian):
    solver, calls = SOLVERS[name], []
    if (name, process) == ("exponential", RectifiedFlow()):
        pytest.skip("needs some signal")

    def field(x, t):
        assert t.shape == (5,)
        calls.append(t)
        return gaussian().field(process)(x, t)

    def run(seed, field=field, end=0.0):
        x = process.prior_std * torch.randn(5, 2, 2, generator=seeded(0))
        options = {} if solver.deterministic else {"generator": seeded(seed)}
        return solver.function(process, field, x, uniform(process, 6, t_end=end), **options)

    out = run(1)
    assert out.shape == (5, 2, 2)
    assert out.dtype == torch.float32
    assert torch.isfinite(out).all()
    assert torch.equal(out, run(1))
    assert torch.equal(out, run(2)) == solver.deterministic
    if solver.calls is not None:
        calls.clear()
        run(1, end=0.05 * process.horizon)
        # EDM's Heun has no second call where the first step has no σ/α to begin from.
        missing = name == "edm_heun" and math.isinf(reach(process))
        assert len(calls) == 6 * solver.calls - missing


@pytest.mark.parametrize("name", SOLVERS)
def test_half_precision_is_widened_and_networks_may_stay_narrow(name, gaussian):
    solver, process = SOLVERS[name], VP()

    def field(x, t):
        estimate = gaussian().field(process)(x, t)
        return Estimate(estimate.data.bfloat16(), estimate.noise.bfloat16())

    options = {} if solver.deterministic else {"generator": seeded(0)}
    x = torch.randn(3, 4, dtype=torch.bfloat16, generator=seeded(1))
    out = solver.function(process, field, x, uniform(process, 20), **options)
    assert out.dtype == torch.float32
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("name", [name for name in SOLVERS if name != "rk45"])
def test_a_column_of_times_for_each_sample(name, gaussian, monkeypatch):
    # Samples with times of their own are sampled as if alone.
    solver, process = SOLVERS[name], VP()
    monkeypatch.setattr("scoretune.diffusion.transitions.fresh", lambda x, g=None: x.sin())
    grid = uniform(process, 16, dtype=F64)
    rows = torch.stack([grid, 0.9 * grid], dim=1)
    x, field = torch.randn(2, 3, generator=seeded(0), dtype=F64), gaussian().field(process)
    options = {"corrections": 0} if name == "predictor_corrector" else {}
    both = solver.function(process, field, x, rows, **options)
    for k in range(2):
        alone = solver.function(process, field, x[k : k + 1], rows[:, k], **options)
        torch.testing.assert_close(both[k : k + 1], alone)


def test_the_configuration_offers_the_solvers_of_the_table():
    """`core.config` imports nothing of ours, so its choices are written there once more."""
    assert set(get_args(OdeSolver)) == set(ODE_SOLVERS)


@pytest.mark.parametrize("name", [name for name in SOLVERS if SOLVERS[name].kernel])
def test_a_solver_with_noise_follows_the_kernel_of_its_row(name, gaussian):
    solver, times, x = SOLVERS[name], uniform(VP(), 6, dtype=F64), torch.ones(2, 1, dtype=F64)
    field = gaussian().field(VP())
    ours = solver.function(VP(), field, x, times, eta=0.7, generator=seeded(0))
    by_kernel = KernelSampler(solver.kernel(0.7))(VP(), field, x, times, generator=seeded(0))
    assert torch.equal(ours, by_kernel)


def test_the_solvers_that_take_an_eta_say_so():
    for solver in SOLVERS.values():
        assert solver.takes_eta == ("eta" in signature(solver.function).parameters)


def test_the_public_names_are_here():
    for name, solver in SOLVERS.items():
        assert getattr(solvers, name) is solver.function
        assert solver.order >= 0
        assert solver_named(name) is solver


TIMES = {
    "decrease strictly": [torch.ones(1), torch.tensor([0.1, 0.5]), torch.ones(2, 2), torch.ones(0)],
    r"lie in \[0, 1.0\]": [
        torch.tensor([1.2, 0.5]),
        torch.tensor([0.5, -0.1]),
        torch.tensor([math.inf, 0.5]),
    ],
    r"times \[2, 3\] do not fit x \[2, 1\]": [torch.tensor([[0.9] * 3, [0.1] * 3])],
}


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("message", TIMES)
def test_times_are_checked(name, message):
    for times in TIMES[message]:
        with pytest.raises(ValueError, match=message) as error:
            SOLVERS[name].function(VP(), lambda x, t: Estimate(x, x), torch.ones(2, 1), times)
        assert "\n" not in str(error.value)


def test_nan_times_and_states_without_a_batch_are_refused():
    field = partial(Estimate, noise=torch.ones(()))
    with pytest.raises(ValueError, match="times must decrease strictly"):
        ddim(VP(), field, torch.ones(2, 1), torch.tensor([0.5, math.nan]))
    with pytest.raises(ValueError, match=r"do not fit x \[\]: x is \[B, \*S\]"):
        ddim(VP(), field, torch.ones(()), torch.tensor([0.5, 0.1]))


OPTIONS = [
    ("euler_maruyama", {"eta": -1.0}, "Constant eta must be finite and >= 0, got -1.0"),
    ("euler_maruyama", {"eta": math.nan}, "Constant eta must be finite"),
    ("ddim_eta", {"eta": math.inf}, "Posterior eta must be finite"),
    ("ddim_eta", {"eta": 1.5}, "asks for more noise than a step can hold"),
    ("gddim", {"eta": -0.1}, "GDDIM eta must be finite"),
    ("exponential", {"eta": -0.1}, "Constant eta must be finite"),
    ("dpmpp_2m_sde", {"eta": math.nan}, "dpmpp_2m_sde eta must be finite"),
    ("predictor_corrector", {"snr": -0.1}, "predictor_corrector snr must be finite and >= 0"),
    ("predictor_corrector", {"corrections": -1}, "corrections must be a whole number >= 0"),
    ("predictor_corrector", {"corrections": 1.5}, "corrections must be a whole number >= 0"),
    ("edm_heun", {"churn": -1.0}, "Churn amount must be finite and >= 0"),
    ("rk45", {"rtol": 0.0}, "rk45 needs 0 < rtol < 1 and finite atol > 0"),
    ("rk45", {"atol": math.nan}, "rk45 needs 0 < rtol < 1 and finite atol > 0"),
]


@pytest.mark.parametrize(("name", "options", "message"), OPTIONS)
def test_options_are_checked(name, options, message, gaussian):
    field, times = gaussian().field(VP()), uniform(VP(), 3)
    with pytest.raises(ValueError, match=message) as error:
        SOLVERS[name].function(VP(), field, torch.ones(2, 1), times, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"s_noise": math.inf}, "Churn s_noise must be finite"),
        ({"s_min": 2.0, "s_max": 1.0}, "Churn needs s_max >= s_min, got 1.0 and 2.0"),
    ],
)
def test_churn_is_checked(options, message):
    with pytest.raises(ValueError, match=message):
        Churn(1.0, **options)


@pytest.mark.parametrize(
    ("name", "hint"), [("dpm_2m", "did you mean 'dpmpp_2m'"), ("zzz", "choose one of: ")]
)
def test_an_unknown_solver_gets_the_nearest_name(name, hint):
    with pytest.raises(ValueError, match=f"unknown solver '{name}': {hint}"):
        solver_named(name)
