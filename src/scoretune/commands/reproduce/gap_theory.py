"""The reward gap where it is known: a table, its rates, a law with two modes, and finite steps.

After arXiv 2510.10767. All in closed form or by a quadrature; samplers are run as a check.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from scoretune.commands.reproduce.base import Cell, Numbers, Page
from scoretune.commands.reproduce.drawing import COLOURS, name_ticks, subplots
from scoretune.commands.reproduce.gap_laws import (
    DECAYS,
    ETAS,
    FINE,
    LEVELS,
    NOISES,
    STEPS,
    closed_forms,
    finite_steps,
    how_much,
    simulated,
    thinned,
    two_modes,
)

Scale = Callable[[float], float]
REHEARSED = 5
"""In a rehearsal one level of so many of the figures' is computed for two modes."""
GAPS = [f"gap, η = {eta:g}" for eta in ETAS]


def cells(seeds: int, quick: bool) -> list[Cell]:
    """Exact ones, for which seeds make no difference, and simulations."""
    size = {"paths": 4000, "steps": 40} if quick else {"paths": 400_000, "steps": 200}
    return [
        Cell("gaussian", closed_forms, {}),
        Cell("steps", finite_steps, {"counts": list(STEPS[:4] if quick else STEPS)}),
        Cell("mixture", two_modes, {"every": REHEARSED} if quick else {}),
        Cell("levels", how_much, {"levels": list(LEVELS)}),
        *(Cell(f"simulated-{seed}", simulated, {"seed": seed, **size}) for seed in range(seeds)),
    ]


def present(results: dict[str, Numbers], page: Page) -> Numbers:
    """Gaussian data, two modes, how much noise, finite steps, the check."""
    gauss = results["gaussian"]
    page.text(ABOUT)
    _gaussian(gauss, page)
    slopes = _slopes(gauss, results["mixture"])
    _mixture(results["mixture"], page)
    page.text(RATES.format(**slopes))
    page.figure("rates", _draw_rates(gauss, results["mixture"]), "reward gap by noise")
    _levels(results["levels"], page)
    _steps(results["steps"], page)
    checks = pooled([r for name, r in results.items() if name.startswith("simulated")])
    worst = max(abs(row["deviations"]) for row in checks.values())
    page.text(CHECK.format(worst=worst, count=len(checks)))
    page.table(
        ["samples", "mean reward", "claimed", "standard errors apart"],
        [
            [name, f"{r['mean']:.5f} ± {r['error']:.5f}", f"{r['claimed']:.5f}", _signed(r)]
            for name, r in checks.items()
        ],
    )
    exact = {name: r for name, r in results.items() if not name.startswith("simulated")}
    return exact | {"slopes": slopes, "checks": checks}


def pooled(runs: Sequence[Numbers]) -> Numbers:
    """Means over seeds of samples' rewards, and how many standard errors the claim is away."""
    kept: Numbers = {}
    for name in runs[0]:
        means, errors, claimed = zip(*(run[name] for run in runs), strict=True)
        error = math.sqrt(sum(e**2 for e in errors)) / len(runs)
        mean = sum(means) / len(runs)
        kept[name] = {"mean": mean, "error": error, "claimed": claimed[0]}
        kept[name]["deviations"] = (mean - claimed[0]) / error
    return kept


def _signed(row: Numbers) -> str:
    return f"{row['deviations']:+.2f}"


def _slopes(gauss: Numbers, mixture: Numbers) -> dict[str, float]:
    """Of ln gap against ln T from 100 to 1000, and against B from 10 to 20."""

    def rise(gaps: list[float], levels: Sequence[float], start: float, scale: Scale) -> float:
        at = _levels_of(gaps, levels)
        first = at.index(start)
        return math.log(gaps[-1] / gaps[first]) / (scale(at[-1]) - scale(start))

    noises, decays = FINE
    return {
        "ve": rise(gauss["fine VE"], noises, 100.0, math.log),
        "vp": rise(gauss["fine VP"], decays, 10, float),
        "ve_pair": rise(mixture["VE"], noises, 100.0, math.log),
        "vp_pair": rise(mixture["VP"], decays, 10, float),
    }


def _levels_of(gaps: Sequence[float], levels: Sequence[float]) -> list[float]:
    """At which of the levels there is a gap: at all, or at those of a rehearsal."""
    return thinned(levels, 1 if len(gaps) == len(levels) else REHEARSED)


# ------------------------------------------------------------------ the sections


def _gaussian(gauss: Numbers, page: Page) -> None:
    page.text("## Gaussian data")
    columns = ["reward, η = 0", "η = 1", *GAPS]
    rows = [[t, *_row(r), f"{float(t) * r['gaps'][1]:.4f}"] for t, r in gauss["VE"].items()]
    page.table(["T, VE", *columns, "T · gap, η = 1"], rows)
    rows = [
        [b, *_row(r), f"{math.exp(float(b) / 2) * r['gaps'][1]:.5f}"]
        for b, r in gauss["VP"].items()
    ]
    page.table(["B, VP", *columns, "e^{B/2} · gap, η = 1"], rows)
    gaps = ", ".join(f"{gap:.5f}" for gap in gauss["table"]["gaps"])
    page.text(LIMITS.format(rate=gauss["rate"], best=gauss["best"], gaps=gaps))
    page.table(
        ["κ", *gauss["tilts"]],
        [
            [f"gap, η = {eta}", *(f"{gaps[k]:.6f}" for gaps in gauss["tilts"].values())]
            for k, eta in enumerate((1, 2))
        ],
    )


def _row(numbers: Numbers) -> list[str]:
    return [f"{value:.6f}" for value in (numbers["ode"], numbers["sde"], *numbers["gaps"])]


def _mixture(mixture: Numbers, page: Page) -> None:
    page.text(PAIR_TEXT.format(rate=mixture["rate"], best=mixture["best"]))
    for label, name, levels, factor in (
        ("T", "VE", NOISES, lambda noise: noise),
        ("B", "VP", DECAYS, lambda decay: math.exp(decay / 2)),
    ):
        gaps = [mixture[f"{name} rows"][f"{level:g}"] for level in levels]
        grown = [f"{factor(x) * gap:.4f}" for x, gap in zip(levels, gaps, strict=True)]
        product = "T · gap" if name == "VE" else "e^{B/2} · gap"
        page.table(
            [f"{label}, {name}", *(f"{level:g}" for level in levels)],
            [["gap", *(f"{gap:.6f}" for gap in gaps)], [product, *grown]],
        )


def _levels(by_eta: Numbers, page: Page) -> None:
    page.text(LEVELS_TEXT)
    names = {"amplified": "error of ε̂", "factor": "path KL", "gaps": "gap, VE, T = 10"}
    page.table(
        ["η", *(f"{level:g}" for level in LEVELS)],
        [[name, *(f"{value:.4f}" for value in by_eta[key])] for key, name in names.items()],
    )


def _steps(stepped: Numbers, page: Page) -> None:
    counts = STEPS[: len(stepped["ode"])]
    twenty, names = counts.index(20), ("gDDIM, η = 1", "Euler–Maruyama, η = 1")
    gddim, euler = (stepped["gaps"][name][twenty] for name in names)
    page.text(STEPS_TEXT.format(gddim=gddim, euler=euler, exact=stepped["exact"][names[0]]))
    page.table(
        ["gap to DDIM", *(f"{count} steps" for count in counts), "exact"],
        [
            [name, *(f"{gap:.4f}" for gap in gaps), f"{stepped['exact'][name]:.4f}"]
            for name, gaps in stepped["gaps"].items()
        ],
    )
    page.table(
        ["W2 to the law", *(f"{count} steps" for count in counts)],
        [[name, *(f"{w2:.4f}" for w2 in row)] for name, row in stepped["distance"].items()],
    )
    page.figure("steps", _draw_steps(stepped), "reward gap by number of steps")


def _draw_rates(gauss: Numbers, mixture: Numbers) -> Any:
    figure, (left, right) = subplots(1, 2, size=(9.6, 3.9))
    for axes, name, x in ((left, "VE", FINE[0]), (right, "VP", FINE[1])):
        for gaps, colour, label in (
            (gauss[f"fine {name}"], COLOURS[0], "N(⅔, ⅓)"),
            (mixture[name], COLOURS[1], "two modes"),
        ):
            at = _levels_of(gaps, x)
            axes.plot(at, gaps, color=colour, marker="o", markersize=3, label=label)
        axes.plot(x, gauss[f"leading {name}"], ":", color=COLOURS[5], label="limit / ρ_T")
        rate = mixture["rate"] / gauss["rate"]
        limit = [rate * gap for gap in gauss[f"leading {name}"]]
        axes.plot(x, limit, ":", color=COLOURS[5])
        axes.set_yscale("log", nonpositive="mask")  # two modes and little noise: a gap below 0
        axes.set_ylim(1e-5, 1)
    left.set(title="VE: slope −1", xlabel="T = σ_T", xscale="log", ylabel="gap, η = 1")
    right.set(title="VP: slope −½", xlabel="B = ∫β", xticks=range(0, 21, 5))
    left.legend(frameon=False)
    return figure


def _draw_steps(stepped: Numbers) -> Any:
    figure, axes = subplots(size=(7.2, 3.9))
    counts = STEPS[: len(stepped["ode"])]
    for (name, gaps), colour in zip(stepped["gaps"].items(), COLOURS, strict=False):
        dash = "-" if name.startswith("gDDIM") else "--"
        axes.plot(counts, gaps, dash, color=colour, marker="o", markersize=3, label=name)
        axes.plot([counts[-1] * 1.5], [stepped["exact"][name]], "<", color=colour)
    axes.set(xlabel="steps (triangles: without end)", ylabel="reward less that of DDIM")
    axes.set_xscale("log")
    axes.axhline(0, color=COLOURS[5], linewidth=0.8)
    name_ticks(axes, counts)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


ABOUT = """
A policy is tuned through a stochastic sampler and deployed through a deterministic one. Here the
policy is the exact score of the best law p* ∝ p e^{r/κ}, for p = N(0, 1), r = −(x − 1)² and κ = 1:
N(⅔, ⅓). Both samplers start from the same N(0, π²), which is not quite the law of x_T; the ODE
remembers by how much, the SDE forgets. *Gap*: expected reward of the SDE of stochasticity η less
that of the ODE, in continuous time.
"""
LIMITS = """
Both last columns tend to −2m(m − c)s = {rate:.4f}; the reward of p* itself is {best:.6f}. Under the
noise table of Stable Diffusion 1.5 (B = 5.37) the gaps of η = 0.5, 1, 1.2, 1.5, 2 are {gaps}.
By how far the policy was tuned, VE with T = 10:
"""
PAIR_TEXT = """
## Two modes

p* = 0.3 N(−1, 0.04) + 0.7 N(1, 0.04), of reward {best:.4f}, η = 1. Any law on the line and any
smooth reward have the limit m ∫ r'(x) φ(Φ^{{−1}}(F(x))) dx, here {rate:.5f}.
"""
RATES = """
Slopes of ln gap against ln T, from 100 to 1000: {ve:.4f} (Gaussian), {ve_pair:.4f} (two modes); −1
is the rate 1/T. Against B, from 10 to 20: {vp:.4f} and {vp_pair:.4f}; −½ is the rate e^{{−B/2}}.
"""
LEVELS_TEXT = """
## How much noise

By η: how far a constant error of ε̂ moves a sample, in units of s, without limit to the noise
(least at η = 1.305); what a change of the score costs in path KL, ((1 + η²)/2η)²; and the gap,
which hardly grows beyond η = 1.
"""
STEPS_TEXT = """
## Finite steps

With steps the comparison is also one of two errors. VE with T = 5, Karras times to 0.001. The
variance of gDDIM's samples is too small, the more so the larger η, and this reward pays for a small
variance; that of Euler–Maruyama's is too large. At 20 steps and η = 1 the gap is {gddim:.3f} by the
one and {euler:+.3f} by the other, where continuous time has {exact:.3f}. So a gap that was measured
in few steps says as much about the sampler as about the policy: state the number of steps, or
measure with many. W2 is from the exact law, and holds what the prior does wrong too.
"""
CHECK = """
## Check by simulation

Mean rewards of samples, VE with T = 5, against what is claimed; all seeds together. The farthest of
{count} is {worst:.1f} standard errors off.
"""
