"""What a KL weight and a clip range mean: the same on any grid, not the same in any dimension.

The path KL of a fixed change of the score, as jittered rollouts add it up, over its continuous-time
value; and the share of steps that PPO clips, for a fixed change in every dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from scoretune.commands.reproduce.base import Cell, Numbers, Page
from scoretune.commands.reproduce.drawing import subplots
from scoretune.core.conditions import Condition
from scoretune.core.records import Steps
from scoretune.diffusion import grids
from scoretune.diffusion.kernels import GDDIM
from scoretune.diffusion.paths import girsanov_weights, jittered, log_snr_steps
from scoretune.diffusion.processes import VP, Process, RectifiedFlow, Tabulated, diffusion_sq
from scoretune.models import toy
from scoretune.policy import Policy
from scoretune.rollout import prior, rollout
from scoretune.training.objectives.policy_gradient import PolicyGradient

Change = Callable[[Tensor, Tensor], Tensor]

THETA, S0 = 0.7, 0.25
CHANGES: dict[str, Change] = {  # of the score, as functions of α and σ
    "family": lambda a, s: THETA * a / (a**2 * S0 + s**2),  # θh: N(m, S₀) to N(m + θ, S₀)
    "signal": lambda a, s: THETA * a,
    "wave": lambda a, s: THETA * a * (1 + torch.sin(5 * torch.atan2(s, a))) / (a + s) ** 2,
}
PROCESSES: dict[str, Process] = {
    "VP": VP(),
    "RectifiedFlow": RectifiedFlow(),
    "Tabulated": Tabulated.scaled_linear(),  # Stable Diffusion's
}


GRIDS: dict[str, Callable[..., Tensor]] = {
    "uniform": grids.uniform,
    "karras": grids.karras,
    "shifted": partial(grids.shifted, shift=3.0),
}
PAIRS = [(p, g) for p in PROCESSES for g in GRIDS if (p, g) != ("RectifiedFlow", "karras")]
"""All but one: karras needs a finite σ/α at the horizon."""
COUNTS = (5, 10, 20, 50, 100, 500)
DIMENSIONS = (16, 64, 256, 1024, 4096)
TEMPERATURES: dict[str, Callable[[int], float]] = {
    "1": lambda dimension: 1.0,
    "√(D/256)": lambda dimension: (dimension / 256) ** 0.5,
    "D/256": lambda dimension: dimension / 256,
}


def continuous(process: Process, change: Change, t_end: float) -> float:
    """½∫ g² Δs² dt by quadrature in native time, where no angle enters."""
    t = torch.linspace(t_end, process.horizon * (1 - 1e-7), 40001, dtype=torch.float64)
    rate = diffusion_sq(process, t) * change(process.alpha(t), process.sigma(t)) ** 2 / 2
    return float(torch.trapezoid(rate, t))


def kls(process: Process, times: Tensor, nodes: Tensor, change: Change, eta: float = 1.0) -> Tensor:
    """The path KL [B] of a change of the score, as a rollout at these nodes adds it up."""
    t = nodes[:-1]
    steps = log_snr_steps(process, times, nodes)
    weights = girsanov_weights(process, t, torch.full_like(t, eta), steps)
    alpha, sigma = process.alpha(t), process.sigma(t)
    moved = change(alpha, sigma) * sigma**2 / alpha  # Δx̂ = (σ²/α) Δs
    moved[0] = 0  # rectified flow divides by α = 0 there; the first node stands for nothing
    return (weights * moved**2).sum(0)


def cells(seeds: int, quick: bool) -> list[Cell]:
    """A cell a process and grid, and one a dimension; seeds of the paths make no difference."""
    nodes, paths = (1000, 16) if quick else (400_000, 256)
    return [
        *(
            Cell(f"kl-{p}-{g}", path_kls, {"process": p, "grid": g, "nodes": nodes})
            for p, g in PAIRS
        ),
        *(Cell(f"clip-{d}", clipped, {"dimension": d, "paths": paths}) for d in DIMENSIONS),
    ]


def path_kls(process: str, grid: str, nodes: int) -> Numbers:
    """Each change's continuous-time path KL, and by number of steps what paths find of it."""
    forward, numbers = PROCESSES[process], dict[str, Numbers]()
    for name, change in CHANGES.items():
        limit = continuous(forward, change, 1e-3)
        numbers[name] = {"limit": limit, "jittered": {}, "fixed": {}}
        for n in COUNTS:
            times = GRIDS[grid](forward, n, t_end=1e-3)
            drawn = jittered(forward, times, nodes // n, torch.Generator().manual_seed(n))
            each = kls(forward, times, drawn, change) / limit
            error = float(each.std()) / len(each) ** 0.5
            numbers[name]["jittered"][str(n)] = [float(each.mean()), error]
            fixed = kls(forward, times, times[:, None], change) / limit
            numbers[name]["fixed"][str(n)] = float(fixed)
    return numbers


def clipped(dimension: int, paths: int) -> Numbers:
    """The share of clipped steps by temperature, the mean of N(0, I) moved by 0.05 everywhere."""
    backbone = toy.Gaussian(VP(), 0.0, 1.0, dimension)
    policy, nobody = Policy(backbone, GDDIM(1.0)), Condition.none(paths)
    generator = torch.Generator().manual_seed(0)
    noise = prior(policy, paths, generator)
    path = rollout(policy, nobody, grids.karras(VP(), 10), generator, noise)
    with torch.no_grad():
        policy.parameters()[0].fill_(0.05)
    shares = dict.fromkeys(TEMPERATURES, 0.0)
    for k in range(len(path.data)):
        steps = Steps(
            x=path.states[k],
            t=path.times[k],
            t_next=path.times[k + 1],
            condition=nobody,
            data=path.data[k],
            kl_weight=path.kl_weights[k],
            x_next=path.states[k + 1],
            advantage=torch.ones(paths),
        )
        for name, temperature in TEMPERATURES.items():
            objective = PolicyGradient(policy, clip=0.2, temperature=temperature(dimension))
            share = float(objective(steps).metrics["clip_fraction"])
            shares[name] += share / len(path.data)
    return dict(shares)


def present(results: dict[str, Numbers], page: Page) -> Numbers:
    """Both tables."""
    page.text(
        "The path KL of a change of the score over its continuous-time limit, to t = 1e-3; the "
        "change is the exact score of N(m + θ, ¼) less that of N(m, ¼). *Worst* is the ratio "
        f"farthest from 1 of {len(CHANGES)} changes at any number of steps, when the times of a "
        "path are jittered and when they are the grid's."
    )
    pairs = {pair: results[f"kl-{pair[0]}-{pair[1]}"] for pair in PAIRS}
    rows = []
    for (process, grid), changes in pairs.items():
        shown = [f"{changes['family']['jittered'][str(n)][0]:.3f}" for n in COUNTS]
        drawn = [mean for change in changes.values() for mean, _ in change["jittered"].values()]
        fixed = [ratio for change in changes.values() for ratio in change["fixed"].values()]
        limit = f"{changes['family']['limit']:.5f}"
        rows.append([process, grid, limit, *shown, f"{_worst(drawn):.3f}", f"{_worst(fixed):.3f}"])
    steps = [f"{n} steps" for n in COUNTS]
    page.table(["process", "grid", "limit", *steps, "worst, jittered", "worst, fixed"], rows)
    page.text(
        "The share of steps whose ratio is clipped at ε = 0.2: gDDIM(1) on ten Karras steps, data "
        "N(0, I) in D dimensions, the mean moved by 0.05 in each, by `objective.temperature`."
    )
    clips = {d: results[f"clip-{d}"] for d in DIMENSIONS}
    page.table(
        ["temperature", *(f"D = {d:,}" for d in DIMENSIONS)],
        [[name, *(f"{clips[d][name]:.2f}" for d in DIMENSIONS)] for name in TEMPERATURES],
    )
    page.figure("units", _draw(pairs), "path KL over its limit, by the number of steps")
    return {
        "path_kl": {f"{process}, {grid}": changes for (process, grid), changes in pairs.items()},
        "clipped": clips,
    }


def _worst(ratios: list[float]) -> float:
    return max(ratios, key=lambda ratio: abs(ratio - 1))


def _draw(pairs: dict[tuple[str, str], Numbers]) -> object:
    figure, panels = subplots(1, 2, sharey=True, size=(9.0, 3.6))
    for axes, how in zip(panels, ("jittered", "fixed"), strict=True):
        for (process, grid), changes in pairs.items():
            ratios = [changes["family"][how][str(n)] for n in COUNTS]
            values = [r[0] if how == "jittered" else r for r in ratios]
            axes.semilogx(COUNTS, values, marker="o", markersize=3, label=f"{process}, {grid}")
        axes.axhspan(0.98, 1.02, color="#999999", alpha=0.25, linewidth=0)
        axes.set(title=f"{how} times", xlabel="steps of a path")
    panels[0].set_ylabel("path KL over its limit")
    panels[1].legend(frameon=False, fontsize=7)
    return figure
