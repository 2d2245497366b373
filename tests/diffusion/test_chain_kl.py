"""The KL of a sampler's chain: exact, of every kernel, and never below the KL of what it draws."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scoretune.core.conditions import Condition
from scoretune.diffusion import grids
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
)
from scoretune.diffusion.paths import chain_weights, girsanov_weights, log_snr_steps
from scoretune.diffusion.processes import VP, Process, RectifiedFlow, Tabulated
from scoretune.diffusion.windows import Window
from scoretune.models import toy
from scoretune.policy import Policy
from scoretune.rollout import Acting, prior, rollout

F64 = torch.float64
MEAN, VARIANCE, SHIFT = -0.3, 0.7, 0.45
KERNELS = [
    GDDIM(1.0),
    GDDIM(0.4),
    EulerMaruyama(Memoryless()),
    EulerMaruyama(Constant(0.6)),
    Renoise(Posterior(0.8)),
    Renoise(CPS(0.6)),
    Exponential(Constant(1.0)),
]
ON_FLOWS = [
    EulerMaruyama(FlowSDE(0.7)),
    EulerMaruyama(DanceSDE(0.3)),
    GDDIM(0.7),
    Renoise(CPS(0.7)),
]
PAIRS = [
    *((process, kernel) for process in (VP(), Tabulated.scaled_linear()) for kernel in KERNELS),
    *((RectifiedFlow(), kernel) for kernel in ON_FLOWS),
]
every_pair = pytest.mark.parametrize(
    ("process", "kernel"), PAIRS, ids=[f"{type(p).__name__}-{k}" for p, k in PAIRS]
)


def estimate_of(process: Process, x: Tensor, t: Tensor, mean: float) -> Estimate:
    """The exact estimate for data N(mean, VARIANCE)."""
    alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
    spread = alpha**2 * VARIANCE + sigma**2
    data = mean + alpha * VARIANCE / spread * (x - alpha * mean)
    return Estimate(data, (x - alpha * data) / sigma)


def laws(kernel, process: Process, times: Tensor, mean: float) -> list[tuple[float, float, float]]:
    """Each step x' = a x + b + c ξ of the exact policy for that mean, as (a, b, c)."""
    t, t_next = times[:-1], times[1:]
    low, high = (
        kernel(process, x, estimate_of(process, x, t, mean), t, t_next)
        for x in (torch.zeros(len(t), 1, dtype=F64), torch.ones(len(t), 1, dtype=F64))
    )
    rows = torch.stack([(high.mean - low.mean)[:, 0], low.mean[:, 0], low.std[:, 0]], 1)
    return [(a, b, c) for a, b, c in rows.tolist()]


def chain_kl(kernel, process: Process, times: Tensor) -> float:
    """Σ w_k ‖Δx̂‖² of the policy for data moved by SHIFT; Δx̂ does not depend on the state."""
    t = times[:-1]
    x = torch.zeros(len(t), 1, dtype=F64)
    change = estimate_of(process, x, t, MEAN + SHIFT).data - estimate_of(process, x, t, MEAN).data
    return float((chain_weights(kernel, process, t, times[1:]) * change[:, 0] ** 2).sum())


@every_pair
def test_what_is_drawn_has_moved_by_no_more_than_the_chain(process, kernel):
    """The data-processing inequality, at any number of steps, to the last state with noise."""
    for count in (1, 2, 5, 10, 50):
        times = grids.uniform(process, count, dtype=F64)
        if isinstance(kernel, Exponential):
            times[0] = min(float(times[0]), 0.999 * process.horizon)
        ends = []
        for mean in (MEAN, MEAN + SHIFT):
            m, v = 0.0, float(process.prior_std) ** 2
            for a, b, c in laws(kernel, process, times, mean):
                if c == 0:
                    break
                m, v = a * m + b, a * a * v + c * c
            ends.append((m, v))
        (m0, v0), (m1, v1) = ends
        assert v1 == pytest.approx(v0)  # the slopes of both policies are the same
        drawn, chain = (m1 - m0) ** 2 / (2 * v0), chain_kl(kernel, process, times)
        assert chain >= drawn * (1 - 1e-9), count
        exact = sum(
            (b1 - b0) ** 2 / (2 * c * c)
            for (_, b0, c), (_, b1, _) in zip(
                laws(kernel, process, times, MEAN),
                laws(kernel, process, times, MEAN + SHIFT),
                strict=True,
            )
            if c
        )
        assert chain == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("kernel", KERNELS[:4], ids=str)
def test_both_kls_agree_in_the_limit_of_many_steps(kernel):
    process = VP()
    off = []
    for count in (100, 1000, 10_000):
        times = grids.karras(process, count, t_end=0.02, dtype=F64)
        t = times[:-1]
        x = torch.zeros(count, 1, dtype=F64)
        moved = estimate_of(process, x, t, MEAN + SHIFT).data
        change = (moved - estimate_of(process, x, t, MEAN).data)[:, 0]
        eta = torch.full_like(t, 1.0 if kernel.scale == Memoryless() else kernel.scale.eta)
        steps = log_snr_steps(process, times, times[:, None])[:, 0]
        girsanov = float((girsanov_weights(process, t, eta, steps) * change**2).sum())
        off.append(abs(chain_kl(kernel, process, times) / girsanov - 1))
    assert off[2] < 0.3 * off[1] < 0.15 * off[0]
    assert off[2] < 0.01


def test_of_a_flow_continuous_time_diverges_and_the_chain_does_not():
    """A velocity that changed by a constant: ½∫g²‖Δs‖²dt ~ ln 1/t, so the end of it is told."""
    process, kernel = RectifiedFlow(), EulerMaruyama(FlowSDE(0.7))
    times = grids.uniform(process, 10, dtype=F64)
    t = times[:-1]
    change = t  # x̂0 = x − t v
    chain = float((chain_weights(kernel, process, t, times[1:]) * change**2).sum())
    assert chain == pytest.approx(3.06, abs=0.01)
    fine = grids.uniform(process, 20_000, dtype=F64)
    eta = torch.full_like(fine[:-1], 0.7 / 2**0.5)
    totals = []
    for end in (1e-2, 1e-3):
        steps = log_snr_steps(process, fine, fine[:, None], end=end)[:, 0]
        seen = fine[:-1] > end
        weights = girsanov_weights(process, fine[:-1], eta, steps)
        totals.append(float((weights * fine[:-1] ** 2)[seen].sum()))
    factor = ((1 + 0.245) / (2 * 0.245**0.5)) ** 2
    # ½ factor (α/σ)² t² dℓ = factor (1 − t)/t dt: ln 10 more a decade, less the 1 − t.
    assert totals[1] - totals[0] == pytest.approx(factor * (2.302585 - 0.009), rel=2e-2)


@pytest.mark.parametrize(
    ("process", "kernel", "grid", "changed", "ratio"),
    [
        (Tabulated.scaled_linear(), GDDIM(1.0), grids.karras, "data", 2.2),
        (Tabulated.scaled_linear(), GDDIM(1.0), grids.karras, "noise", 2.14),
        (RectifiedFlow(), EulerMaruyama(FlowSDE(0.7)), grids.uniform, "data", 1.0),
        (RectifiedFlow(), EulerMaruyama(FlowSDE(0.7)), grids.uniform, "velocity", 0.33),
    ],
    ids=["table-data", "table-noise", "flow-data", "flow-velocity"],
)
def test_on_ten_steps_the_ratio_of_both_kls_depends_on_what_changed(
    process, kernel, grid, changed, ratio
):
    """The figures of docs/methods.md: ten steps of the chain over the integral on a fine grid."""
    eta = 1.0 if isinstance(kernel, GDDIM) else 0.7 / 2**0.5

    def change(t: Tensor) -> Tensor:
        alpha, sigma = process.alpha(t), process.sigma(t)
        of_data = sigma**2 / (alpha**2 * VARIANCE + sigma**2)
        return {"data": of_data, "noise": sigma / alpha, "velocity": t}[changed]

    times = grid(process, 10, dtype=F64)
    t = times[:-1]
    chain = float((chain_weights(kernel, process, t, times[1:]) * change(t) ** 2).sum())
    fine = grid(process, 20_000, dtype=F64)
    t = fine[:-1]
    steps = log_snr_steps(process, fine, fine[:, None])[:, 0]
    steps = torch.where(t > 1e-3 * process.horizon, steps, 0.0)
    weights = girsanov_weights(process, t, torch.full_like(t, eta), steps)
    assert chain / float((weights * change(t) ** 2).sum()) == pytest.approx(ratio, rel=0.03)


def test_a_window_at_the_first_step_weighs_what_its_step_costs():
    process = Tabulated.scaled_linear()
    base = toy.Gaussian(process, MEAN, VARIANCE, 3)
    policy = Policy(toy.Controlled(base, toy.HatControl(3)), GDDIM(1.0))
    torch.nn.init.normal_(policy.parameters()[0], std=0.5)
    generator, nobody = torch.Generator().manual_seed(0), Condition.none(6)
    times = grids.karras(process, 5)
    acting = Acting(window=Window(0, 1))
    x = prior(policy, 6, generator)
    path = rollout(policy, nobody, times, generator, x, acting=acting, reference=True)
    assert path.kls is not None and path.chain_kl is not None
    with torch.no_grad():
        place = (path.states[0], path.times[0], path.times[1], nobody)
        moved = policy.transition(*place)
        with policy.reference():
            exact = moved.kl(policy.transition(*place))
    torch.testing.assert_close(path.kls[0], exact, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(path.chain_kl, exact, rtol=1e-4, atol=1e-7)
    assert float(exact.min()) > 0
    assert bool((path.kls[1:] == 0).all())
