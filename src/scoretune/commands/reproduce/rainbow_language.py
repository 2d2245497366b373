"""RainbowPO where a run takes seconds: the published claims of its components, and limits of them.

Runs of fixed settings in the tiny language (`tiny_language`): what length normalisation, SimPO's
margin, RainbowPO and an SFT term do, with honest labels and with a taste for length, and what a
margin ten times as large costs.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from scoretune.commands.reproduce.base import Cell, Numbers, Page, interval, shown
from scoretune.commands.reproduce.drawing import COLOURS, subplots
from scoretune.commands.reproduce.rainbow_world import (
    DRAWN,
    Data,
    file_name,
    learn,
    measured,
    world,
)
from scoretune.preference import PRESETS, Preset

DPO, LN = PRESETS["dpo"], PRESETS["ln_dpo"]
MIXED = replace(LN, reference_weight=0.5, mixing=True, home_advantage=0.3)
RAINBOW = replace(MIXED, scaling="dispersion")

ARMS: dict[str, tuple[Preset, float, Data]] = {
    "DPO": (DPO, 0.1, "plain"),
    "LN-DPO": (LN, 2.0, "plain"),
    "SimPO": (replace(LN, reference_weight=0.0, home_advantage=0.3), 2.0, "plain"),
    "Rainbow": (RAINBOW, 2.0, "plain"),
    "Rainbow without CS": (MIXED, 2.0, "plain"),
    "DPO + SFT": (replace(DPO, sft_weight=0.05), 0.1, "plain"),
    "Rainbow without CS, γ 3": (replace(MIXED, home_advantage=3.0), 2.0, "plain"),
    "no reference, no margin": (replace(LN, reference_weight=0.0), 2.0, "plain"),
    "biased DPO 0.1": (DPO, 0.1, "longer"),
    "biased DPO 0.3": (DPO, 0.3, "longer"),
    "biased DPO 1": (DPO, 1.0, "longer"),
    "biased LN-DPO 0.5": (LN, 0.5, "longer"),
    "biased LN-DPO 1": (LN, 1.0, "longer"),
    "biased LN-DPO 2": (LN, 2.0, "longer"),
    "biased LN-DPO 5": (LN, 5.0, "longer"),
    "biased Rainbow": (RAINBOW, 2.0, "longer"),
}
"""Preset, β and pairs of each arm."""
PUBLISHED = {
    "DPO": 0.559,
    "LN-DPO": 0.852,
    "SimPO": 0.850,
    "Rainbow": 0.857,
    "Rainbow without CS": 0.851,
    "DPO + SFT": 0.362,
    "Rainbow without CS, γ 3": 0.957,
    "no reference, no margin": 0.776,
    "biased DPO 0.1": 0.412,
    "biased DPO 0.3": 0.400,
    "biased DPO 1": 0.358,
    "biased LN-DPO 0.5": 0.875,
    "biased LN-DPO 1": 0.883,
    "biased LN-DPO 2": 0.816,
    "biased LN-DPO 5": 0.571,
    "biased Rainbow": 0.818,
}
"""Qualities of one seed of another implementation of this language, whose base has 0.255."""


def cells(seeds: int, quick: bool) -> list[Cell]:
    """A run of each arm and seed."""
    return [
        Cell(
            f"{file_name(arm)}-{seed}",
            run,
            {"arm": arm, "seed": seed, "quick": quick},
            keeps_files=True,
        )
        for arm in ARMS
        for seed in range(seeds)
    ]


def run(arm: str, seed: int, quick: bool, folder: Path) -> Numbers:
    """One run of an arm, measured."""
    preset, beta, data = ARMS[arm]
    place = world(seed, data, folder, quick)
    learned = learn(place, preset, beta, seed, quick)
    return {"arm": arm, **measured(learned, place.base, seed, quick)}


def present(results: dict[str, Numbers], page: Page) -> Numbers:
    """Expected against measured, and which of the claims hold."""
    runs = {arm: [run for run in results.values() if run["arm"] == arm] for arm in ARMS}
    arms = {
        arm: {name: interval([run[name] for run in own]) for name in ("base", *NAMES)}
        for arm, own in runs.items()
    }
    base = arms["DPO"]["base"]
    page.text(
        "A transformer of one layer learns a language of ten tokens, then prefers: 3000 pairs of "
        "its own completions, of which the one with the larger share of its topic (its quality) is "
        "mostly preferred; 200 updates of AdamW at 5e-4, batches of 64. Means over seeds with 95 % "
        f"intervals, by {DRAWN} draws of each model. The base has quality {shown(base)}. “biased”: "
        "raters also like length. Expected are the numbers of one seed of another implementation "
        "of such a language; the claims below are what is to agree."
    )
    columns = [
        "arm",
        "β",
        "expected quality",
        "quality",
        "wins over the base",
        "tokens",
        "KL, nats",
    ]
    rows = []
    for arm, numbers in arms.items():
        spreads = [shown(numbers[n], d) for n, d in zip(NAMES, (3, 3, 1, 1), strict=True)]
        rows.append([arm, f"{ARMS[arm][1]:g}", PUBLISHED[arm], *spreads])
    page.table(columns, rows)
    claims = claimed(arms)
    page.table(["claim", "holds", "measured"], [[c, "yes" if h else "no", m] for c, h, m in claims])
    page.figure("quality", _figure(arms), "Quality, length and KL of every arm")
    return {"arms": arms, "claims": {claim: holds for claim, holds, _ in claims}}


NAMES = ("quality", "wins", "length", "kl")


def claimed(arms: Numbers) -> list[tuple[str, bool, str]]:
    """What is claimed of the means, whether it holds, and the number that says so."""

    def mean(arm: str, name: str = "quality") -> float:
        return float(arms[arm][name][0])

    base = mean("DPO", "base")
    least = min(arms, key=mean)
    plain = min(mean(arm) for arm in ("LN-DPO", "SimPO", "Rainbow", "Rainbow without CS"))
    ahead = plain - mean("DPO")
    most = max(mean(f"biased DPO {beta}") for beta in ("0.1", "0.3", "1"))
    biased = mean("biased LN-DPO 2") - most
    lower = mean("DPO") - mean("DPO + SFT")
    apart = abs(mean("Rainbow") - mean("LN-DPO"))
    large, small = "Rainbow without CS, γ 3", "Rainbow without CS"
    kl, length = (mean(large, n) / mean(small, n) for n in ("kl", "length"))
    return [
        (
            "every arm > base + 0.08",
            mean(least) > base + 0.08,
            f"{least}: {mean(least) - base:+.3f}",
        ),
        ("length normalised > DPO + 0.2", ahead > 0.2, f"{ahead:+.3f}"),
        ("biased: LN-DPO at β 2 > best DPO + 0.2", biased > 0.2, f"{biased:+.3f}"),
        ("an SFT term lowers DPO's quality", lower > 0, f"{-lower:+.3f}"),
        ("Rainbow within 0.05 of LN-DPO", apart < 0.05, f"{apart:.3f}"),
        ("ten times the margin: KL × 1.3", kl > 1.3, f"× {kl:.2f}"),
        ("ten times the margin: length × 1.3", length > 1.3, f"× {length:.2f}"),
    ]


def _figure(arms: Numbers) -> Any:
    """Quality, KL and length of every arm with their intervals, and the expected qualities."""
    figure, panels = subplots(1, 3, size=(10, 5), grid="x", sharey=True)
    names = list(arms)[::-1]
    titles = {"quality": "quality (× expected)", "kl": "KL to the base, nats", "length": "tokens"}
    for axes, (name, title) in zip(panels, titles.items(), strict=True):
        for place, arm in enumerate(names):
            mean, low, high = arms[arm][name]
            colour = COLOURS[int(arm.startswith("biased"))]
            axes.plot([low, high], [place, place], color=colour)
            axes.plot(mean, place, "o", color=colour, markersize=4)
            if name == "quality":
                axes.plot(PUBLISHED[arm], place, "x", color="black", markersize=5)
        axes.set_xlabel(title)
    panels[0].set_yticks(range(len(names)), names, fontsize=8)
    return figure
