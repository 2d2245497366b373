"""The forward processes of the tutorial, and its family of reverse processes, on Gaussian data.

arXiv 2402.07487: (f, g²) are integrated and compared with α and σ; the moments of the reverse
process of any stochasticity η are integrated and compared with the closed form; and both with
Euler–Maruyama paths. Data N(1, ¼).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scoretune.commands.reproduce.base import Cell, Numbers, Page
from scoretune.commands.reproduce.drawing import COLOURS, legend_outside, subplots
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
    drift_rate,
    noise_ratio,
)
from scoretune.diffusion.solvers.stochastic import euler_maruyama
from scoretune.diffusion.theory import gaussian

MEAN, VARIANCE = 1.0, 0.25
PROCESSES: dict[str, Process] = {
    "OU": OU(),
    "VE(.01, 50)": VE(),
    "EDM, T = 80": EDM(),
    "VP(.1, 20)": VP(),
    "sub-VP(.1, 20)": SubVP(),
    "COU, σ̄ = 10, T = 3": ContractiveOU(1.0, 10.0, 3.0),
    "CVP(.01, 8)": ContractiveVP(0.01, 8.0),
    "CsubVP(.01, 8)": ContractiveSubVP(0.01, 8.0),
    "CsubVP(1, 8)": ContractiveSubVP(1.0, 8.0),
    "rectified flow": RectifiedFlow(),
    "cosine": Cosine(),
}
ETAS = (0.0, 0.5, 1.0, 1.5, 2.0)
EXPECTED = {  # (mean, std) at t = 0 from the prior, for η = 0, 1
    "VE(.01, 50)": ((0.990000, 0.499975), (0.999900, 0.5)),
    "EDM, T = 80": ((0.993750, 0.499990), (0.999961, 0.5)),
    "VP(.1, 20)": ((0.996714, 0.500008), (0.999989, 0.5)),
    "sub-VP(.1, 20)": ((0.996714, 0.500019), (0.999989, 0.5)),
    "COU, σ̄ = 10, T = 3": ((0.929378, 0.498752), (0.995013, 0.499994)),
    "CVP(.01, 8)": ((0.549490, 0.446386), (0.797041, 0.489594)),
    "CsubVP(.01, 8)": ((0.931410, 0.498822), (0.995295, 0.499994)),
    "CsubVP(1, 8)": ((0.946784, 0.499292), (0.997168, 0.499998)),
}
PATHS_ETAS = (0.5, 1.0)


def cells(seeds: int, quick: bool) -> list[Cell]:
    """One for each process; a seed is a seed of its paths."""
    size = {"steps": 40, "paths": 100} if quick else {"steps": 2000, "paths": 10_000}
    return [
        Cell(f"process-{index}", examined, {"process": name, "seeds": seeds, **size})
        for index, name in enumerate(PROCESSES)
    ]


def examined(process: str, seeds: int, steps: int, paths: int) -> Numbers:
    """Integration errors of a process and of its reverse family, and what paths find."""
    forward = PROCESSES[process]
    last = torch.tensor(_last(forward), dtype=torch.float64)
    numbers: Numbers = {
        "marginals": marginals(forward, steps),
        "prior_std": forward.prior_std,
        "alpha": float(forward.alpha(last)),
        "ratio": float(noise_ratio(forward, last)),
    }
    if math.isfinite(numbers["ratio"]) and last == forward.horizon:
        numbers["moments"] = {f"{eta:g}": moments(forward, eta, steps) for eta in ETAS}
        numbers["exact"] = {f"{eta:g}": list(_arrival(forward, eta)) for eta in ETAS}
        numbers["paths"] = {
            f"{eta:g}": [simulated(forward, eta, seed, steps, paths) for seed in range(seeds)]
            for eta in PATHS_ETAS
        }
    return numbers


def _last(process: Process) -> float:
    """The horizon; just before it where f is infinite there."""
    return 0.99 if isinstance(process, RectifiedFlow) else process.horizon


def _arrival(process: Process, eta: float) -> tuple[float, float]:
    mean, variance = gaussian.arrival(process, mean=MEAN, variance=VARIANCE, eta=eta)
    return mean, math.sqrt(variance)


def marginals(process: Process, steps: int) -> float:
    """Largest relative error of α and σ² by Runge–Kutta on α' = fα, (σ²)' = 2fσ² + g²."""
    start, end = 1e-3 * process.horizon, _last(process)
    times = torch.linspace(start, end, steps + 1, dtype=torch.float64)

    def slope(t: Tensor, y: Tensor) -> Tensor:
        f, g_sq = drift_rate(process, t), diffusion_sq(process, t)
        return torch.stack([f * y[0], 2 * f * y[1] + g_sq])

    first = torch.stack([process.alpha(times[0]), process.sigma(times[0]) ** 2])
    solution = runge_kutta(slope, first, times)
    exact = torch.stack([process.alpha(times), process.sigma(times) ** 2], 1)
    return float((solution / exact - 1).abs().max())


def moments(process: Process, eta: float, steps: int) -> float:
    """Largest error of mean and standard deviation on the way from the prior to the data:

    m' = f m + (1+η²)/2 g²/v (m − αμ) and V' = 2κV − η²g² against the closed form.
    """
    times = process.horizon * torch.linspace(1, 1e-3, steps + 1, dtype=torch.float64) ** 2

    def slope(t: Tensor, y: Tensor) -> Tensor:
        f, g_sq = drift_rate(process, t), diffusion_sq(process, t)
        pull = (1 + eta**2) / 2 * g_sq / gaussian.state_variance(process, t, VARIANCE)
        mean = f * y[0] + pull * (y[0] - process.alpha(t) * MEAN)
        return torch.stack([mean, 2 * (f + pull) * y[1] - eta**2 * g_sq])

    start = torch.tensor([0.0, process.prior_std**2], dtype=torch.float64)
    solution = runge_kutta(slope, start, times)
    x = torch.zeros(len(times), 1, dtype=torch.float64)
    kept = gaussian.transition(
        process, x, times[:1].expand(len(x)), times, mean=MEAN, variance=VARIANCE, eta=eta
    )
    ahead = gaussian.transition(
        process, x + 1, times[:1].expand(len(x)), times, mean=MEAN, variance=VARIANCE, eta=eta
    )
    slopes = (ahead.mean - kept.mean)[:, 0]
    variance = slopes**2 * process.prior_std**2 + kept.std[:, 0] ** 2
    scale = gaussian.state_variance(process, times, VARIANCE).sqrt()
    errors = (solution[:, 0] - kept.mean[:, 0]) / scale, (solution[:, 1] / variance).sqrt() - 1
    return float(torch.stack(errors).abs().max())


def runge_kutta(slope: Callable[[Tensor, Tensor], Tensor], first: Tensor, times: Tensor) -> Tensor:
    """The classical scheme of order 4 along `times`: the states [N, *S]."""
    y, solution = first, [first]
    for k in range(len(times) - 1):
        t, h = times[k], times[k + 1] - times[k]
        one = slope(t, y)
        two = slope(t + h / 2, y + h / 2 * one)
        three = slope(t + h / 2, y + h / 2 * two)
        four = slope(t + h, y + h * three)
        y = y + h / 6 * (one + 2 * two + 2 * three + four)
        solution.append(y)
    return torch.stack(solution)


@torch.no_grad()
def simulated(process: Process, eta: float, seed: int, steps: int, paths: int) -> list[float]:
    """Mean and standard deviation of Euler–Maruyama's samples from the prior."""
    generator = torch.Generator().manual_seed(seed)
    x = process.prior_std * torch.randn(paths, 1, generator=generator)
    times = process.horizon * torch.linspace(1, 1e-3, steps + 1, dtype=torch.float64) ** 2
    field = gaussian.exact(process, mean=MEAN, variance=VARIANCE)
    x = euler_maruyama(process, field, x, times, eta=eta, generator=generator)
    return [float(x.mean()), float(x.std())]


# ------------------------------------------------------------------------------------ the page


def present(results: dict[str, Numbers], page: Page) -> Numbers:
    """The processes, their reverses, and what was simulated."""
    processes = {name: results[f"process-{k}"] for k, name in enumerate(PROCESSES)}
    page.text(ABOUT)
    page.table(
        ["process", "α_T", "σ/α at T", "prior std", "(f, g²) against α and σ"],
        [
            [n, f"{r['alpha']:.6g}", f"{r['ratio']:.6g}", f"{r['prior_std']:.6g}"]
            + [f"{r['marginals']:.0e}"]
            for n, r in processes.items()
        ],
    )
    page.text(REVERSE)
    rows, paths = [], []
    for name, r in processes.items():
        if "exact" not in r:
            continue
        worst = max(r["moments"].values())
        means = [f"{r['exact'][f'{eta:g}'][0]:.6f}" for eta in ETAS]
        stds = [f"{r['exact'][f'{eta:g}'][1]:.6f}" for eta in (0.0, 1.0)]
        rows.append([name, *means, *stds, f"{worst:.0e}"])
        for eta in PATHS_ETAS:
            drawn = r["paths"][f"{eta:g}"]
            pooled = [sum(column) / len(drawn) for column in zip(*drawn, strict=True)]
            exact = r["exact"][f"{eta:g}"]
            pairs = zip(pooled, exact, strict=True)
            paths.append([name, f"{eta:g}", *(f"{a:.4f} ({b:.4f})" for a, b in pairs)])
    page.table(
        ["process", *(f"mean, η = {e:g}" for e in ETAS), "std, η = 0", "std, η = 1", "error"], rows
    )
    page.text(PATHS)
    page.table(["process", "η", "mean (exact)", "std (exact)"], paths)
    page.figure("processes", _draw(), "signal, noise and their quotient by share of the horizon")
    return processes


def _draw() -> Any:
    figure, panels = subplots(1, 3, size=(9.8, 4.0))
    shown = ("VP(.1, 20)", "sub-VP(.1, 20)", "VE(.01, 50)", "CVP(.01, 8)", "CsubVP(.01, 8)")
    share = torch.linspace(0.002, 1, 300, dtype=torch.float64)
    for k, (axes, title) in enumerate(zip(panels, ("α", "σ", "σ/α"), strict=True)):
        for name, colour in zip((*shown, "rectified flow"), COLOURS, strict=True):
            process = PROCESSES[name]
            t = share[share < 0.995] if name == "rectified flow" else share
            at = t * process.horizon
            curve = (process.alpha(at), process.sigma(at), noise_ratio(process, at))[k]
            axes.plot(t, curve, color=colour, label=name)
        axes.set(title=title, xlabel="t / T", yscale="log")
    legend_outside(figure, "lower center", ncols=6)
    return figure


ABOUT = """
## Forward

The last column is the largest relative error of α and σ² when α' = fα and (σ²)' = 2fσ² + g² are
integrated (Runge–Kutta, 2,000 steps): that (f, g²) and (α, σ) are the same process. Rectified flow
is integrated to t = 0.99, since f is infinite at 1.
"""
REVERSE = """
## Reverse

dx = [f x − (1+η²)/2 g² ∇ln p] dt + η g dw̄ has the marginals of the forward process for every η, if
it starts from p_T. Started from the prior N(0, π²) it ends, for data N(1, ¼), at the mean and
standard deviation below, by the closed form (`diffusion.gaussian.arrival`). What the prior gets
wrong is remembered by the ODE (η = 0) and forgotten by the SDE. The last column is the largest
error, over η and times, of the moments integrated from the SDE itself.
"""
PATHS = """
## Paths

Euler–Maruyama, 2,000 steps, 10,000 paths a seed.
"""
