"""Laws of score matching, of control and reinforcement learning, and of distances."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from scoretune.commands.doctor.laws.base import Law, Measured, measurement
from scoretune.commands.doctor.laws.samplers import exact_field
from scoretune.control.problems.lq import LQ, Evaluation
from scoretune.diffusion import grids
from scoretune.diffusion.matching import score_matching
from scoretune.diffusion.processes import VP
from scoretune.evaluate import metrics
from scoretune.rl.martingale import gae, returns_to_go
from scoretune.rl.occupation import exponential_times, occupation_weights
from scoretune.rl.rates import advantage_rate, td_advantage
from scoretune.rl.surrogates import clipped_surrogate
from scoretune.rl.tilt import (
    Mixture,
    Quadratic,
    gauss_hermite,
    optimal_score,
    optimal_value,
    optimum,
    tilt_kl,
)

F64 = torch.float64
KAPPA = 0.5
BASE, TARGET = Mixture.gaussian([1.0], 0.25), Quadratic.around([2.0], 2.0)

# ---------------------------------------------------------------------------- score matching


def _noisy(device: torch.device) -> tuple[Tensor, ...]:
    """x, ε and weights that integrate over x0 ~ N(1, ¼) and ε exactly at α = .6, σ = .8."""
    points, weights = gauss_hermite(12, torch.zeros((), dtype=F64, device=device))
    x0, eps = (part.flatten()[:, None] for part in torch.meshgrid(points, points, indexing="ij"))
    return 0.6 * (1 + x0 / 2) + 0.8 * eps, eps, torch.outer(weights, weights).flatten()


def _model(x: Tensor) -> Tensor:
    """A score that is not the right one."""
    return -(x - 0.3) / 1.3


def denoising_gap(device: torch.device) -> float:
    """Denoising minus explicit score matching."""
    x, eps, weights = _noisy(device)
    exact = -(x - 0.6) / (0.09 + 0.64)
    sigma = torch.full((len(x),), 0.8, dtype=F64, device=device)
    denoising = score_matching.denoising(_model(x), eps, sigma)
    return float(weights @ (denoising - score_matching.explicit(_model(x), exact)))


def implicit_gap(device: torch.device) -> float:
    """Explicit minus implicit score matching."""
    x, _, weights = _noisy(device)
    exact = -(x - 0.6) / (0.09 + 0.64)
    explicit = score_matching.explicit(_model(x), exact)
    return float(weights @ (explicit - score_matching.implicit(_model, x)))


def likelihood(device: torch.device) -> float:
    """Largest error of ln p(x) by the probability-flow ODE of VP from N(0, 1).

    With the exact score of N(1, ¼) that flow makes N(.996714, .500008²) of its prior.
    """
    process, made = VP(), Mixture.gaussian([0.996714], 0.500008**2)
    x = torch.linspace(-0.5, 2.5, 9, dtype=F64, device=device)[:, None]
    times = grids.karras(process, 400, t_end=1e-4, dtype=F64)
    alpha, sigma = float(process.alpha(times[-1])), float(process.sigma(times[-1]))
    log_density, _ = score_matching.log_likelihood(process, exact_field(process), x, times)
    return float((log_density.cpu() - made.diffused(alpha, sigma).log_density(x.cpu())).abs().max())


# ---------------------------------------------------------------------------- control


def riccati(number: Callable[[Evaluation], float]) -> Measured:
    """A number of the best policy of the linear-quadratic benchmark."""
    return lambda device: number(LQ().optimum())


def rate_at_the_optimum(device: torch.device) -> float:
    """q(x, a) − γ ln π(a|x) of the best policy at one place: 0 is Bellman's equation."""
    best, x, a = LQ().optimum(), 0.7, -0.4
    z = (a - best.slope * x - best.intercept) ** 2 / best.variance
    log_prob = -(z + math.log(2 * math.pi * best.variance)) / 2
    return float(best.rate(x, a)) - LQ().temperature * log_prob


def occupation_by_clocks(device: torch.device) -> float:
    """E X_τ² at random clocks τ ~ Exp(1) of dX = −.7X dt + .5 dW from 1.5."""
    clocks = exponential_times(200_000, 1.0, generator=torch.Generator().manual_seed(0))
    return float(_second_moment(clocks.double()).mean())


def occupation_by_weights(device: torch.device) -> float:
    """∫₀^∞ e^{−t} E X_t² dt as a sum over a grid."""
    times = 1e-3 * torch.arange(20_000, dtype=F64)
    weights = occupation_weights(len(times), 1e-3, 1.0).double()
    return float(weights @ _second_moment(times))


def _second_moment(t: Tensor) -> Tensor:
    stationary = 0.25 / 1.4
    return 1.5**2 * torch.exp(-1.4 * t) - stationary * torch.expm1(-1.4 * t)


@measurement
def of_tilt(device: torch.device, number: Callable[..., Tensor]) -> float:
    """A number of the best law for the reward."""
    return float(number(BASE, TARGET, KAPPA))


def value_without_signal(device: torch.device) -> float:
    """The optimal value at pure noise, minus the optimum."""
    x = torch.tensor([[-1.0], [2.0]], dtype=F64)
    value = optimal_value(BASE, TARGET, KAPPA, x, 1e-9, 1.0)
    return float((value - optimum(BASE, TARGET, KAPPA)).abs().max())


def control_is_the_slope(device: torch.device) -> float:
    """Largest difference of s* − s_pre from ∇V*/κ, by automatic differentiation."""
    with torch.enable_grad():
        x = torch.linspace(-2, 3, 9, dtype=F64)[:, None].requires_grad_()
        value = optimal_value(BASE, TARGET, KAPPA, x, 0.6, 0.8)
        (slope,) = torch.autograd.grad(value.sum(), x)
    x = x.detach()
    moved = optimal_score(BASE, TARGET, KAPPA, x, 0.6, 0.8) - BASE.diffused(0.6, 0.8).score(x)
    return float((moved - slope / KAPPA).abs().max())


def surrogate_slope(device: torch.device) -> float:
    """Largest difference of the clipped surrogate's gradient at ratio 1 from REINFORCE's."""
    advantage = torch.linspace(-2, 2, 5, device=device)
    with torch.enable_grad():
        log_prob = torch.zeros(5, device=device, requires_grad=True)
        total = clipped_surrogate(log_prob, log_prob.detach(), advantage, 0.2).sum()
        (slope,) = torch.autograd.grad(total, log_prob)
    return float((slope - advantage).abs().max())


def rate_of_no_change(device: torch.device) -> float:
    """The advantage rate of the policy's own action."""
    value, action, reference = torch.randn(
        3, 4, 6, dtype=F64, generator=torch.Generator().manual_seed(0)
    ).to(device)
    g_sq = torch.ones(4, dtype=F64, device=device)
    return float(advantage_rate(value, action, action, reference, g_sq, 0.3).abs().max())


def _path(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Values [2, 7], rewards [2, 6] and steps [6] of two paths."""
    wave = torch.sin(torch.arange(26, dtype=F64, device=device) ** 2)
    return wave[:14].view(2, 7), wave[14:].view(2, 6), 0.1 + wave[:6] ** 2


def advantage_of_one_step(device: torch.device) -> float:
    """Largest difference of GAE(0) from the increments of the value."""
    return float((gae(*_path(device), decay=0.0) - td_advantage(*_path(device))).abs().max())


def advantage_of_all_steps(device: torch.device) -> float:
    """Largest difference of GAE(1) from the discounted return to go less the value."""
    values, rewards, dt = _path(device)
    returns = returns_to_go(rewards, values[:, -1], dt, 0.4)
    return float((gae(values, rewards, dt, 0.4, decay=1.0) - returns + values[:, :-1]).abs().max())


def advantage_between(device: torch.device) -> float:
    """GAE(.3) where the value falls like 1 − t², in 20,000 steps: ∫ .3^t 2t dt, negative."""
    times = torch.linspace(0, 1, 20_001, dtype=F64, device=device)
    return float(gae(1 - times**2, torch.zeros_like(times[1:]), times.diff(), decay=0.3)[0])


# ---------------------------------------------------------------------------- distances


@measurement
def in_the_plane(device: torch.device, distance: Callable[..., float]) -> float:
    """A squared distance between N(0, diag(1, 4)) and N(0, diag(2, ½))."""
    one, other = (torch.tensor(d, dtype=F64, device=device) for d in ([1.0, 4.0], [2.0, 0.5]))
    zero = torch.zeros(2, dtype=F64, device=device)
    return distance(zero, torch.diag(one), zero, torch.diag(other)) ** 2


def mmd(device: torch.device) -> float:
    """MMD² of two Gaussians on the line."""
    return metrics.mmd_gaussian(0, 1, 0.5, 0.64)


def quantile_distance(device: torch.device) -> float:
    """W2² of one point and two: half of the mass moves by 2."""
    one, two = torch.tensor([0.0], device=device), torch.tensor([0.0, 2.0], device=device)
    return metrics.wasserstein_1d(one, two) ** 2


_TILT = "arXiv 2409.08400 §3"
_OCCUPATION = "arXiv 2305.18901"
_LQ = "arXiv 2305.18901, its Riccati equation"
_CLOSED = "closed form"
_GAE = "arXiv 1506.02438, telescoping"
_LOG = math.log(0.3)
_BETWEEN = -2 * (1 - 0.3 + 0.3 * _LOG) / _LOG**2
_APART = 1 / 0.64 - 1 / 0.73

LAWS = (
    Law("denoising − explicit score matching", _APART, denoising_gap, 1e-9, "Vincent 2011"),
    Law("explicit − implicit score matching", 1 / 0.73, implicit_gap, 1e-9, "Hyvärinen 2005"),
    Law("ln p by the probability flow", 0, likelihood, 1e-3, "arXiv 2011.13456 eq. 39"),
    Law("LQ optimum: k₂", -0.5351837585, riccati(lambda best: best.k2), 1e-9, _LQ),
    Law("LQ optimum: slope", -0.3944487245, riccati(lambda best: best.slope), 1e-9, _LQ),
    Law("LQ optimum: objective", 0.4515568624, riccati(lambda best: best.objective), 1e-9, _LQ),
    Law("LQ optimum: rate = γ ln π", 0, rate_at_the_optimum, 1e-9, "Bellman's equation"),
    Law("occupation time by random clocks", 1.0416667, occupation_by_clocks, 6e-3, _OCCUPATION),
    Law("occupation time by weights", 1.0416667, occupation_by_weights, 1.5e-3, _OCCUPATION),
    Law("tilt of N(1, ¼): optimum", -0.673287, of_tilt(lambda *laws: optimum(*laws)), 1e-6, _TILT),
    Law("tilt of N(1, ¼): KL", 0.5966, of_tilt(lambda *laws: tilt_kl(*laws)), 5e-5, _TILT),
    Law("tilt of N(1, ¼): value at noise", 0, value_without_signal, 1e-6, _TILT),
    Law("tilt of N(1, ¼): control is ∇V/κ", 0, control_is_the_slope, 1e-9, _TILT),
    Law("clipped surrogate: slope at ratio 1", 0, surrogate_slope, 0, "arXiv 1707.06347"),
    Law("advantage rate of no change", 0, rate_of_no_change, 0, "arXiv 2409.08400"),
    Law("GAE(0): the increment of the value", 0, advantage_of_one_step, 1e-12, _GAE),
    Law("GAE(1): return less value", 0, advantage_of_all_steps, 1e-12, _GAE),
    Law("GAE(.3) in many steps", _BETWEEN, advantage_between, 2e-4, _GAE),
    Law(
        "W2² of two Gaussians in the plane",
        1.8431,
        in_the_plane(lambda *laws: metrics.wasserstein_gaussian(*laws)),
        5e-5,
        _CLOSED,
    ),
    Law(
        "sliced W2² of the same two",
        0.558191,
        in_the_plane(lambda *laws: metrics.sliced_wasserstein_gaussian(*laws)),
        1e-6,
        _CLOSED,
    ),
    Law("MMD² of N(0, 1) and N(½, .64)", 0.065625, mmd, 5e-7, _CLOSED),
    Law("W2² of one point and two", 2.0, quantile_distance, 1e-9, _CLOSED),
)
