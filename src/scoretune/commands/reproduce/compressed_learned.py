"""Learned diffusion of data, of their measurements, and of other latents of the same size: how
good, how long to train, how long to sample with the decoder (arXiv 2509.03898's question)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoretune.commands.reproduce.base import (
    Cell,
    Numbers,
    Page,
    claim_row,
    interval,
    kept_tensors,
    shown,
)
from scoretune.commands.reproduce.compressed_diffusion import (
    BATCH,
    SAMPLERS,
    WIDTH,
    drawn,
    trained,
)
from scoretune.commands.reproduce.compressed_latents import (
    SPREAD,
    Latent,
    ambient,
    measured,
    principal,
    unrecovered,
    variational,
)
from scoretune.commands.reproduce.compressed_sets import (
    EDGE,
    TITLES,
    States,
    sets_in,
    states_of,
)
from scoretune.commands.reproduce.digits import DigitReader, handwriting, train_reader
from scoretune.commands.reproduce.drawing import COLOURS, subplots
from scoretune.diffusion import estimates
from scoretune.evaluate import metrics

SEED = 1234
"""Of the first operator; every seed draws another."""
PAPER = "EM 200"


@dataclass(frozen=True)
class Budget:
    """Updates of a score network and of the VAE, and samples that are compared."""

    updates: int
    autoencoder: int
    samples: int = 300


FULL = {
    "digits": Budget(1000, 500),
    "factors": Budget(800, 400),
    "mnist": Budget(800, 400),
    "rain": Budget(800, 400),
    "breast": Budget(800, 400),
}
QUICK = Budget(6, 4, 40)


# ------------------------------------------------------------------------------------ the cells


def cells(seeds: int, quick: bool, data: str | None = None) -> list[Cell]:
    """Every data set, seed and latent; first all seeds of the first set."""
    made = []
    for name in sets_in(data):
        for seed in range(seeds):
            for arm in arms_of(name, data, quick):
                plan = {"name": name, "arm": arm, "seed": seed, "data": data, "quick": quick}
                made.append(Cell(f"{name}:{arm}-{seed}", run, plan, keeps_files=True))
    return made


def arms_of(name: str, data: str | None, quick: bool) -> list[str]:
    """Ambient, measured at several m, and the other latents at the middle one; a rehearsal has one
    of each but the VAE."""
    sizes = states_of(name, data).sizes
    if quick:
        return ["ambient", f"m={sizes[1]}", f"PCA={sizes[1]}"]
    arms = ["ambient", *(f"m={m}" for m in sizes)]
    arms += [f"{kind}={sizes[1]}" for kind in ("PCA", "VAE")]
    return arms + ([f"noise={sizes[-1]}"] if name == "digits" else [])


def run(name: str, arm: str, seed: int, data: str | None, quick: bool, folder: Path) -> Numbers:
    """Train in a latent, sample in several ways, decode, compare with held-out data."""
    states, budget = states_of(name, data), QUICK if quick else FULL[name]
    kind, _, size = arm.partition("=")
    start = time.process_time()
    latent = _latent(kind, int(size or 0), states, budget, seed)
    made = time.process_time() - start
    start = time.process_time()
    prediction = estimates.noise if kind == "noise" else estimates.data
    scorer = trained(latent.encode(states.learned), prediction, budget.updates, seed)
    numbers: Numbers = {
        "dimension": latent.dimension,
        "latent_seconds": made,
        "train_seconds": time.process_time() - start,
        "weights": sum(p.numel() for p in scorer.network.parameters()),
        "samplers": {},
    }
    for sampler in SAMPLERS if kind != "noise" else [PAPER]:
        z, seconds = drawn(scorer, latent.dimension, budget.samples, sampler, seed)
        about, x = decoded(latent, z, states, seconds)
        numbers["samplers"][sampler] = about
        if sampler == PAPER:
            numbers["shown"] = _few(x, states)
            numbers |= _read(name, x, folder)
            if kind == "m" and int(size) == states.sizes[1]:
                numbers["others"] = _others(states, int(size), z, seed, seconds)
    return numbers


def _latent(kind: str, size: int, states: States, budget: Budget, seed: int) -> Latent:
    if kind == "ambient":
        return ambient(states)
    if kind == "PCA":
        return principal(states, size)
    if kind == "VAE":
        return variational(states, size, width=WIDTH, updates=budget.autoencoder, seed=seed)
    return measured(states, size, SEED + seed)


@torch.no_grad()
def decoded(latent: Latent, z: Tensor, states: States, seconds: float) -> tuple[Numbers, Tensor]:
    """Distances of decoded latents to held-out data, and what decoding took."""
    start = time.process_time()
    x, operations = latent.decode(z)
    spent = time.process_time() - start
    real = states.held_out.flatten(1)
    numbers = {
        "sample_seconds": seconds,
        "decode_seconds": spent,
        "decode_operations": operations,
        "energy": metrics.energy_distance(x, real),
        "sliced": metrics.sliced_wasserstein(x, real),
    }
    return numbers, x


def _others(states: States, m: int, z: Tensor, seed: int, seconds: float) -> Numbers:
    """The same samples without recovery; and a Gaussian law fitted to measurements, recovered."""
    compressed = measured(states, m, SEED + seed)
    y = compressed.encode(states.learned).double()
    values, vectors = torch.linalg.eigh(torch.cov(y.T))
    root = vectors * values.clamp_min(0).sqrt()
    noise = torch.randn(len(z), m, generator=torch.Generator().manual_seed(seed)).double()
    plain = (y.mean(0) + noise @ root.T).float()
    raw, _ = decoded(unrecovered(states, m, SEED + seed), z, states, seconds)
    law, x = decoded(compressed, plain, states, 0.0)
    return {f"linear={m}": raw, f"Gaussian law={m}": law | {"shown": _few(x, states)}}


def _few(x: Tensor, states: States) -> list[Any]:
    """A few samples, short enough for a file of results."""
    few = x[:6].view(-1, *states.shape)
    return (few * 1000).round().int().tolist()


def _read(name: str, x: Tensor, folder: Path) -> Numbers:
    """Of digits: what a classifier of them thinks, and the energy off their middle."""
    if name != "digits":
        return {}
    side = 8 + 2 * EDGE
    images = x.view(-1, 1, side, side)
    inner = images[:, :, EDGE:-EDGE, EDGE:-EDGE]
    reader = _reader(folder)
    with torch.no_grad():
        sure = reader(inner.expand(-1, 3, -1, -1)).softmax(1).amax(1).mean()
    off = 1 - inner.square().sum() / images.square().sum().clamp_min(1e-12)
    return {"confidence": float(sure), "off_canvas": float(off)}


def _reader(folder: Path) -> DigitReader:
    reader = DigitReader()
    make = lambda: train_reader(handwriting()[0]).state_dict()  # noqa: E731
    reader.load_state_dict(kept_tensors(folder / "reader.safetensors", make))
    return reader.eval()


# ------------------------------------------------------------------------------------- the page


def present(results: dict[str, Numbers], page: Page) -> Numbers:
    """For every data set a table of arms, what holds, and figures of all."""
    page.text(ABOUT.format(width=WIDTH, spread=SPREAD))
    numbers: Numbers = {}
    for name in dict.fromkeys(cell.partition(":")[0] for cell in results):
        arms = _arms(results, name)
        about = numbers[name] = {arm: _summary(runs, arms["ambient"]) for arm, runs in arms.items()}
        page.text(f"## {TITLES[name]}\n\n{_heading(name, arms)}")
        _table(about, page)
        _by_sampler(about, page)
        claims = [*_speed_claims(about), *(_digit_claims(about) if name == "digits" else [])]
        page.claims(claims)
        about["claims"] = claims
        if name in EXPLAINED:
            page.text(EXPLAINED[name])
    page.figure("frontier", _frontier(numbers), "distance by seconds of sampling and decoding")
    page.figure("samples", _samples(results), "samples of the first seed")
    return numbers


def _arms(results: Mapping[str, Numbers], name: str) -> dict[str, list[Numbers]]:
    """Every arm's runs by seed; those that share a network with another one beside it."""
    arms: dict[str, list[Numbers]] = {}
    for cell, run in results.items():
        label, _, arm = cell.rpartition("-")[0].partition(":")
        if label == name:
            arms.setdefault(arm, []).append(run)
            for other, numbers in run.get("others", {}).items():
                same = run if other.startswith("linear") else {**run, "weights": 0}
                same = {**same, "samplers": {PAPER: numbers}, "shown": numbers.get("shown")}
                arms.setdefault(other, []).append(same)
    return arms


def _summary(runs: list[Numbers], base: list[Numbers]) -> Numbers:
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


def _table(about: Mapping[str, Numbers], page: Page) -> None:
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


def _by_sampler(about: Mapping[str, Numbers], page: Page) -> None:
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


def _speed_claims(about: Mapping[str, Numbers]) -> list[Numbers]:
    """Whether measuring pays: through the paper's kind of sampler, and at equal quality."""
    claims = []
    base = about["ambient"]
    limit = min(s["energy"][2] for s in base["samplers"].values())
    first = soonest(base, limit)
    for arm in (arm for arm in about if arm.startswith("m=")):
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


def _digit_claims(about: Mapping[str, Numbers]) -> list[Numbers]:
    """What the specification of this experiment measured after 6000 updates."""
    at = {arm: n["samplers"][PAPER]["energy"][0] for arm, n in about.items()}
    claims = []
    for arm in [arm for arm in ("m=144", "m=196") if arm in about]:
        sure, off = about[arm]["confidence"][0], about[arm]["off_canvas"][0]
        claims += [
            claim_row(f"energy distance, {arm}", "≤ 0.12", at[arm], at[arm] <= 0.12),
            claim_row(f"classifier's confidence, {arm}", "≥ 0.82", sure, sure >= 0.82),
            claim_row(f"share of energy off the canvas, {arm}", "≤ 0.03", off, off <= 0.03),
        ]
    law = at["Gaussian law=144"]
    claims.append(
        claim_row("energy distance, Gaussian law", "0.17 … 0.22", law, 0.17 <= law <= 0.22)
    )
    if "noise=196" in at:
        below, eps = at["m=64"], at["noise=196"] / at["m=196"]
        claims += [
            claim_row("energy distance below δ, m=64", "about 1.8", below, 1.2 <= below <= 2.4),
            claim_row("ε-prediction over x0-prediction, m=196", "≥ 5 times", eps, eps >= 5),
        ]
    return claims


def _heading(name: str, arms: Mapping[str, list[Numbers]]) -> str:
    budget, runs = FULL[name], arms["ambient"]
    return (
        f"{runs[0]['dimension']} numbers a state, {budget.updates:,} updates in batches of "
        f"{BATCH}, {budget.samples} samples, {len(runs)} seeds, each with its own operator."
    )


def _frontier(numbers: Numbers) -> Any:
    figure, panels = subplots(1, len(numbers), squeeze=False, size=(5.2 * len(numbers) + 1.6, 4.4))
    for axes, (name, about) in zip(panels[0], numbers.items(), strict=True):
        arms = [arm for arm in about if arm != "claims"]
        full = [arm for arm in arms if len(about[arm]["samplers"]) == len(SAMPLERS)]
        for arm, colour in zip(full, COLOURS, strict=False):
            ways = sorted(about[arm]["samplers"].values(), key=lambda s: s["seconds"][0])
            x, y = ([s[key][0] for s in ways] for key in ("seconds", "energy"))
            axes.plot(x, y, "o-", color=colour, ms=4, label=arm)
        for arm, marker in zip([a for a in arms if a not in full], "x+*", strict=False):
            way = about[arm]["samplers"][PAPER]
            axes.plot(way["seconds"][0], way["energy"][0], marker, color="#555555", label=arm)
        axes.set(xscale="log", title=TITLES[name], xlabel="CPU seconds, with the decoder")
        axes.set_yscale("symlog", linthresh=0.1)
        axes.legend(frameon=False, fontsize=7)
    panels[0][0].set_ylabel("energy distance to held-out data")
    return figure


def _samples(results: Mapping[str, Numbers]) -> Any:
    """A row an arm: pictures side by side, or the first of a series' columns."""
    first = {
        cell.rpartition("-")[0]: run
        for cell, run in results.items()
        if cell.endswith("-0") and run["samplers"]
    }
    names = list(dict.fromkeys(cell.partition(":")[0] for cell in first))
    rows = max(sum(cell.startswith(f"{name}:") for cell in first) for name in names)
    size = (4.6 * len(names), 0.85 * rows + 0.4)
    figure, panels = subplots(rows, len(names), squeeze=False, size=size, grid="none")
    for column, name in enumerate(names):
        mine = {c.partition(":")[2]: r for c, r in first.items() if c.startswith(f"{name}:")}
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


READ = ("confidence", "off_canvas")
ABOUT = """
The same perceptron (two hidden layers of {width}, x0-prediction, VP) learns the states themselves
(ambient), m Gaussian measurements that sparse recovery decodes, m principal components, and the m
latents of a small VAE; all latents have one common mean and deviation. `linear` are the samples of
the measured arm with the best linear decoder of the data in place of recovery; `Gaussian law` draws
measurements from the Gaussian of the same mean and covariance, and recovers. The decoder is FISTA
from the linear guess, its weight {spread} of the measurements' deviation.

EM are steps of Euler–Maruyama, DPM of DPM-Solver++(2M), all with x̂0 at the end. Seconds are CPU
seconds of one thread for all samples at once, decoding included where it says so. The energy
distance is to held-out data, unbiased, hence below 0 at times; differences are paired by seed.
Intervals are 95 % of Student's t over seeds.
"""
EXPLAINED = {
    "digits": """
The perceptron learns the dark canvas of ambient digits as a constant, so the ambient space costs it
nothing but wider first and last layers. What it draws between digits is not as sparse as digits
are, and recovery, exact for digits, puts a part of it on the canvas; the linear decoder does not.
The specification's figures are of 6,000 updates.
""",
    "factors": """
Intervals here are wide: that of a difference holding 0 says little with three seeds, and ambient
diffusion is better in fewer steps of the other solver, where the decoder takes most of the time of
what is measured. Through few steps measuring does not pay at this size of a network.
""",
}
