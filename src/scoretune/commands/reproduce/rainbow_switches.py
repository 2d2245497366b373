"""Every switch of the general preference loss: added alone to DPO, added to length normalisation,
and removed alone from RainbowPO (arXiv 2410.04203, sections 4 and 5), in the tiny language.

The reward of this language cannot be gamed, so that the smaller β is, the better an arm does. Arms
are therefore compared at equal distance from the base: β of every arm is the one that moves it as
far as all others, looked for with as many runs, on seeds that are not reported.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from scoretune.commands.reproduce.base import Cell, Numbers, Page, interval, shown
from scoretune.commands.reproduce.drawing import COLOURS, subplots
from scoretune.commands.reproduce.rainbow_world import Data, file_name, learn, measured, world
from scoretune.preference import PRESETS, Preset

TUNING = (100, 101)
"""Seeds by which β is chosen."""
KL = 8.0
"""Nats between a learned model and the base, which every arm is to reach."""
START = {False: 0.03, True: 1.0}
"""The first β that is tried, without and with length normalisation; the second is STEP times it."""
TRIALS, STEP = 4, 3.0
MARGIN = {False: 3.0, True: 0.3}
"""Home advantage, a difference of log-likelihoods of a text or of a token; a text has about ten."""
SFT, MIX = 0.05, 0.5

DPO, LN = PRESETS["dpo"], PRESETS["ln_dpo"]
LINKS = {"square": "square", "hinge": "hinge", "squared hinge": "squared_hinge", "Cauchy": "cauchy"}


def _added(base: Preset) -> dict[str, tuple[Preset, Data]]:
    """Each switch added to a base, by its name."""
    margin = MARGIN[base.length_normalised]
    arms: dict[str, tuple[Preset, Data]] = {
        f"link: {name}": (replace(base, link=link), "plain")  # type: ignore[arg-type]
        for name, link in LINKS.items()
    }
    arms["margin"] = (replace(base, home_advantage=margin), "plain")
    mixed = replace(base, reference_weight=MIX, mixing=True, home_advantage=margin)
    arms["mixing"] = (mixed, "plain")
    free = replace(base, reference_weight=0.0, home_advantage=margin)
    arms["margin, no reference"] = (free, "plain")
    arms["contextual scaling"] = (replace(base, scaling="dispersion"), "plain")
    arms["rejection sampling"] = (base, "resampled")
    arms["SFT"] = (replace(base, sft_weight=SFT), "plain")
    return arms


RAINBOW = replace(
    LN, reference_weight=MIX, mixing=True, home_advantage=MARGIN[True], scaling="dispersion"
)
ARMS: dict[str, tuple[Preset, Data]] = {
    "DPO": (DPO, "plain"),
    "DPO + length normalisation": (LN, "plain"),
    **{f"DPO + {name}": arm for name, arm in _added(DPO).items()},
    **{f"LN + {name}": arm for name, arm in _added(LN).items()},
    "Rainbow": (RAINBOW, "plain"),
    "Rainbow without length normalisation": (
        replace(RAINBOW, length_normalised=False, home_advantage=MARGIN[False]),
        "plain",
    ),
    "Rainbow without margin": (replace(RAINBOW, home_advantage=0.0), "plain"),
}
SAME = {
    "Rainbow without mixing": "LN + contextual scaling",
    "Rainbow without contextual scaling": "LN + mixing",
}
"""Arms that are another one."""
REHEARSED = (
    *("DPO", "DPO + length normalisation", "DPO + rejection sampling", "DPO + SFT"),
    *SAME.values(),
    "Rainbow",
)


def cells(seeds: int, quick: bool) -> list[Cell]:
    """Each arm: its β, and then its runs."""
    return [
        Cell(
            file_name(arm),
            tuned,
            {"arm": arm, "seeds": seeds, "quick": quick},
            keeps_files=True,
        )
        for arm in (REHEARSED if quick else ARMS)
    ]


def tuned(arm: str, seeds: int, quick: bool, folder: Path) -> Numbers:
    """β by the KL on the tuning seeds, and the runs of the others with it."""
    preset, data = ARMS[arm]
    tuning: Sequence[int] = TUNING[: 1 if quick else None]

    def run(seed: int, beta: float) -> Numbers:
        place = world(seed, data, folder, quick)
        return measured(learn(place, preset, beta, seed, quick), place.base, seed, quick)

    def moved(beta: float) -> float:
        kl = sum(float(run(seed, beta)["kl"]) for seed in tuning) / len(tuning)
        return max(kl, 1e-3)  # an estimate by draws, which may come out below 0

    first = START[preset.length_normalised]
    trials = {first: moved(first)}
    for _ in range(0 if quick else TRIALS - 1):
        beta = next_beta(trials)
        trials[beta] = moved(beta)
    best = min(trials, key=lambda beta: abs(math.log(trials[beta] / KL)))
    return {
        "arm": arm,
        "beta": best,
        "trials": {f"{beta:.4g}": kl for beta, kl in trials.items()},
        "runs": [run(seed, best) for seed in range(seeds)],
    }


def next_beta(trials: dict[float, float]) -> float:
    """Where ln KL, as a straight line in ln β between neighbouring trials, is ln `KL`.

    Beyond the trials it is STEP times the nearest of them: a KL falls as β grows.

    Args:
        trials: KL in nats of every β that was tried, at least one.
    """
    by_size = sorted(trials)
    for low, high in pairwise(by_size):
        if trials[high] < KL <= trials[low]:
            share = math.log(trials[low] / KL) / math.log(trials[low] / trials[high])
            return low * math.exp(share * math.log(high / low))
    if all(kl < KL for kl in trials.values()):
        return by_size[0] / STEP
    return by_size[-1] * STEP


def present(results: dict[str, Numbers], page: Page) -> Numbers:
    """Three tables: what each switch changes where it is added, and where it is removed."""
    arms = {numbers["arm"]: numbers for numbers in results.values()}
    arms |= {name: arms[same] for name, same in SAME.items()}
    page.text(
        "The tiny language of the part `language`, the same pairs, 200 updates. Quality is the "
        "topic's share of a completion's words, by 1000 draws. It cannot be gamed, and rises as β "
        f"falls; so β of every arm is the one of {TRIALS} trials whose models are nearest to "
        f"{KL:g} nats from the base on seeds {TUNING[0]} and {TUNING[1]}, and arms are compared at "
        "equal distance. Differences are those of runs of the same seed, with 95 % intervals."
    )
    groups = {
        "added to DPO": ("DPO", "DPO +"),
        "added to LN-DPO": ("DPO + length normalisation", "LN +"),
        "removed from RainbowPO": ("Rainbow", "Rainbow without"),
    }
    effects: Numbers = {}
    for title, (parent, start) in groups.items():
        page.text(f"## A switch {title}")
        rows = [_row(arms, parent, parent)]
        for name in (arm for arm in arms if arm.startswith(start)):
            effects[name] = _difference(arms, name, parent)
            rows.append(_row(arms, name, parent))
        page.table(
            ["arm", "β", "quality", "change", "wins over the base", "tokens", "KL, nats"], rows
        )
    page.figure("switches", _figure(effects), "What every switch changes in quality")
    spreads = {
        name: {
            "beta": numbers["beta"],
            "trials": numbers["trials"],
            **{n: interval([run[n] for run in numbers["runs"]]) for n in NAMES},
        }
        for name, numbers in arms.items()
    }
    return {"arms": spreads, "effects": effects}


NAMES = ("quality", "wins", "length", "kl")


def _difference(arms: Numbers, name: str, parent: str) -> Sequence[float]:
    """The mean change of quality from one arm to another, seed by seed, and its interval."""
    runs, others = arms[name]["runs"], arms[parent]["runs"]
    return interval([a["quality"] - b["quality"] for a, b in zip(runs, others, strict=True)])


def _row(arms: Numbers, name: str, parent: str) -> list[object]:
    runs = arms[name]["runs"]
    spreads = [interval([run[n] for run in runs]) for n in NAMES]
    change = "" if name == parent else shown(_difference(arms, name, parent), sign="+")
    quality, wins, length, kl = (shown(s, d) for s, d in zip(spreads, (3, 3, 1, 1), strict=True))
    return [name, f"{arms[name]['beta']:.3g}", quality, change, wins, length, kl]


def _figure(effects: Numbers) -> Any:
    """Every switch's change of quality with its interval."""
    figure, axes = subplots(size=(7, 6), grid="x")
    names = list(effects)[::-1]
    for place, name in enumerate(names):
        mean, low, high = effects[name]
        group = ("DPO", "LN ", "Rai").index(name[:3])
        axes.plot([low, high], [place, place], color=COLOURS[group])
        axes.plot(mean, place, "o", color=COLOURS[group])
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlabel("change of quality")
    return figure
