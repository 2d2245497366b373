"""The reward gap while a policy learns: policy gradient on the line, where all can be said exactly.

After arXiv 2510.10767: tuned through gDDIM(η), deployed through the ODE. The policy is the exact
score of N(μ, S) and learns (μ, ln S) from (0, 0); data's process is VE with noise 10; the reward
−(x − 1)² has no KL term, so that S falls towards 0. A step of N is affine: both samplers' rewards,
and what they would be in continuous time, are worked out without sampling.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from scoretune.commands.reproduce.base import Cell, Numbers, Page, by_arm, interval
from scoretune.commands.reproduce.drawing import COLOURS, draw_band, legend_outside, subplots
from scoretune.diffusion import grids
from scoretune.diffusion.kernels import GDDIM
from scoretune.diffusion.processes import EDM
from scoretune.diffusion.theory import gaussian, reward_gap
from scoretune.training.credit.outcome import standardise

PROCESS, CENTRE, END = EDM(10.0), 1.0, 1e-3
ETAS, COUNTS = (0.3, 0.7, 1.0, 1.2, 1.5, 2.0), (10, 20, 80)
UPDATES, BATCH, RATE, BETAS = 150, 256, 0.02, (0.9, 0.99)
SHOWN = (0, 50, 100, 149)
F64 = torch.float64


def cells(seeds: int, quick: bool) -> list[Cell]:
    """A run for every η, number of steps and seed; at least four seeds, for they are cheap."""
    updates, batch = (4, 64) if quick else (UPDATES, BATCH)
    return [
        Cell(
            f"{eta:g}-{count}-{seed}",
            learned,
            {"eta": eta, "count": count, "seed": seed, "updates": updates, "batch": batch},
        )
        for count in COUNTS
        for eta in ETAS
        for seed in range(seeds if quick else max(seeds, 4))
    ]


def grid_of(count: int) -> Tensor:
    """Times of a path, [count + 1]."""
    return grids.karras(PROCESS, count, t_end=END, dtype=F64)


def learned(eta: float, count: int, seed: int, updates: int, batch: int) -> Numbers:
    """REINFORCE with normalised rewards and Adam; what the policy is worth before every update and
    at the end."""
    generator, times = torch.Generator().manual_seed(seed), grid_of(count)
    mean, log_variance = (torch.zeros((), dtype=F64, requires_grad=True) for _ in range(2))
    optimiser = torch.optim.Adam([mean, log_variance], lr=RATE, betas=BETAS)
    curves: Numbers = {"ode": [], "gap": [], "exact": [], "variance": []}
    for update in range(updates + 1):
        note(curves, eta, times, mean.item(), log_variance.exp().item())
        if update < updates:
            states = rolled(eta, times, mean.detach(), log_variance.detach(), batch, generator)
            merit = standardise(-((states[-1, :, 0] - CENTRE) ** 2))
            optimiser.zero_grad()
            (-(merit * path_log_prob(eta, times, states, mean, log_variance)).mean()).backward()
            optimiser.step()
    return curves


def rolled(
    eta: float,
    times: Tensor,
    mean: Tensor,
    log_variance: Tensor,
    batch: int,
    generator: torch.Generator,
) -> Tensor:
    """States of `batch` paths of gDDIM(η), [N+1, batch, 1], from the prior."""
    kernel, field = GDDIM(eta), gaussian.exact(PROCESS, mean=mean, variance=log_variance.exp())
    x = PROCESS.prior_std * torch.randn(batch, 1, generator=generator, dtype=F64)
    states = [x]
    for t, t_next in pairwise(times[:, None].expand(-1, batch)):
        x = kernel(PROCESS, x, field(x, t), t, t_next).draw(generator)
        states.append(x)
    return torch.stack(states)


def path_log_prob(
    eta: float, times: Tensor, states: Tensor, mean: Tensor, log_variance: Tensor
) -> Tensor:
    """ln p of whole paths [N+1, batch, 1], [batch]: the sum of their steps' log-probabilities."""
    batch = states.shape[1]
    t, t_next = (part.repeat_interleave(batch) for part in (times[:-1], times[1:]))
    x, x_next = states[:-1].flatten(0, 1), states[1:].flatten(0, 1)
    field = gaussian.exact(PROCESS, mean=mean, variance=log_variance.exp())
    step = GDDIM(eta)(PROCESS, x, field(x, t), t, t_next)
    return step.log_prob(x_next).view(-1, batch).sum(0)


def note(curves: Numbers, eta: float, times: Tensor, mean: float, variance: float) -> None:
    """Rewards of the policy N(mean, variance) under DDIM, the gap of gDDIM(η) on the same times,
    and the gap in continuous time."""

    def worth(level: float) -> float:
        kernel = GDDIM(level)
        curves = gaussian.after_steps(PROCESS, kernel, times, mean=mean, variance=variance)
        return reward_gap.expected(curves, CENTRE)

    curves["ode"].append(worth(0.0))
    curves["gap"].append(worth(eta) - worth(0.0))
    exact = reward_gap.gap(PROCESS, mean=mean, variance=variance, centre=CENTRE, eta=eta)
    curves["exact"].append(exact)
    curves["variance"].append(variance)


# ------------------------------------------------------------------------------------ the page


def present(results: dict[str, Numbers], page: Page) -> Numbers:
    """A table a number of steps, what of it is the steps, and the figure."""
    arms = by_arm(results)
    page.text(ABOUT)
    summary: Numbers = {}
    for count in COUNTS:
        page.text(f"## {count} steps")
        rows = []
        for eta in ETAS:
            kept = summary[f"{eta:g}-{count}"] = summarised(arms[f"{eta:g}-{count}"])
            gaps = [f"{kept['gap'][str(update)]:.4f}" for update in SHOWN]
            mean, low, high = kept["ode"]
            exact = f"{kept['exact']:+.5f}"
            rows.append([f"{eta:g}", f"{mean:.4f} ± {(high - low) / 2:.4f}", *gaps, exact])
        page.table(
            ["η", "reward of the ODE", *(f"gap at {u}" for u in SHOWN), "in continuous time"], rows
        )
    page.text(READING.format(**verdicts(summary)))
    page.figure("gap", _draw(arms), "reward gap while training, by η and number of steps")
    return {"arms": summary, "verdicts": verdicts(summary)}


def summarised(runs: list[Numbers]) -> Numbers:
    """Means over seeds: the final reward by the ODE with its interval, and gaps."""

    def average(key: str, update: int) -> float:
        at = min(update, len(runs[0][key]) - 1)  # a rehearsal is over sooner
        return float(sum(run[key][at] for run in runs) / len(runs))

    return {
        "ode": interval([run["ode"][-1] for run in runs]),
        "gap": {str(update): average("gap", update) for update in SHOWN},
        "exact": average("exact", SHOWN[-1]),
        "exact_at_start": average("exact", 0),
        "variance": average("variance", UPDATES),
    }


def verdicts(summary: Numbers) -> dict[str, Any]:
    """What is left of the first gap, and whether the ODE's reward rises with η, by steps."""

    def arms(count: int) -> list[Numbers]:
        return [summary[f"{eta:g}-{count}"] for eta in ETAS]

    left = {n: max(a["gap"]["149"] / a["gap"]["0"] for a in arms(n)) for n in COUNTS}
    means = {n: [a["ode"][0] for a in arms(n)] for n in COUNTS}
    rising = [str(n) for n in COUNTS if means[n] == sorted(means[n])]
    usual = ETAS.index(1.0)
    return {
        "left": ", ".join(f"{share:.3f}" for share in left.values()),
        "rising": " and ".join(rising) or "none of these",
        "gains": ", ".join(f"{mean[-1] - mean[usual]:+.4f}" for mean in means.values()),
        "starts": ", ".join(f"{arms(n)[usual]['gap']['0']:.3f}" for n in COUNTS),
        "exact_start": arms(COUNTS[0])[usual]["exact_at_start"],
    }


def _draw(arms: dict[str, list[Numbers]]) -> Any:
    figure, panels = subplots(1, len(COUNTS), sharey=True, size=(10.4, 3.9))
    for axes, count in zip(panels, COUNTS, strict=True):
        for eta, colour in zip(ETAS, COLOURS, strict=True):
            curves = [run["gap"] for run in arms[f"{eta:g}-{count}"]]
            draw_band(axes, list(range(len(curves[0]))), curves, colour, f"η = {eta:g}")
        axes.set(title=f"{count} steps", xlabel="update", yscale="log")
    figure.axes[0].set_ylabel("reward of gDDIM(η) less that of DDIM")
    legend_outside(figure, "right center")
    return figure


ABOUT = """
A policy N(μ, S), from N(0, 1), learns by REINFORCE through gDDIM(η) for 150 updates; batch 256,
Adam with rate 0.02 and β = (0.9, 0.99), normalised rewards −(x − 1)², Karras times from 10 to
0.001. *Reward of the ODE*: DDIM on the same times, after training, mean over seeds and half its
95 % interval. *Gap*: gDDIM(η) less DDIM before that update. *In continuous time*: the gap that the
last policy would have without any error of the steps. All of it is worked out exactly; seeds differ
by what was sampled to learn.
"""
READING = """
The gap closes while the policy learns, if not at once: with small η or many steps it first grows,
while μ is on its way. Of the first gap, at most {left} is left before the last update, at 10, 20
and 80 steps and over all η. The deployed ODE's mean reward never falls with η at {rising} steps,
but most of that is had by η = 0.7: from η = 1 to 2 it gains {gains}.

This gap is not the one of the closed forms. With η = 1 it begins at {starts} for 10, 20 and 80
steps, and at {exact_start:+.4f} in continuous time, where the ODE does better as long as μ = 0.
What few steps do is to leave gDDIM's samples too little variance, the more so the larger η, and
this reward pays for that; what closes the gap is that the variance itself goes. Adam's second
constant matters: with 0.999 the variance, and the last gap, end a tenth lower.
"""
