"""Consistency models where the answer is known, then on a Swiss roll: distillation and training.

arXiv 2402.07487 section 4, arXiv 2303.01469. Data N(0.7, ¼) under EDM, ρ from 0.002 to 80: the
consistency function is affine, f*(x, t) = m + √((s²+ε²)/(s²+t²)) (x − m).
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor

from scoretune.commands.reproduce.base import Cell, Numbers, Page, by_arm, interval, shown
from scoretune.commands.reproduce.denoiser import Denoiser, Perceptron, fitted
from scoretune.commands.reproduce.drawing import COLOURS, name_ticks, subplots
from scoretune.commands.reproduce.students import PROCESS, T_MIN, Affine, jump_of, taught
from scoretune.commands.reproduce.swiss_roll import roll
from scoretune.diffusion.matching import consistency
from scoretune.diffusion.processes import VE
from scoretune.diffusion.solvers import edm_heun
from scoretune.diffusion.theory import gaussian
from scoretune.evaluate.metrics import sliced_wasserstein

MEAN, VARIANCE = 0.7, 0.25
TEACHER = gaussian.exact(PROCESS, mean=MEAN, variance=VARIANCE)
RESIDUALS = {10: 0.0701, 18: 0.00997, 40: 8.14e-4, 80: 9.82e-5, 160: 1.19e-5}
PAIRS = {(2.0, 1.0): 0.0461, (1.0, 0.5): 0.0368, (0.5, 0.25): 0.0199, (80.0, 40.0): 0.0499}
ARMS = ("distillation", "training")
LINES = ("distillation, affine", *ARMS)


def cells(seeds: int, quick: bool) -> list[Cell]:
    """Closed forms; then every arm and seed on the line and on the roll."""
    size = {"updates": 20} if quick else {"updates": 4000}
    points = {"n": 100} if quick else {"n": 5_000}
    made = [Cell("exact", exact, {})]
    for seed in range(seeds):
        made += [
            Cell(f"line-{arm}-{seed}", line, {"arm": arm, "seed": seed} | size) for arm in LINES
        ]
        made.append(Cell(f"roll-{seed}", on_the_roll, {"seed": seed} | size | points))
    return made


def exact() -> Numbers:
    """Residuals of Heun's step by grid, the one-step law, the gap between CD's and CT's pairs."""
    numbers: Numbers = {"residuals": {}, "pairs": {}}
    for points in RESIDUALS:
        times = consistency.grid(PROCESS, points, T_MIN)
        t, t_next = times[:-1], times[1:]
        x = MEAN + torch.sqrt(VARIANCE + t**2)[:, None]
        ahead = consistency.ode_step(PROCESS, TEACHER, x, t, t_next, solver="heun")
        numbers["residuals"][str(points)] = float((_best(x, t) - _best(ahead, t_next)).abs().max())
    ends = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    for points in (40, 80):  # what a student of Heun's steps can reach
        reached = edm_heun(PROCESS, TEACHER, ends, consistency.grid(PROCESS, points, T_MIN))
        numbers[f"composed, {points}"] = float(reached[1] - reached[0])
    low, high = _best(ends, torch.full((2,), 80.0, dtype=torch.float64))[:, 0].tolist()
    numbers["one step"] = [low, 80.0 * (high - low)]
    for points in (40, 80):
        numbers[f"composed, {points}"] /= high - low
    for pair in PAIRS:
        numbers["pairs"]["{:g}, {:g}".format(*pair)] = _pair_gap(*pair)
    return numbers


def _best(x: Tensor, t: Tensor) -> Tensor:
    return consistency.exact_gaussian(PROCESS, x, t, t_min=T_MIN, mean=MEAN, variance=VARIANCE)


def _pair_gap(t: float, t_next: float) -> float:
    """W2² between the joint laws of (x_t, x_t') along the ODE and with one noise for both."""
    u, v = VARIANCE + t**2, VARIANCE + t_next**2
    ode = torch.tensor([[u, math.sqrt(u * v)], [math.sqrt(u * v), v]], dtype=torch.float64)
    both = torch.tensor([[u, VARIANCE + t * t_next], [0, v]], dtype=torch.float64)
    both[1, 0] = both[0, 1]
    root = _root(both)
    cross = _root(root @ ode @ root)
    return float(torch.trace(ode + both - 2 * cross))


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T
    return root


# ----------------------------------------------------------------------------- learning


def line(arm: str, seed: int, updates: int) -> Numbers:
    """N(0.7, ¼): the learned function against f*, by slope and at one standard deviation."""
    torch.manual_seed(seed)
    data = MEAN + math.sqrt(VARIANCE) * torch.randn(50_000, 1)
    table = arm.endswith("affine")
    network = Affine(consistency.grid(PROCESS, 80, T_MIN)) if table else Perceptron(1, 64)
    start, teacher = Denoiser(network, math.sqrt(VARIANCE)), None if arm == "training" else TEACHER
    model = taught(
        start, data, teacher, 2 * updates if table else updates, most=80 if table else 40
    )
    return compared(model)


@torch.no_grad()
def compared(model: Denoiser) -> Numbers:
    """Largest error at m ± √u in units of s, error of the slope at four times, one-step law."""
    times = consistency.grid(PROCESS, 40, T_MIN)[:-1].float()
    spread = torch.sqrt(VARIANCE + times**2)[:, None]
    high, low = (jump_of(model)(MEAN + sign * spread, times) for sign in (1, -1))
    best = _best(MEAN + spread, times)
    error = torch.maximum((high - best).abs(), (low - (2 * MEAN - best)).abs())
    noise = 80.0 * torch.randn(50_000, 1, generator=torch.Generator().manual_seed(0))
    x = consistency.one_step(jump_of(model), noise, 80.0)
    slopes = (high - low)[:, 0] / (2 * (best - MEAN))[:, 0]
    picked = [int((times - t).abs().argmin()) for t in (0.2, 1.0, 10.0, 80.0)]
    return {
        "error": float(error.max()) / math.sqrt(VARIANCE),
        "slopes": [float(slopes[k]) for k in picked],
        "one step": [float(x.mean()), float(x.std())],
    }


def on_the_roll(seed: int, updates: int, n: int) -> Numbers:
    """A teacher on the Swiss roll, its Heun sampler, and its students by one and two calls."""
    torch.manual_seed(seed)
    data, real = roll(20_000, 0), roll(n, 1000 + seed)
    teacher = _teacher(data, updates)
    noise = 80.0 * torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        times = consistency.grid(PROCESS, 19, T_MIN).float()
        drawn = edm_heun(PROCESS, teacher.under(PROCESS), noise, times)
        few = edm_heun(PROCESS, teacher.under(PROCESS), noise, times[[0, 9, 18]])
    distances = {
        "data": sliced_wasserstein(roll(n, 2000 + seed), real),
        "teacher, 18 Heun steps": sliced_wasserstein(drawn, real),
        "teacher, 2 Heun steps": sliced_wasserstein(few, real),
    }
    for arm in ARMS:
        torch.manual_seed(seed)
        begin = Denoiser(copy.deepcopy(teacher.network), teacher.data_std)
        field = teacher.under(PROCESS) if arm == "distillation" else None
        student = taught(begin, data, field, updates)
        for calls, levels in ((1, (80.0,)), (2, (80.0, 0.6))):
            distances[f"{arm}, {calls} call{'s' * (calls > 1)}"] = _drawn(
                student, noise, levels, real
            )
    return distances


def _teacher(data: Tensor, updates: int) -> Denoiser:
    """Trained on ln ρ uniform (VE's clock), which EDM's own clock of equal ρ would starve."""
    model = fitted(Perceptron(), data, VE(0.002, 80.0), updates=updates, batch=256, rate=2e-3)
    for parameter in model.network.parameters():
        parameter.requires_grad_(True)
    return model


@torch.no_grad()
def _drawn(student: Denoiser, noise: Tensor, levels: tuple[float, ...], real: Tensor) -> float:
    x = consistency.multistep(
        PROCESS,
        jump_of(student),
        noise,
        torch.tensor(levels),
        t_min=T_MIN,
        generator=torch.Generator().manual_seed(1),
    )
    return sliced_wasserstein(x, real)


# ------------------------------------------------------------------------------------ the page


def present(results: dict[str, Numbers], page: Page) -> Numbers:
    """Closed forms, the line, the roll."""
    closed, arms = results["exact"], by_arm(results)
    page.text(EXACT)
    residuals = closed["residuals"].items()
    page.table(
        ["grid times", "largest residual", "expected"],
        [[n, f"{r:.3g}", f"{RESIDUALS[int(n)]:.3g}"] for n, r in residuals],
    )
    mean, std = closed["one step"]
    page.text(
        f"One call from N(0, 80²) gives mean {mean:.6f} and std {std:.6f} (.695625, .499994)."
    )
    page.text(
        f"All of a grid's Heun steps together lead to {closed['composed, 40']:.4f} of f*'s slope "
        f"at t = 80 with 40 times, and to {closed['composed, 80']:.4f} with 80."
    )
    page.text(GAP)
    page.table(
        ["t, t'", "W2²", "expected"],
        [
            [pair, f"{gap:.4f}", f"{want:.4f}"]
            for (pair, gap), want in zip(closed["pairs"].items(), PAIRS.values(), strict=True)
        ],
    )
    page.text(LINE)
    rows, numbers = [], {"exact": closed, "line": {}, "roll": {}}
    for arm in LINES:
        runs = arms[f"line-{arm}"]
        error = interval([run["error"] for run in runs])
        slopes = [interval(c) for c in zip(*(run["slopes"] for run in runs), strict=True)]
        law = [interval(c) for c in zip(*(run["one step"] for run in runs), strict=True)]
        numbers["line"][arm] = {"error": error, "slopes": slopes, "one step": law}
        rows.append([arm, shown(error), *(f"{s[0]:.3f}" for s in slopes), *map(shown, law)])
    heads = [f"slope, t = {t:g}" for t in (0.2, 1, 10, 80)]
    page.table(["", "largest error / s", *heads, "one call: mean", "std"], rows)
    page.text(ROLL)
    for name in arms["roll"][0]:
        label = "two samples of the data" if name == "data" else name
        numbers["roll"][label] = interval([run[name] for run in arms["roll"]])
    page.table(["", "sliced W2"], [[n, shown(s)] for n, s in numbers["roll"].items()])
    page.figure("consistency", _draw(numbers), "sliced W2 on the roll, and Heun's residuals")
    return numbers


def _draw(numbers: Numbers) -> Any:
    figure, (left, right) = subplots(1, 2, size=(9.6, 3.8))
    points = [int(n) for n in numbers["exact"]["residuals"]]
    left.plot(points, list(numbers["exact"]["residuals"].values()), "o-", color=COLOURS[0])
    left.set(xscale="log", yscale="log", xlabel="times of the grid", ylabel="largest residual")
    name_ticks(left, points)
    left.set_title("what distillation with Heun cannot learn")
    names = list(numbers["roll"])
    for k, name in enumerate(names):
        mean, low, high = numbers["roll"][name]
        colour = COLOURS[0 if "distil" in name else 1 if "training" in name else 5]
        right.errorbar(
            mean, k, xerr=[[mean - low], [high - mean]], fmt="o", color=colour, capsize=3
        )
    right.set_yticks(range(len(names)), names)
    right.invert_yaxis()
    right.set(xscale="log", xlabel="sliced W2 to the Swiss roll", title="samples")
    return figure


EXACT = """
## Exact

Largest |f*(x, t) − f*(x', t')| for x' by one Heun step of the exact teacher, at one standard
deviation: third order a step. It bounds what distillation on that grid can learn.
"""
GAP = """
Training has no teacher: its pairs share the noise, not the path. W2² of the joint laws of the two
kinds of pairs, s² = ¼:
"""
LINE = """
## Learned on the line

A perceptron with 64 units in two layers, 4,000 updates in batches of 256. Distillation learns
from the exact score on 40 times (the affine student, a row of numbers for each time, on 80 and with
twice the updates); training from data alone, grids of 11 to 161 times. Slopes as a share of f*'s.
"""
ROLL = """
## Learned on a Swiss roll

Teacher: a perceptron of 128 units in two layers. Students begin as the teacher. 5,000 samples,
mean and 95 % interval over seeds.
"""
