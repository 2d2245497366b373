"""Solvers and kernels against golden Wasserstein distances, without Monte Carlo."""

import math
from functools import partial

import pytest
import torch

from scoretune.diffusion.estimates import Estimate
from scoretune.diffusion.grids import karras, shifted, time_of_ratio, uniform
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
)
from scoretune.diffusion.processes import EDM, VE, VP, RectifiedFlow, SubVP
from scoretune.diffusion.solvers import ddim, dpmpp_2m, euler, heun

F64 = torch.float64
# The table, like the paper's order, is without the first-order last step that N < 15 would get.
second_order = partial(dpmpp_2m, lower_order_final=False)
SOLVERS = (euler, heun, ddim, dpmpp_2m, second_order)
GRIDS = {"uniform": uniform, "karras": partial(karras, rho=7.0)}
# W2 to p at t = 1e-3 of VP(.1, 20) on N(1, .25), from the exact law at t = 1; N = 10, 20, 40, …
GOLDEN = {
    ("uniform", euler): "3.109e-02 1.739e-02 9.215e-03 4.746e-03 2.409e-03",
    ("uniform", heun): "1.516e-02 4.238e-03 1.118e-03 2.866e-04 7.254e-05",
    ("uniform", ddim): "1.257e-01 6.615e-02 3.410e-02 1.734e-02 8.753e-03",
    ("uniform", second_order): "1.874e-01 1.117e-01 3.959e-02 1.074e-02 2.650e-03",
    ("uniform", EulerMaruyama(Still())): "3.109e-02 1.739e-02 9.215e-03 4.746e-03",
    ("uniform", EulerMaruyama(Memoryless())): "9.318e-02 3.817e-02 1.803e-02 8.827e-03",
    ("uniform", EulerMaruyama(Constant(0.5))): "4.995e-02 2.434e-02 1.225e-02 6.166e-03",
    ("uniform", EulerMaruyama(Constant(2.0))): "2.465e+01 9.055e-02 3.648e-02 1.683e-02",
    ("uniform", GDDIM(0.5)): "1.389e-01 7.842e-02 4.272e-02 2.258e-02 1.168e-02",
    ("uniform", GDDIM(1.0)): "1.666e-01 1.084e-01 6.618e-02 3.816e-02 2.102e-02",
    ("uniform", GDDIM(1.2)): "1.782e-01 1.223e-01 7.824e-02 4.688e-02",
    ("uniform", GDDIM(2.0)): "2.082e-01 1.678e-01 1.266e-01 8.828e-02 5.694e-02",
    ("uniform", Renoise(Posterior(1.0))): "1.666e-01 1.084e-01 6.618e-02 3.816e-02",
    ("karras", euler): "4.979e-02 2.062e-02 9.622e-03 4.701e-03 2.331e-03",
    ("karras", heun): "3.191e-02 9.042e-03 2.333e-03 5.886e-04 1.476e-04",
    ("karras", ddim): "1.289e-01 6.913e-02 3.585e-02 1.826e-02 9.215e-03",
    ("karras", second_order): "5.186e-02 2.271e-02 5.382e-03 1.272e-03 3.092e-04",
    ("karras", EulerMaruyama(Memoryless())): "1.916e-01 7.019e-02 3.204e-02 1.537e-02",
    ("karras", GDDIM(1.0)): "1.945e-01 1.213e-01 6.906e-02 3.703e-02 1.920e-02",
    ("karras", GDDIM(2.0)): "2.281e-01 1.814e-01 1.309e-01 8.239e-02 4.683e-02",
}


def _label(value):
    value = value.func if isinstance(value, partial) else value
    return value if isinstance(value, str) else getattr(value, "__name__", str(value))


@pytest.mark.parametrize(("grid", "sampler"), GOLDEN, ids=_label)
def test_golden_distances(grid, sampler, gaussian, w2):
    data, process = gaussian(), VP(0.1, 20.0)
    run = data.solve if sampler in SOLVERS else data.propagate
    for k, expected in enumerate(GOLDEN[grid, sampler].split()):
        times = GRIDS[grid](process, 10 * 2**k, t_end=1e-3, dtype=F64)
        distance = w2(run(sampler, process, times), data.law(process, 1e-3))
        assert distance == pytest.approx(float(expected), rel=6e-4)


@pytest.mark.parametrize(
    ("sampler", "order"), [(euler, 1), (ddim, 1), (heun, 2), (dpmpp_2m, 2)], ids=_label
)
def test_orders_of_convergence(process, sampler, order, gaussian, w2):
    data = gaussian(0.7, 0.25)
    ends = torch.tensor([5.0, 0.05], dtype=F64)
    distances = []
    for n in (80, 160):  # ρ-grids, so that every process has equally good steps
        ratios = torch.linspace(*(ends**0.2).tolist(), n + 1, dtype=F64) ** 5
        times = time_of_ratio(process, ratios)
        end = data.law(process, float(times[-1]))
        distances.append(w2(data.solve(sampler, process, times), end))
    assert math.log2(distances[0] / distances[1]) == pytest.approx(order, abs=0.15)


INVARIANT = {  # (mean, std) of x/α on the ρ-grid 7 -> .01 (Karras 7, N = 20), start N(0, (7α)²)
    "ddim": (ddim, 0.93408, 0.46146),
    "dpmpp_2m": (dpmpp_2m, 0.92789, 0.50475),
    "gddim 1": (GDDIM(1.0), 0.99492, 0.42807),
    "gddim 1.5": (GDDIM(1.5), 0.99975, 0.39541),
}


@pytest.mark.parametrize("name", INVARIANT)
@pytest.mark.parametrize("process", [VP(), SubVP(), VE(), EDM(), RectifiedFlow()], ids=_label)
def test_solvers_in_noise_ratio_ignore_the_process(process, name, gaussian):
    sampler, mean, std = INVARIANT[name]
    ratios = torch.linspace(7 ** (1 / 7), 0.01 ** (1 / 7), 21, dtype=F64) ** 7
    times = time_of_ratio(process, ratios)
    first, last = (float(process.alpha(times[k])) for k in (0, -1))
    data = gaussian()
    run = data.propagate if isinstance(sampler, GDDIM) else data.solve
    got = run(sampler, process, times, start=(0.0, (7 * first) ** 2))
    assert got[0] / last == pytest.approx(mean, abs=6e-6)
    assert math.sqrt(got[1]) / last == pytest.approx(std, abs=6e-6)


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


@pytest.mark.parametrize("solver", [euler, ddim, heun, dpmpp_2m], ids=_label)
def test_rectified_flow_is_finite_from_one_to_zero(solver, gaussian):
    times = shifted(RectifiedFlow(), 6, 3.0)
    x = torch.randn(5, 2, 2)
    out = solver(RectifiedFlow(), gaussian().field(RectifiedFlow()), x, times)
    assert out.shape == x.shape
    assert out.dtype == torch.float32
    assert torch.isfinite(out).all()


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


@pytest.mark.parametrize("times", [torch.ones(1), torch.tensor([0.1, 0.5]), torch.ones(2, 2)])
def test_times_must_fall(times):
    with pytest.raises(ValueError, match="times must decrease strictly"):
        ddim(VP(), lambda x, t: Estimate(x, x), torch.ones(1, 1), times)
