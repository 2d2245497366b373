"""Both ends of every process, σ = 0 and no signal: no value and no gradient is NaN or infinite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product

import pytest
import torch
from torch import Tensor

from scoretune.diffusion import estimates, kernels, named
from scoretune.diffusion.estimates import Estimate, Prediction, read
from scoretune.diffusion.grids import MOST_RATIO, karras, uniform
from scoretune.diffusion.kernels import GDDIM, Renoise, Still, response, stochasticity
from scoretune.diffusion.matching import consistency
from scoretune.diffusion.processes import (
    EDM,
    VE,
    Process,
    RectifiedFlow,
    Tabulated,
    every_process,
    noise_ratio,
)
from scoretune.diffusion.solvers import SOLVERS
from scoretune.diffusion.theory import gaussian
from scoretune.diffusion.theory.reward_gap import sampler_bias

F64 = torch.float64
ETAS = (0.0, 0.6, 1.0, 1.5)
PARTS = ("data", "noise")
PREDICTIONS = (estimates.noise, estimates.data, estimates.v, estimates.velocity)


def without_terminal_signal() -> Tabulated:
    """Stable Diffusion's table rescaled to zero terminal SNR (arXiv 2305.08891), as it is read."""
    root = torch.tensor(Tabulated.scaled_linear().alphas_cumprod, dtype=F64).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return Tabulated(tuple((root**2).clamp(min=2**-24).tolist()))


PROCESSES: tuple[Process, ...] = (*every_process(), without_terminal_signal())


def kernels_of(eta: float) -> Mapping[str, kernels.Kernel]:
    """Every kernel under every scale that it takes, at this level of noise."""
    constant, dance = kernels.Constant(eta), kernels.DanceSDE(eta)
    return {
        "em": kernels.EulerMaruyama(constant),
        "em flow": kernels.EulerMaruyama(kernels.FlowSDE(eta)),
        "em dance": kernels.EulerMaruyama(dance),
        "em still": kernels.EulerMaruyama(Still()),
        "gddim": GDDIM(constant),
        "gddim dance": GDDIM(dance),
        "gddim ramp": GDDIM(kernels.Ramp(eta, 0.0)),
        "gddim memoryless": GDDIM(kernels.Memoryless()),
        "exponential": kernels.Exponential(constant),
        "posterior": Renoise(kernels.Posterior(eta)),
        "cps": Renoise(kernels.CPS(min(eta, 1.0))),
        "ddim": Renoise(Still()),
    }


def refusable(process: Process, name: str, eta: float) -> bool:
    """Where an error may say so: an exponential step from α = 0, too much noise for a step."""
    no_signal = float(process.alpha(torch.tensor(process.horizon))) == 0
    return (name.startswith("exponential") and no_signal) or (name == "posterior" and eta > 1)


def finite(*values: Tensor | None) -> bool:
    return all(value is None or bool(torch.isfinite(value).all()) for value in values)


def ends(process: Process) -> tuple[Tensor, Tensor]:
    """Steps from the horizon, to the data, and from the one to the other: t, t_next [3]."""
    last, half = process.horizon, process.horizon / 2
    return torch.tensor([last, half, last]), torch.tensor([half, 0.0, 0.0])


def cases() -> Iterator[tuple[Process, Prediction]]:
    return product(PROCESSES, PREDICTIONS)


def test_estimates_are_finite_and_so_are_their_gradients(case):
    for process, prediction in cases():
        with case(process, prediction.name):
            t = torch.tensor([process.horizon, process.horizon / 2, 0.0])
            x, output = torch.randn(2, 3, 5).unbind()
            leaves = x.requires_grad_(), output.requires_grad_()
            estimate = read(process, prediction, t, *leaves)
            assert finite(estimate.data, estimate.noise)
            parts = torch.cat([estimate.data, estimate.noise])
            assert finite(*torch.autograd.grad(parts, leaves, torch.randn_like(parts)))


def test_the_state_is_what_its_estimate_says_where_the_equations_decide(case):
    for process, prediction in cases():
        with case(process, prediction.name):
            t = torch.tensor([process.horizon, 0.0], dtype=F64)
            alpha, sigma = (f(t)[:, None] for f in (process.alpha, process.sigma))
            x0, eps = torch.randn(2, 2, 5, dtype=F64)
            x = alpha * x0 + sigma * eps
            output = estimates.target(process, prediction, t, x0, eps)
            output = torch.where(torch.isfinite(output), output, 3.0)  # σ' = ∞: whatever it says
            estimate = read(process, prediction, t, x, output)
            torch.testing.assert_close(alpha * estimate.data + sigma * estimate.noise, x)
            known = alpha[0] > 0 or prediction is not estimates.noise
            torch.testing.assert_close(
                estimate.data[0], x0[0] if known else torch.zeros(5).double()
            )
            torch.testing.assert_close(estimate.data[1], x0[1])


def test_steps_are_finite_and_so_are_their_gradients(case):
    for process in PROCESSES:
        t, t_next = ends(process)
        state = torch.randn(2, 3, 5).unbind()
        reads = [read(process, prediction, t, *state) for prediction in PREDICTIONS]
        rows = zip(*((state[0], e.data, e.noise) for e in reads), strict=True)
        leaves = x, data, noise = tuple(torch.cat(row).requires_grad_() for row in rows)
        t, t_next = t.repeat(len(reads)), t_next.repeat(len(reads))
        for eta in ETAS:
            for name, kernel in kernels_of(eta).items():
                with case(process, eta, name):
                    try:
                        step = kernel(process, x, Estimate(data, noise), t, t_next)
                    except ValueError:
                        if refusable(process, name, eta):
                            continue
                        raise
                    slopes = torch.autograd.grad(step.mean.sum(), leaves, allow_unused=True)
                    assert finite(step.mean, step.std, *slopes)
                    assert finite(response(kernel, process, t[:3], t_next[:3]))
                    assert not stochasticity(kernel, process, t[:3], t_next[:3]).isnan().any()


def test_samplers_are_finite_and_so_are_their_gradients(case):
    for number, process in enumerate(PROCESSES):
        times, eta = process.horizon * torch.tensor([1.0, 0.6, 0.0]), ETAS[number % 4]
        for name, solver in SOLVERS.items():
            if name == "rk45" or refusable(process, name, 0.0):  # rk45 by itself, below
                continue
            options = {"eta": min(eta, 1.0) if name == "ddim_eta" else eta}
            x = (torch.randn(4, 3) * process.prior_std).requires_grad_()  # a row a prediction
            weight = torch.tensor(0.3, requires_grad=True)

            def field(x, t, process=process, weight=weight):
                rows = zip(PREDICTIONS, t.split(1), x.split(1), strict=True)
                reads = [read(process, p, t, y, torch.tanh(weight * y)) for p, t, y in rows]
                return Estimate(*(torch.cat([getattr(e, n) for e in reads]) for n in PARTS))

            with case(process, name, options):
                end = solver.function(
                    process, field, x, times, **(options if solver.takes_eta else {})
                )
                assert finite(end, *torch.autograd.grad(end.sum(), (x, weight)))


def test_adaptive_steps_reach_both_ends():
    process = RectifiedFlow()
    for prediction in PREDICTIONS[1:3]:
        end = SOLVERS["rk45"].function(
            process,
            lambda x, t, p=prediction: read(process, p, t, x, 0.1 * x),
            torch.randn(2, 3),
            torch.tensor([1.0, 0.0]),
            rtol=1e-2,
            atol=1e-2,
        )
        assert finite(end)


# ---------------------------------------------------------------- tables without terminal signal


class Sampling:
    kernel, noise, eta, eta_end, grid, steps, shift = (
        "gddim",
        "constant",
        1.0,
        None,
        "auto",
        10,
        3.0,
    )


def test_no_more_than_one_step_is_spent_beyond_the_most_noise():
    for process in PROCESSES:
        if not bool(noise_ratio(process, torch.tensor(process.horizon)).isfinite()):
            continue
        times = named.grid(process, Sampling()).double()
        ratios = noise_ratio(process, times)
        assert float(times[0]) == pytest.approx(process.horizon)
        assert float(ratios[1]) < MOST_RATIO
        roots = ratios.clamp(max=MOST_RATIO) ** (1 / 7)
        torch.testing.assert_close(roots.diff(), roots.diff()[:1].expand(10), rtol=1e-3, atol=1e-5)


def test_grids_within_the_most_noise_are_as_ever():
    for process in (VE(), EDM(), Tabulated.scaled_linear()):
        capped = karras(process, 12, most=MOST_RATIO, dtype=F64)
        torch.testing.assert_close(capped, karras(process, 12, dtype=F64), rtol=0, atol=0)


def test_the_bias_of_a_table_without_terminal_signal():
    # Data N(1, ¼): the clamped table spent seven of ten steps above σ/α = 10.
    process = without_terminal_signal()

    def bias(times: Tensor) -> float:
        start = gaussian.law(process, times[0].double(), mean=1.0, variance=0.25)
        return sampler_bias(process, GDDIM(1.0), times.double(), start=start)

    capped = named.grid(process, Sampling())
    assert int((noise_ratio(process, karras(process, 10).double()) > 10).sum()) == 8
    assert int((noise_ratio(process, capped.double()) > 10).sum()) == 4
    assert bias(karras(process, 10)) == pytest.approx(0.241, abs=1e-3)
    assert bias(capped) == pytest.approx(0.172, abs=1e-3)
    assert bias(uniform(process, 10)) == pytest.approx(0.145, abs=1e-3)


def test_consistency_starts_where_a_step_of_finite_length_leads_somewhere():
    process = without_terminal_signal()
    ratios = noise_ratio(process, consistency.grid(process, 18, 1e-3))
    assert float(ratios[0]) == pytest.approx(MOST_RATIO)
