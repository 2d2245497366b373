"""Fine-tuning under several stochasticities, and what the reward gap does meanwhile.

Every run is evaluated from the same noise through the ODE it would be deployed with and through its
own η, both at a number of steps at which neither errs much; the gap is their difference in reward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scoretune.commands.reproduce.base import Cell, Numbers, Page, interval
from scoretune.commands.reproduce.drawing import COLOURS, draw_band, subplots
from scoretune.commands.reproduce.fine_tuning import (
    Arm,
    Arms,
    Runs,
    ahead,
    cells_of,
    curve,
    final,
    gain,
    labelled,
    points,
)
from scoretune.commands.reproduce.mix_grpo import ACTING, BATCH, WINDOW

ETAS = (0.5, 1.0, 1.2, 1.5)
FINE = 50  # steps of the evaluations of the gap
REFERENCE = 1.0  # the reverse SDE, with which the others are compared


def arms_of(recipe: str, changes: Sequence[str]) -> Arms:
    """An arm for each η: the same recipe, acting and evaluated with its own noise."""
    return {
        f"η = {eta:g}": Arm(
            f"{recipe}-{eta:g}",
            recipe,
            [
                *changes,
                f"sampling.eta={eta:g}",
                f"evaluation.gap.steps=[{FINE}]",
                f"evaluation.gap.etas=[0,{eta:g}]",
            ],
        )
        for eta in ETAS
    }


@dataclass(frozen=True)
class GapWhileTraining:
    """The experiment on some arms."""

    arms: Arms

    def cells(self, seeds: int, quick: bool) -> list[Cell]:
        """One fine-tuning run for each arm and seed, rewarded by the reader."""
        small = ["evaluation.gap.steps=[3]"] if quick else []
        reference = f"η = {REFERENCE:g}"
        return cells_of(self.arms, "reader", seeds, quick, reference=reference, more=small)

    def present(self, results: dict[str, Numbers], page: Page) -> Numbers:
        """Tables, the gap against updates, and what stochasticity was worth to the ODE."""
        return present(labelled(results, "reader", self.arms), page)


SCENES = GapWhileTraining(arms_of("ddpo", ["updates=24", "evaluation.every=8"]))
"""The miniature Stable Diffusion under DDPO (arXiv 2510.10767 §4).

gDDIM is the training kernel: plain DDIM cannot hold more noise than η ≈ 1 (`Posterior.limit`)."""
FLOW_CHANGES = ("updates=28", "evaluation.every=14", "evaluation.per_task=20")
FLOW = GapWhileTraining(arms_of("mix_grpo", [*ACTING, *WINDOW, *BATCH, *FLOW_CHANGES]))
"""The rectified-flow miniature under MixGRPO (arXiv 2510.10767 §4): gDDIM inside the window, DDIM
outside it. The gap is measured with noise on every step."""


def fine_gap(run: Numbers) -> tuple[list[int], list[float]]:
    """The updates at which a run's gap was measured in fine steps, and the gaps."""
    lines = run["gaps"]
    return [line["update"] for line in lines], [_noisy(line)["gap"] for line in lines]


def _noisy(line: Numbers) -> Numbers:
    return next(row for row in line["rows"] if row["eta"] > 0)


def present(runs: dict[str, Runs], page: Page) -> Numbers:
    """The page about the runs of every arm."""
    numbers: Numbers = {arm: _numbers(seeds) for arm, seeds in runs.items()}
    page.text(
        "Gap: the reader's reward through gDDIM at the run's own η less that through the ODE "
        f"(DDIM), both in {FINE} steps from the same noise, on held-out prompts. Intervals and "
        "bands are 95 % over training seeds (Student's t), which share prompts and noise: over "
        f"prompts a single gap is uncertain by ±{100 * _chance(runs):.0f} points."
    )
    page.table(
        [
            *("", "judge's gain through the ODE, points", "ODE reward, final"),
            *("gap at the start, points", "gap at the end", "change of the gap", "chain KL"),
        ],
        [[arm, *_row(row)] for arm, row in numbers.items()],
    )
    numbers["compared"] = _compared(runs, page)
    page.text(_findings(numbers, runs))
    page.figure("gap", draw_gaps(runs), "the gap against updates, one panel an η")
    page.figure("ode", draw_ode(runs), "what the ODE earns, and how often the judge agrees")
    return numbers


def _chance(runs: dict[str, Runs]) -> float:
    """Half the 95 % interval over prompts of one run's gap, on average."""
    rows = [_noisy(line) for seeds in runs.values() for run in seeds for line in run["gaps"]]
    return float(sum(row["gap_high"] - row["gap_low"] for row in rows)) / len(rows) / 2


def _numbers(runs: Runs) -> Numbers:
    gaps = [fine_gap(run)[1] for run in runs]
    return {
        "judge gain": gain(runs, "judge"),
        "judge final": final(runs, "judge"),
        "ode reward": final(runs, "reward"),
        "gap start": interval([g[0] for g in gaps]),
        "gap end": interval([g[-1] for g in gaps]),
        "gap change": interval([g[-1] - g[0] for g in gaps]),
        "size change": interval([abs(g[-1]) - abs(g[0]) for g in gaps]),
        "chain_kl": [run["result"]["chain_kl"] for run in runs],
        "seconds": [run["result"]["seconds"] for run in runs],
        "network_evaluations": runs[0]["result"]["network_evaluations"],
    }


def _row(numbers: Numbers) -> list[str]:
    kls = numbers["chain_kl"]
    return [
        points(numbers["judge gain"]),
        f"{numbers['ode reward'][0]:.3f}",
        *(points(numbers[name]) for name in ("gap start", "gap end", "gap change")),
        f"{min(kls):.1f}–{max(kls):.1f}",
    ]


def _compared(runs: dict[str, Runs], page: Page) -> Numbers:
    """The ODE's judge and reward of each η less those of η = 1, paired by seed."""
    differences: Numbers = {}
    reference = runs[f"η = {REFERENCE:g}"]
    for arm, seeds in runs.items():
        if seeds is reference:
            continue
        differences[arm] = {
            metric: ahead(seeds, reference, metric) for metric in ("judge", "reward")
        }
    page.text(f"Against η = {REFERENCE:g}, at the end, through the ODE, paired by seed:")
    page.table(
        ["", "judge, points", "reward, points"],
        [[arm, points(both["judge"]), points(both["reward"])] for arm, both in differences.items()],
    )
    return differences


def _findings(numbers: Numbers, runs: dict[str, Runs]) -> str:
    """What the intervals allow to be said, and no more."""
    narrowed = [arm for arm in runs if numbers[arm]["size change"][2] < 0]
    widened = [arm for arm in runs if numbers[arm]["size change"][1] > 0]
    better = [arm for arm, both in numbers["compared"].items() if both["judge"][1] > 0]
    worse = [arm for arm, both in numbers["compared"].items() if both["judge"][2] < 0]
    return (
        f"The gap's size fell beyond its interval for: {_list(narrowed)}; it grew for: "
        f"{_list(widened)}. In the judge's eyes the ODE is better than after training with "
        f"η = {REFERENCE:g} for: {_list(better)}; worse for: {_list(worse)}."
    )


def _list(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def draw_gaps(runs: dict[str, Runs]) -> Any:
    """The gap in fine steps against updates, a panel an arm."""
    size = (2.6 * len(runs), 3.2)
    figure, panels = subplots(1, len(runs), sharey=True, squeeze=False, size=size)
    for axes, colour, (arm, seeds) in zip(panels[0], COLOURS, runs.items(), strict=False):
        draw_band(axes, fine_gap(seeds[0])[0], [fine_gap(run)[1] for run in seeds], colour, arm)
        for run in seeds:
            axes.plot(*fine_gap(run), color=colour, linewidth=0.7, alpha=0.6)
        axes.axhline(0, color="#888888", linewidth=0.8)
        axes.set_title(arm, fontsize=10)
        axes.set_xlabel("update")
    figure.axes[0].set_ylabel("reward gap, SDE − ODE")
    return figure


def draw_ode(runs: dict[str, Runs]) -> Any:
    """Reward and judge through the ODE against updates, all arms."""
    figure, panels = subplots(1, 2, size=(8.6, 3.6))
    for axes, metric, label in zip(
        panels, ("reward", "judge"), ("reward through the ODE", "judge accuracy"), strict=True
    ):
        for colour, (arm, seeds) in zip(COLOURS, runs.items(), strict=False):
            updates = [line["update"] for line in seeds[0]["evaluations"]]
            draw_band(axes, updates, [curve(run, metric)[1] for run in seeds], colour, arm)
        axes.set(xlabel="update", ylabel=label)
    panels[1].legend(frameon=False, fontsize=8)
    return figure
