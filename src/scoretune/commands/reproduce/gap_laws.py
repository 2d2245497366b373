"""What the page on the reward gap's closed forms is made of: the laws, and numbers about them.

After arXiv 2510.10767. The policy is the exact score of p* ∝ p e^{r/κ}, the best that tuning with
a KL term can find, for r = −(x − 1)²; it is sampled by SDEs of any η and by the ODE, all from
N(0, π²). Everything is in closed form or a quadrature; samplers are run as a check.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from scoretune.commands.reproduce.base import Numbers
from scoretune.diffusion import grids
from scoretune.diffusion.estimates import Estimate
from scoretune.diffusion.kernels import GDDIM, Constant, EulerMaruyama, Kernel
from scoretune.diffusion.paths import kl_factor
from scoretune.diffusion.processes import EDM, VP, Process, Tabulated, expand
from scoretune.diffusion.solvers import dpm_solver
from scoretune.diffusion.solvers.base import KernelSampler
from scoretune.diffusion.solvers.edm import edm_heun
from scoretune.diffusion.theory import contraction, gaussian, reward_gap
from scoretune.rl import tilt

F64 = torch.float64
CENTRE = 1.0
REWARD = tilt.Quadratic.around([CENTRE], 2.0)  # −(x − 1)²
PAIR = tilt.Mixture.of([0.3, 0.7], [[-1.0], [1.0]], 0.04)
ETAS = (0.5, 1.0, 1.2, 1.5, 2.0)
NOISES = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
DECAYS = (2.0, 4.0, 6.0, 8.0, 10.05)
FINE = tuple(10 ** (k / 5) for k in range(16)), tuple(1 + k for k in range(20))
"""Of the figures: noises to 1000 and decays to 20."""
KL_WEIGHTS = (0.1, 0.3, 1.0, 3.0, 10.0)
STEPS, STEPPED, END = (10, 20, 40, 80, 160, 1000), EDM(5.0), 1e-3
SAMPLERS: dict[str, tuple[Kernel, float]] = {  # kernel, and the η that it tends to
    **{f"gDDIM, η = {eta:g}": (GDDIM(eta), eta) for eta in (0.5, 1.0, 1.2, 2.0)},
    "Euler–Maruyama, η = 1": (EulerMaruyama(Constant(1.0)), 1.0),
}
LEVELS = (0.3, 0.5, 0.7, 1.0, 1.2, 1.305, 1.5, 2.0, 3.0, 5.0)


def ve(noise: float) -> Process:
    """VE with σ_T = T = `noise`."""
    return EDM(noise)


def vp(decay: float) -> Process:
    """VP with ∫β = `decay`: of β, nothing else matters here."""
    return VP(decay, decay)


def best(kl_weight: float = 1.0) -> dict[str, float]:
    """N(m, s²): the tilt of N(0, 1), and the reward's centre. N(2/3, 1/3) for κ = 1."""
    law, _ = tilt.tilted(tilt.Mixture.gaussian([0.0], 1.0), REWARD, kl_weight)
    return {"mean": float(law.mean), "variance": float(law.variance), "centre": CENTRE}


MEAN, VARIANCE = best()["mean"], best()["variance"]


def slope(x: Tensor) -> Tensor:
    """r'(x)."""
    return -2 * (x - CENTRE)


def closed_forms() -> Numbers:
    """Rewards and gaps of the best law by noise, by decay, under Stable Diffusion's table, and by
    how far it was tuned."""
    law = best()
    numbers: Numbers = {"rate": reward_gap.gap_rate(**law), "best": worth(law, None, 0.0)}
    for name, make, levels in (("VE", ve, NOISES), ("VP", vp, DECAYS)):
        numbers[name] = {f"{x:g}": row(make(x), law) for x in levels}
    for name, make, fine in (("VE", ve, FINE[0]), ("VP", vp, FINE[1])):
        numbers[f"fine {name}"] = [reward_gap.gap(make(x), eta=1.0, **law) for x in fine]
        leading = [reward_gap.asymptotic_gap(make(x), **law) for x in fine]
        numbers[f"leading {name}"] = leading
    numbers["table"] = row(Tabulated.scaled_linear(), law)
    numbers["tilts"] = {
        f"{weight:g}": [reward_gap.gap(ve(10.0), eta=eta, **best(weight)) for eta in (1.0, 2.0)]
        for weight in KL_WEIGHTS
    }
    return numbers


def row(process: Process, law: dict[str, float]) -> Numbers:
    """The ODE's reward, the SDE's of η = 1, and gaps by η."""
    return {
        "ode": worth(law, process, 0.0),
        "sde": worth(law, process, 1.0),
        "gaps": [reward_gap.gap(process, eta=eta, **law) for eta in ETAS],
    }


def worth(law: dict[str, float], process: Process | None, eta: float) -> float:
    """E r under the process, or of the law itself."""
    if process is None:
        return reward_gap.expected((law["mean"], law["variance"]), law["centre"])
    return reward_gap.reward(process, eta=eta, **law)


def finite_steps(counts: list[int]) -> Numbers:
    """Gaps to DDIM on the same times, and W2 of each sampler to the law, by number of steps."""
    numbers: Numbers = {"ode": [], "distance": {name: [] for name in SAMPLERS}}
    gaps: dict[str, list[float]] = {name: [] for name in SAMPLERS}
    for count in counts:
        times = grids.karras(STEPPED, count, t_end=END, dtype=F64)

        def by(kernel: Kernel, times: Tensor = times) -> float:
            return reward_gap.expected(arrived(kernel, times), CENTRE)

        ode = by(GDDIM(0.0))
        numbers["ode"].append(ode)
        for name, (kernel, _) in SAMPLERS.items():
            gaps[name].append(by(kernel) - ode)
            bias = reward_gap.sampler_bias(STEPPED, kernel, times, VARIANCE, mean=MEAN)
            numbers["distance"][name].append(bias)
    exact = {
        name: reward_gap.gap(STEPPED, eta=eta, **best()) for name, (_, eta) in SAMPLERS.items()
    }
    return numbers | {"gaps": gaps, "exact": exact}


def arrived(kernel: Kernel, times: Tensor) -> gaussian.Moments:
    """Moments of a sampler's samples of the best law."""
    return gaussian.after_steps(STEPPED, kernel, times, mean=MEAN, variance=VARIANCE)


def two_modes(every: int = 1) -> Numbers:
    """Gaps of a law with two modes, and the rate of σ_T/α_T times these; of the figures' levels
    every so many, the last included."""
    numbers: Numbers = {"rate": reward_gap.smooth_gap_rate(PAIR, slope)}
    for name, make, fine in (("VE", ve, FINE[0]), ("VP", vp, FINE[1])):
        numbers[name] = [reward_gap.smooth_gap(make(x), PAIR, slope) for x in thinned(fine, every)]
    for name, make, levels in (("VE rows", ve, NOISES), ("VP rows", vp, DECAYS)):
        numbers[name] = {f"{x:g}": reward_gap.smooth_gap(make(x), PAIR, slope) for x in levels}
    return numbers | {"best": float(REWARD.mean(PAIR))}


def thinned(levels: Sequence[float], every: int) -> list[float]:
    """Every so many of some levels, counted back from the last."""
    return list(levels[::-every][::-1])


def how_much(levels: list[float]) -> Numbers:
    """By η: a constant error of ε̂ in the samples, in units of s; what a path KL costs; the gap."""
    amplified = [
        contraction.noise_amplification(math.inf, variance=1.0, eta=level) for level in levels
    ]
    factors = kl_factor(torch.tensor(levels, dtype=F64)).tolist()
    gaps = [reward_gap.gap(ve(10.0), eta=level, **best()) for level in levels]
    return {"amplified": amplified, "factor": factors, "gaps": gaps}


@torch.no_grad()
def simulated(seed: int, paths: int, steps: int) -> Numbers:
    """Of samples: the mean reward, its standard error, and what is claimed of it; `steps` are those
    of the solvers of order 2, all else takes 20 or is exact."""
    generator = torch.Generator().manual_seed(seed)

    def start() -> Tensor:
        return STEPPED.prior_std * torch.randn(paths, 1, generator=generator, dtype=F64)

    def seen(x: Tensor, claimed: float) -> list[float]:
        rewards = REWARD(x)
        return [float(rewards.mean()), float(rewards.std()) / paths**0.5, claimed]

    checks: Numbers = {}
    ends = torch.tensor([[STEPPED.horizon], [0.0]], dtype=F64).expand(-1, paths)
    for eta in (0.0, *ETAS):
        step = gaussian.transition(STEPPED, start(), *ends, mean=MEAN, variance=VARIANCE, eta=eta)
        claimed = worth(best(), STEPPED, eta)
        checks[f"one exact step, η = {eta:g}"] = seen(step.draw(generator), claimed)
    times = grids.karras(STEPPED, 20, t_end=END, dtype=F64)
    for name, (kernel, _) in SAMPLERS.items():
        field = gaussian.exact(STEPPED, mean=MEAN, variance=VARIANCE)
        x = KernelSampler(kernel)(STEPPED, field, start(), times, generator=generator)
        claimed = reward_gap.expected(arrived(kernel, times), CENTRE)
        checks[f"20 steps of {name}"] = seen(x, claimed)
    fine = grids.karras(STEPPED, steps, t_end=END, dtype=F64)
    top = float(REWARD.mean(PAIR))
    by_ode, by_sde = (
        top - reward_gap.lost(PAIR, slope, partial(cdf, STEPPED, PAIR))
        for cdf in (reward_gap.ode_cdf, reward_gap.sde_cdf)
    )
    x = edm_heun(STEPPED, pair_estimate, start(), fine)
    checks["two modes, ODE"] = seen(x, by_ode)
    x = dpm_solver.dpmpp_2m_sde(STEPPED, pair_estimate, start(), fine, eta=1.0, generator=generator)
    checks["two modes, SDE"] = seen(x, by_sde)
    return checks


def pair_estimate(x: Tensor, t: Tensor) -> Estimate:
    """The exact estimates of the law with two modes."""
    alpha, sigma = STEPPED.alpha(t), STEPPED.sigma(t)
    data = PAIR.posterior(x, alpha, sigma).mean
    return Estimate(data, (x - expand(alpha, x) * data) / expand(sigma, x))
