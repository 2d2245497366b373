"""One network, many processes, no retraining: what changes with the process and what cannot.

Theorem 4 of arXiv 2401.13115 (VE to contractive sub-VP): with τ and c such that ρ_A(τ) = ρ_B(t) and
c = α_B(t)/α_A(τ) the score is s_B(x, t) = s_A(x/c, τ)/c. Checked on a mixture in closed form, then
done with a network that was trained under VE.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scoretune.commands.reproduce.base import Cell, Numbers, Page, by_arm, interval, shown
from scoretune.commands.reproduce.denoiser import END
from scoretune.commands.reproduce.drawing import COLOURS, legend_outside, name_ticks, subplots
from scoretune.commands.reproduce.swiss_roll import learned, roll
from scoretune.diffusion.estimates import Field
from scoretune.diffusion.processes import VE, VP, ContractiveSubVP, Process, SubVP, time_of_ratio
from scoretune.diffusion.recycling import matched, recycled
from scoretune.diffusion.solvers import ddim, dpmpp_2m, euler, heun
from scoretune.diffusion.solvers.runge_kutta import rk45
from scoretune.diffusion.solvers.stochastic import euler_maruyama, gddim
from scoretune.evaluate.metrics import sliced_wasserstein
from scoretune.rl import tilt

Walk = Callable[..., Tensor]

BASE = VE(0.01, 50.0)
OTHERS: dict[str, Process] = {
    "VE": BASE,
    "VP": VP(0.1, 15.0),  # starts from ρ = 43.6, less than VE's 50
    "sub-VP": SubVP(0.1, 15.0),
    "CsubVP": ContractiveSubVP(0.01, 8.0),
}
EXPECTED = {0.1: 0.168928, 0.5: 0.546024, 1.0: 0.773644}  # τ of CsubVP's times
STEPS = (10, 20, 40, 80)
IN_RATIO: dict[str, Walk] = {"DDIM": ddim, "DPM-Solver++ 2M": dpmpp_2m, "gDDIM(1)": gddim}
IN_TIME: dict[str, Walk] = {"Euler": euler, "Heun": heun, "Euler–Maruyama": euler_maruyama}


def cells(seeds: int, quick: bool) -> list[Cell]:
    """The theorem, then the network of every seed."""
    size = {"updates": 20, "n": 50} if quick else {"updates": 12_000, "n": 4_000}
    return [
        Cell("theorem", theorem, {}),
        *(Cell(f"network-{seed}", network, {"seed": seed, **size}) for seed in range(seeds)),
    ]


def theorem() -> Numbers:
    """τ at three times; largest errors of density and score of a mixture, with and without 1/c."""
    process, law = OTHERS["CsubVP"], tilt.Mixture.of([0.3, 0.7], [[-1.0], [0.5]], 0.1)
    x = torch.linspace(-12, 12, 201, dtype=torch.float64)[:, None]
    numbers: Numbers = {"tau": {}, "density": 0.0, "score": 0.0, "without": 0.0}
    for t in EXPECTED:
        tau, c = matched(BASE, process, torch.tensor([t], dtype=torch.float64))
        numbers["tau"][f"{t:g}"] = float(tau)
        marginal = law.diffused(*_levels(process, t))
        base = law.diffused(*_levels(BASE, float(tau)))
        density = (marginal.log_density(x).exp() - base.log_density(x / c).exp() / c).abs().max()
        numbers["density"] = max(numbers["density"], float(density))
        scores = marginal.score(x), base.score(x / c)
        numbers["score"] = max(numbers["score"], float((scores[0] - scores[1] / c).abs().max()))
        numbers["without"] = max(numbers["without"], float((scores[0] - scores[1]).abs().max()))
    return numbers


def _levels(process: Process, t: float) -> tuple[float, float]:
    at = torch.tensor(t, dtype=torch.float64)
    return float(process.alpha(at)), float(process.sigma(at))


def network(seed: int, updates: int, n: int) -> Numbers:
    """Samples of VE's network under every process, from the same noise."""
    model = learned(BASE, seed, updates)
    generator = torch.Generator().manual_seed(seed)
    noise, real = torch.randn(n, 2, generator=generator), roll(n, 1000 + seed)
    return {
        "in ratio": {name: _apart(model.under(BASE), name, noise) for name in IN_RATIO},
        "rk45": _flow(model.under(BASE), noise[: n // 8]),
        "in time": {
            process: {
                name: [_far(model.under(BASE), process, name, k, noise, real) for k in STEPS]
                for name in IN_TIME
            }
            for process in OTHERS
        },
    }


@torch.no_grad()
def _apart(field: Field, name: str, noise: Tensor) -> float:
    """Largest difference of x/α between processes on one grid of σ/α, 7 to 0.01 in 20 steps."""
    ratios = torch.linspace(7 ** (1 / 7), END ** (1 / 7), 21, dtype=torch.float64) ** 7
    ends = []
    for process in OTHERS.values():
        times = time_of_ratio(process, ratios)
        x = 7 * float(process.alpha(times[0])) * noise.double()
        extra = {"generator": torch.Generator().manual_seed(0)} if name == "gDDIM(1)" else {}
        x = IN_RATIO[name](process, recycled(_wide(field), BASE, process), x, times, **extra)
        ends.append(x / float(process.alpha(times[-1])))
    return max(float((x - ends[0]).abs().max()) for x in ends[1:])


def _wide(field: Field) -> Field:
    """The network in float32, its answer in float64: rounding of x/α is not what is measured."""

    def in_double(x: Tensor, t: Tensor) -> Any:
        estimate = field(x.float(), t)
        sigma = BASE.sigma(t)[:, None]
        data = estimate.data.double()
        return type(estimate)(data, (x - data) / sigma)

    return in_double


@torch.no_grad()
def _flow(field: Field, noise: Tensor) -> float:
    """Largest difference of x/α between processes, each on its own exact probability flow."""
    ends = []
    for process in OTHERS.values():
        start, end = time_of_ratio(process, torch.tensor([7.0, END], dtype=torch.float64))
        x = 7 * float(process.alpha(start)) * noise.double()
        times = torch.stack([start, end])
        x = rk45(process, recycled(_wide(field), BASE, process), x, times, rtol=1e-6, atol=1e-6)
        ends.append(x / float(process.alpha(end)))
    return max(float((x - ends[0]).abs().max()) for x in ends[1:])


@torch.no_grad()
def _far(field: Field, process: str, name: str, steps: int, noise: Tensor, real: Tensor) -> float:
    """Sliced W2 of samples and data on a uniform grid of the process's own time, from σ/α = 7."""
    target = OTHERS[process]
    start, end = time_of_ratio(target, torch.tensor([7.0, 2 * END], dtype=torch.float64))
    times = torch.linspace(float(start), float(end), steps + 1, dtype=torch.float64)
    x = 7 * float(target.alpha(start)) * noise
    extra = {"generator": torch.Generator().manual_seed(1)} if name.endswith("Maruyama") else {}
    borrowed = recycled(field, BASE, target)
    x = IN_TIME[name](target, borrowed, x, times, **extra)
    return sliced_wasserstein(borrowed(x, times[-1].expand(len(x))).data, real)


# ------------------------------------------------------------------------------------ the page


def present(results: dict[str, Numbers], page: Page) -> Numbers:
    """The theorem, what is the same, and what is not."""
    proved, runs = results["theorem"], by_arm(results)["network"]
    page.text(ABOUT)
    page.table(
        ["t of CsubVP", "τ of VE", "expected"],
        [[t, f"{v:.6f}", f"{EXPECTED[float(t)]:.6f}"] for t, v in proved["tau"].items()],
    )
    page.text(
        "On a mixture of two Gaussians p_B(t, x) − p_A(τ, x/c)/c is at most "
        f"{proved['density']:.0e}, and s_B(x, t) − s_A(x/c, τ)/c at most {proved['score']:.0e}. "
        f"Without the factor 1/c the score would be off by up to {proved['without']:.2g}."
    )
    page.text(SAME)
    same = {name: max(run["in ratio"][name] for run in runs) for name in IN_RATIO}
    same["adaptive Runge–Kutta, own time"] = max(run["rk45"] for run in runs)
    page.table(["sampler", "largest difference"], [[n, f"{v:.0e}"] for n, v in same.items()])
    page.text(OTHER)
    rows, spreads = [], dict[str, Any]()
    for process in OTHERS:
        spreads[process] = {}
        for name in IN_TIME:
            columns = zip(*(run["in time"][process][name] for run in runs), strict=True)
            spreads[process][name] = [interval(column) for column in columns]
            rows.append([process, name, *(shown(s) for s in spreads[process][name])])
    page.table(["process", "sampler", *(f"{k} steps" for k in STEPS)], rows)
    page.figure("recycling", _draw(spreads), "sliced W2 of one network under four processes")
    return {"theorem": proved, "largest difference": same, "in time": spreads}


def _draw(spreads: dict[str, Any]) -> Any:
    figure, panels = subplots(1, 3, sharey=True, size=(9.6, 3.8))
    for axes, name in zip(panels, IN_TIME, strict=True):
        for process, colour in zip(OTHERS, COLOURS, strict=False):
            bands = spreads[process][name]
            axes.plot(STEPS, [b[0] for b in bands], color=colour, marker="o", ms=4, label=process)
            axes.fill_between(
                STEPS, [b[1] for b in bands], [b[2] for b in bands], color=colour, alpha=0.15, lw=0
            )
        axes.set(title=name, xlabel="steps of native time", xscale="log", yscale="log")
        name_ticks(axes, STEPS)
    figure.axes[0].set_ylabel("sliced W2")
    legend_outside(figure, "right center")
    return figure


ABOUT = """
## The theorem

`diffusion.recycling` asks a network of one process what another process needs to know.
"""
SAME = """
## What is the same

A perceptron is trained on a Swiss roll under VE(.01, 50), and run as VE, VP, sub-VP and contractive
sub-VP. On one grid of σ/α, from the same noise, samplers that are written in σ/α give the same
x/α; so does the exact probability flow, to its solver's tolerance. Worst of all points and seeds:
"""
OTHER = """
## What is not

Steps that are equal in each process's own time. Then the processes are different discretisations
of the same thing, and sliced W2 to the data (4,000 points, mean and 95 % over seeds) differs until
the steps are small. All start from σ/α = 7.
"""
