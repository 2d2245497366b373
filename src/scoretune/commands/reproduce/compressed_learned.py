"""Learned diffusion of data, of their measurements, and of other latents of the same size: how
good, how long to train, how long to sample with the decoder (arXiv 2509.03898's question)."""

from __future__ import annotations

import itertools
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
    kept_tensors,
)
from scoretune.commands.reproduce.compressed_comparison import (
    PAPER,
    arms_table,
    frontier_figure,
    samplers_table,
    samples_figure,
    speed_claims,
    summary,
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
from scoretune.diffusion import estimates
from scoretune.evaluate import metrics

SEED = 1234
"""Of the first operator; every seed draws another."""


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
    "rain": Budget(400, 200, 200),
    "breast": Budget(800, 400),
}
QUICK = Budget(6, 4, 40)


# ------------------------------------------------------------------------------------ the cells


def cells(seeds: int, quick: bool, data: str | None = None) -> list[Cell]:
    """Every data set, seed and latent; first all seeds of the first set."""
    plans = [
        {"name": name, "arm": arm, "seed": seed, "data": data, "quick": quick}
        for name in sets_in(data)
        for seed, arm in itertools.product(range(seeds), arms_of(name, data, quick))
    ]
    return [
        Cell("{name}:{arm}-{seed}".format(**plan), run, plan, keeps_files=True) for plan in plans
    ]


def arms_of(name: str, data: str | None, quick: bool) -> list[str]:
    """Ambient, measured at several m, and the other latents at the second; a rehearsal has one
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
    latent_seconds = time.process_time() - start
    start = time.process_time()
    prediction = estimates.noise if kind == "noise" else estimates.data
    scorer = trained(latent.encode(states.learned), prediction, budget.updates, seed)
    numbers: Numbers = {
        "dimension": latent.dimension,
        "latent_seconds": latent_seconds,
        "train_seconds": time.process_time() - start,
        "weights": sum(p.numel() for p in scorer.network.parameters()),
        "samplers": {},
    }
    linear = unrecovered(states, int(size), SEED + seed) if kind == "m" else None
    if linear is not None:
        numbers["linear"] = {"samplers": {}}
    for sampler in SAMPLERS if kind != "noise" else [PAPER]:
        z, seconds = drawn(scorer, latent.dimension, budget.samples, sampler, seed)
        about, x = decoded(latent, z, states, seconds)
        numbers["samplers"][sampler] = about
        if sampler == PAPER:
            numbers["shown"] = _few(x, states)
            numbers |= _read(name, x, folder)
        if linear is not None:
            about, x = decoded(linear, z, states, seconds)
            numbers["linear"]["samplers"][sampler] = about
            if sampler == PAPER:
                numbers["linear"]["shown"] = _few(x, states)
    if kind == "m" and int(size) == states.sizes[1]:
        numbers["law"] = _gaussian_law(states, latent, budget.samples, seed)
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


def _gaussian_law(states: States, latent: Latent, samples: int, seed: int) -> Numbers:
    """Samples of a Gaussian law fitted to measurements, recovered: no network."""
    y = latent.encode(states.learned).double()
    values, vectors = torch.linalg.eigh(torch.cov(y.T))
    root = vectors * values.clamp_min(0).sqrt()
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(samples, latent.dimension, generator=generator).double()
    law, x = decoded(latent, (y.mean(0) + noise @ root.T).float(), states, 0.0)
    return {"samplers": {PAPER: law}, "shown": _few(x, states)}


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
    first: dict[str, dict[str, Numbers]] = {}
    for name in dict.fromkeys(cell.partition(":")[0] for cell in results):
        arms = _arms(results, name)
        first[name] = {arm: runs[0] for arm, runs in arms.items()}
        about = numbers[name] = {arm: summary(runs, arms["ambient"]) for arm, runs in arms.items()}
        page.text(f"## {TITLES[name]}\n\n{_heading(name, arms)}")
        arms_table(about, page)
        samplers_table(about, page)
        claims = [*speed_claims(about), *(_digit_claims(about) if name == "digits" else [])]
        page.claims(claims)
        about["claims"] = claims
        if name in EXPLAINED:
            page.text(EXPLAINED[name])
    page.figure(
        "frontier", frontier_figure(numbers), "distance by seconds of sampling and decoding"
    )
    page.figure("samples", samples_figure(first), "samples of the first seed")
    return numbers


def _arms(results: Mapping[str, Numbers], name: str) -> dict[str, list[Numbers]]:
    """Every arm's runs by seed; the other decoder and the Gaussian law of its measurements beside
    it."""
    arms: dict[str, list[Numbers]] = {}
    for cell, run in results.items():
        label, _, arm = cell.rpartition("-")[0].partition(":")
        if label == name:
            arms.setdefault(arm, []).append(run)
            size = run["dimension"]
            if "linear" in run:
                arms.setdefault(f"linear={size}", []).append({**run, **run["linear"]})
            if "law" in run:
                law = {**run, **run["law"], "weights": 0}
                arms.setdefault(f"Gaussian law={size}", []).append(law)
    return arms


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


ABOUT = """
The same perceptron (two hidden layers of {width}, x0-prediction, VP) learns the states themselves
(ambient), m Gaussian measurements that sparse recovery decodes, m principal components, and the m
latents of a small VAE; all latents have one common mean and deviation. `linear` are the samples of
the measured arm with the best linear decoder of the data in place of recovery
(`compress.decoder=linear`); `Gaussian law` draws
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
    "mnist": """
δ is a third of MNIST's numbers (267 of 784). Sparse recovery speckles what the network drew, at
every m: measurements that are drawn are not exactly those of a sparse picture, and recovery puts
the difference on the dark pixels; below δ (196) it fails. The linear decoder of the very same
measurements shows digits. It costs nothing, so that sampling is 2.4 times faster with 196
measurements at no larger a distance than ambient diffusion, and 2.0 times to an equal distance by
any sampler. The energy distance of pixels hardly counts speckle (441 measurements are at 0.39
with it and at 0.41 without), and a Gaussian law of measurements is at 0.57: look at the pictures.
""",
    "rain": """
All of these models are poor: after 400 updates ambient samples are saturated or black, measured
ones a few coarse blocks or smooth shades, and none looks like rain; a Gaussian law of measurements,
without any network, is at 0.59. So the claims that hold are about cost: the network of 144
measurements is 15 times cheaper, and with the linear decoder nothing else is left, 11 times faster
through Euler–Maruyama and 4 times to the distance that ambient diffusion reaches in few steps of
the other solver. Sparse recovery of 4,096 numbers takes 70 % of the time that is left, so that
sampling is 2.9 times faster, and not 3. All numbers of measurements are below δ (about 1,400 of
4,096 for all but a tenth of the norm, in Haar wavelets).
""",
    "breast": """
δ is nearly half of the numbers (450 of 1,024). Below it (144, 256) sparse recovery shows speckle,
and at 480, just above, grainy slices; the linear decoder of the same measurements shows slices
like those of ambient diffusion, at no larger a distance, 2.97 times faster with 144 measurements
and 2.6 times with 256. That is what principal components and the VAE do as well, whose axes have
to be learned. Through few steps of the other solver ambient diffusion is nearer and as quick.
""",
    "factors": """
Intervals here are wide: that of a difference holding 0 says little with three seeds, and ambient
diffusion is better in fewer steps of the other solver, where the decoder takes most of the time of
what is measured. Through few steps measuring does not pay at this size of a network.
""",
}
