"""Learned diffusion of data, of their measurements, and of other latents of the same size: how
good, how long to train, how long to sample with the decoder (arXiv 2509.03898's question)."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scoretune.commands.reproduce.base import Cell, Numbers
from scoretune.commands.reproduce.compressed_latents import (
    Latent,
    ambient,
    measured,
    principal,
    unrecovered,
    variational,
)
from scoretune.commands.reproduce.compressed_sets import (
    EDGE,
    States,
    sets_in,
    states_of,
)
from scoretune.commands.reproduce.denoiser import Perceptron, follow
from scoretune.commands.reproduce.digits import DigitReader, handwriting, train_reader
from scoretune.diffusion import estimates, grids
from scoretune.diffusion.estimates import Estimate, Prediction
from scoretune.diffusion.processes import VP, expand
from scoretune.diffusion.solvers import dpmpp_2m, euler_maruyama
from scoretune.evaluate import metrics

PROCESS, WIDTH, END, BATCH, RATE = VP(), 256, 0.01, 128, 1e-3
SEED = 1234
"""Of the first operator; every seed draws another."""
SAMPLERS = {
    "EM 200": 200,
    "EM 100": 100,
    "EM 50": 50,
    "EM 25": 25,
    "DPM 20": 20,
    "DPM 10": 10,
}
"""Euler–Maruyama of the reverse SDE in equal steps, and DPM-Solver++(2M) on a Karras grid; both
end at t = 0.01 with x̂0."""
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


@dataclass(frozen=True)
class Scorer:
    """A perceptron of two hidden layers that predicts x0 (or ε) of latents in one common scale."""

    network: nn.Module
    prediction: Prediction
    mean: Tensor
    std: Tensor

    def __call__(self, x: Tensor, t: Tensor) -> Estimate:
        alpha, sigma = PROCESS.alpha(t), PROCESS.sigma(t)
        scaled = x / expand(torch.hypot(alpha, sigma), x)
        output = self.network(scaled.float(), (torch.log(sigma / alpha) / 4).float())
        return estimates.read(PROCESS, self.prediction, t, x, output)


# ------------------------------------------------------------------------------------ the cells


def cells(seeds: int, quick: bool, data: str | None = None) -> list[Cell]:
    """Every data set, seed and latent; first all seeds of the first set."""
    made = []
    for name in sets_in(data):
        for seed in range(seeds):
            for arm in arms_of(name, data):
                plan = {"name": name, "arm": arm, "seed": seed, "data": data, "quick": quick}
                made.append(Cell(f"{name}:{arm}-{seed}", run, plan, keeps_files=True))
    return made


def arms_of(name: str, data: str | None) -> list[str]:
    """Ambient, measured at several m, and the other latents at the middle one."""
    sizes = states_of(name, data).sizes
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


def trained(z: Tensor, prediction: Prediction, updates: int, seed: int) -> Scorer:
    """Adam with a cosine to 0 on the error of the prediction, t uniform; averaged weights."""
    torch.manual_seed(seed)
    network = Perceptron(z.shape[1], WIDTH)
    kept = copy.deepcopy(network)
    scorer = Scorer(network, prediction, z.mean(), z.std())
    z = (z - scorer.mean) / scorer.std
    optimiser = torch.optim.Adam(network.parameters(), RATE, fused=True)
    for update in range(updates):
        x0 = z[torch.randint(len(z), (BATCH,))]
        t, eps = 1e-3 + (1 - 1e-3) * torch.rand(BATCH), torch.randn_like(x0)
        estimate = scorer(estimates.perturb(PROCESS, t, x0, eps), t)
        missed = estimate.noise - eps if prediction is estimates.noise else estimate.data - x0
        for group in optimiser.param_groups:
            group["lr"] = RATE * (1 + math.cos(math.pi * update / updates)) / 2
        optimiser.zero_grad()
        missed.square().mean().backward()
        optimiser.step()
        follow(kept, network, max(0.005, 1 / (update + 1)))
    return Scorer(kept.eval().requires_grad_(False), prediction, scorer.mean, scorer.std)


@torch.no_grad()
def drawn(
    scorer: Scorer, dimension: int, count: int, sampler: str, seed: int
) -> tuple[Tensor, float]:
    """Latents [count, k], and the CPU seconds that they took."""
    generator, steps = torch.Generator().manual_seed(1000 + seed), SAMPLERS[sampler]
    x = torch.randn(count, dimension, generator=generator)
    start = time.process_time()
    if sampler.startswith("EM"):
        times = grids.uniform(PROCESS, steps, END)
        x = euler_maruyama(PROCESS, scorer, x, times, generator=generator)
    else:
        times = grids.karras(PROCESS, steps, t_end=END)
        x = dpmpp_2m(PROCESS, scorer, x, times)
    x = scorer(x, times[-1:].expand(count)).data * scorer.std + scorer.mean
    return x, time.process_time() - start


@torch.no_grad()
def decoded(
    latent: Latent, z: Tensor, states: States, seconds: float
) -> tuple[Numbers, Tensor]:
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
    from scoretune.commands.reproduce.base import kept_tensors

    reader = DigitReader()
    make = lambda: train_reader(handwriting()[0]).state_dict()  # noqa: E731
    reader.load_state_dict(kept_tensors(folder / "reader.safetensors", make))
    return reader.eval()
