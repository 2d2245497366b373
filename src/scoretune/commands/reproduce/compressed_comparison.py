"""What is learned in several spaces, compared: intervals over seeds, tables, claims and figures.

An arm is a space; `ambient`, the states themselves, is what the others are compared with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from scoretune.commands.reproduce.base import Numbers, Page, claim_row, interval, shown
from scoretune.commands.reproduce.compressed_diffusion import SAMPLERS
from scoretune.commands.reproduce.compressed_sets import TITLES
from scoretune.commands.reproduce.drawing import COLOURS, subplots

PAPER = "EM 200"
"""The paper's kind of sampler."""
READ = ("confidence", "off_canvas")
"""What a reader says of digits."""


def summary(runs: list[Numbers], base: list[Numbers]) -> Numbers:
    """Means and intervals of an arm, and its differences to ambient diffusion, seed by seed."""
    samplers = {}
    for sampler, steps in SAMPLERS.items():
        if sampler not in runs[0]["samplers"]:
            continue
        mine, theirs = ([r["samplers"][sampler] for r in part] for part in (runs, base))
        total = [r["sample_seconds"] + r["decode_seconds"] for r in mine]
        plain = [r["sample_seconds"] + r["decode_seconds"] for r in theirs]
        samplers[sampler] = {
            "energy": interval([r["energy"] for r in mine]),
            "over": interval(
                [a["energy"] - b["energy"] for a, b in zip(mine, theirs, strict=True)]
            ),
            "sliced": interval([r["sliced"] for r in mine]),
            "sample_seconds": interval([r["sample_seconds"] for r in mine]),
            "decode_seconds": interval([r["decode_seconds"] for r in mine]),
            "seconds": interval(total),
            "faster": interval([b / a for a, b in zip(total, plain, strict=True)]),
            "operations": 2 * runs[0]["weights"] * steps,
            "decode_operations": interval([r["decode_operations"] for r in mine])[0],
        }
    extra = {key: interval([r[key] for r in runs]) for key in READ if key in runs[0]}
    return {
        "dimension": runs[0]["dimension"],
        "weights": runs[0]["weights"],
        "train_seconds": interval([r["train_seconds"] + r["latent_seconds"] for r in runs]),
        "samplers": samplers,
        **extra,
    }


def arms_table(about: Mapping[str, Numbers], page: Page) -> None:
    rows = []
    for arm, numbers in about.items():
        best = numbers["samplers"][PAPER]
        rows.append(
            [
                arm,
                numbers["dimension"],
                shown(numbers["train_seconds"], 0),
                f"{best['operations'] / 1e6:.0f} + {best['decode_operations'] / 1e6:.1f}",
                shown(best["sample_seconds"], 2),
                shown(best["decode_seconds"], 2),
                shown(best["faster"], 2),
                shown(best["energy"]),
                shown(best["over"], sign="+"),
                shown(best["sliced"]),
            ]
        )
    page.table(
        [
            *("latent", "numbers", "training, s", "MFLOP a sample: network + decoder"),
            *("sampling, s", "decoding, s", "times faster than ambient", "energy distance"),
            *("over ambient", "sliced W2"),
        ],
        rows,
    )


def samplers_table(about: Mapping[str, Numbers], page: Page) -> None:
    """Seconds and distance of every arm through every sampler."""
    full = {arm: n for arm, n in about.items() if len(n["samplers"]) == len(SAMPLERS)}
    page.table(
        ["energy distance (seconds)", *SAMPLERS],
        [
            [
                arm,
                *(f"{s['energy'][0]:.3f} ({s['seconds'][0]:.2f})" for s in n["samplers"].values()),
            ]
            for arm, n in full.items()
        ],
    )


def soonest(arm: Numbers, limit: float) -> float | None:
    """The least mean seconds of an arm through a sampler whose energy distance's mean is no more
    than the limit; None where no sampler of it comes there."""
    good = [s["seconds"][0] for s in arm["samplers"].values() if s["energy"][0] <= limit]
    return min(good, default=None)


def speed_claims(about: Mapping[str, Numbers]) -> list[Numbers]:
    """Whether measuring pays: through the paper's kind of sampler, and at equal quality."""
    claims = []
    base = about["ambient"]
    limit = min(s["energy"][2] for s in base["samplers"].values())
    first = soonest(base, limit)
    for arm in (arm for arm in about if arm.startswith(("m=", "linear="))):
        sampled = about[arm]["samplers"][PAPER]
        holds = sampled["faster"][0] >= 3 and sampled["over"][1] <= 0
        figure = f"{shown(sampled['faster'], 2)}; {shown(sampled['over'], sign='+')}"
        claims.append(
            claim_row(
                f"{arm}: times faster through {PAPER}, decoder included; distance over ambient",
                "≥ 3; interval holds 0 or better",
                figure,
                holds,
            )
        )
        mine = soonest(about[arm], limit)
        if mine is None or first is None:
            figure = "does not come there"
        else:
            figure = f"{first / mine:.2f} times as fast"
        claims.append(
            claim_row(
                f"{arm}: any sampler, to the least upper end of ambient's interval ({limit:.3f})",
                "≥ 3 times as fast",
                figure,
                mine is not None and first is not None and first / mine >= 3,
            )
        )
    return claims


def frontier_figure(numbers: Numbers) -> Any:
    figure, panels = subplots(1, len(numbers), squeeze=False, size=(5.2 * len(numbers) + 1.6, 4.4))
    for axes, (name, about) in zip(panels[0], numbers.items(), strict=True):
        arms = [arm for arm in about if arm != "claims"]
        full = [arm for arm in arms if len(about[arm]["samplers"]) == len(SAMPLERS)]
        networks = [arm for arm in full if not arm.startswith("linear=")]
        for arm in full:
            network = arm.replace("linear=", "m=")  # the same one, before another decoder
            colour = COLOURS[networks.index(network) % len(COLOURS)]
            ways = sorted(about[arm]["samplers"].values(), key=lambda s: s["seconds"][0])
            x, y = ([s[key][0] for s in ways] for key in ("seconds", "energy"))
            axes.plot(x, y, "o-" if arm in networks else "x--", color=colour, ms=4, label=arm)
        for arm, marker in zip([a for a in arms if a not in full], "x+*", strict=False):
            way = about[arm]["samplers"][PAPER]
            axes.plot(way["seconds"][0], way["energy"][0], marker, color="#555555", label=arm)
        axes.set(xscale="log", title=TITLES[name], xlabel="CPU seconds, with the decoder")
        axes.set_yscale("symlog", linthresh=0.1)
        axes.legend(frameon=False, fontsize=7)
    panels[0][0].set_ylabel("energy distance to held-out data")
    return figure


def samples_figure(runs: Mapping[str, Mapping[str, Numbers]]) -> Any:
    """A column a data set, of one run an arm: pictures side by side, or the first of a series'
    columns."""
    rows = max(map(len, runs.values()))
    size = (4.6 * len(runs), 0.85 * rows + 0.4)
    figure, panels = subplots(rows, len(runs), squeeze=False, size=size, grid="none")
    for column, (name, mine) in enumerate(runs.items()):
        for axes in panels[len(mine) :, column]:
            axes.set_visible(False)
        for axes, (arm, run) in zip(panels[:, column], mine.items(), strict=False):
            few = torch.tensor(run["shown"]) / 1000
            if few.dim() == 4:
                axes.imshow(torch.cat(list(few[:, 0]), 1).numpy(), cmap="gray", vmin=0, vmax=1)
            else:
                axes.plot(few[:4, 0].T.numpy(), linewidth=0.9)
            axes.set_title(f"{name}: {arm}", loc="left", fontsize=7, pad=2)
            axes.set(xticks=[], yticks=[], frame_on=False)
    return figure
