"""Pictures under VP, sub-VP and contractive sub-VP: the same network, work and samplers.

The CIFAR-10 and MNIST comparison of arXiv 2401.13115 in miniature, with Fréchet distances on the
features of a small classifier of the same pictures.
"""

from __future__ import annotations

from itertools import pairwise, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoretune.commands.reproduce.base import Cell, Numbers, Page, interval, shown
from scoretune.commands.reproduce.denoiser import END, Denoiser
from scoretune.commands.reproduce.drawing import COLOURS, legend_outside, subplots
from scoretune.commands.reproduce.image_base import (
    FULL,
    QUICK,
    Budget,
    Reader,
    network_for,
    reader_for,
    trained,
)
from scoretune.commands.reproduce.image_data import Pictures, compressed, kinds_in, pictures_of
from scoretune.diffusion import grids
from scoretune.diffusion.kernels import GDDIM, Constant, EulerMaruyama, Kernel
from scoretune.diffusion.processes import EDM, VP, ContractiveSubVP, Process, SubVP, noise_ratio
from scoretune.diffusion.solvers import dpmpp_2m
from scoretune.evaluate.metrics import frechet_distance

PROCESSES: dict[str, Process] = {
    "VP": VP(),
    "sub-VP": SubVP(),
    "contractive sub-VP": ContractiveSubVP(0.01, 8.0),
}
BASELINE = "contractive sub-VP"
COMMON = float(noise_ratio(PROCESSES[BASELINE], torch.tensor(1.0, dtype=torch.float64)))
"""σ/α = 7.27 at the contractive horizon: the longest range of noise that all processes share."""
SAMPLERS = {
    "EM": "Euler–Maruyama of the reverse SDE, 30 equal steps of the process's own time",
    "ancestral": "ancestral sampling, 20 steps of a Karras grid from the process's own prior",
    "ODE": "DPM-Solver++(2M), 15 steps of a Karras grid from the process's own prior",
    "ODE, common range": f"the same from N(0, {COMMON:.2f}² I) for all: only training differs",
}
OFF = {
    "ancestral, off centre": "ancestral",
    "ODE, off centre": "ODE",
}
"""For the contractive process alone: starts whose mean is that of pixels in [−1, 1]."""


def cells(seeds: int, quick: bool, *, data: str | None = None) -> list[Cell]:
    """Real pictures against each other, then every kind, seed and process."""
    kinds, made = kinds_in(data), list[Cell]()
    for kind in kinds:
        arguments = {"kind": kind, "data": data, "quick": quick}
        made.append(Cell(f"{kind}-real", real, arguments, keeps_files=True))
    for seed, kind, process in product(range(seeds), kinds, PROCESSES):
        plan = {"kind": kind, "process": process, "seed": seed, "data": data}
        name = f"{kind}-{process.replace(' ', '-')}-{seed}"
        made.append(Cell(name, run, plan | {"quick": quick}, keeps_files=True))
    return made


def real(kind: str, data: str | None, quick: bool, folder: Path) -> Numbers:
    """What the reader gets right, and the distance of real pictures that nobody learned from."""
    budget, pictures = QUICK if quick else FULL[kind], pictures_of(kind, data, folder)
    reader = reader_for(pictures, budget, folder)
    others = pictures.shown(pictures.held_out)
    labels, shape = pictures.held_out_labels, tuple(others.shape[1:])
    weights = sum(p.numel() for p in network_for(kind, shape).parameters())
    right = [
        (reader(part).argmax(1) == digits).float().sum()
        for part, digits in zip(others.split(500), labels.split(500), strict=True)
    ]
    features = reader.look(others[: budget.samples])
    return {
        "accuracy": float(sum(right) / len(labels)),
        "floor": frechet_distance(features, _training_features(pictures, reader)),
        "parameters": weights,
        "learned_from": len(pictures.centred),
        "data_std": float(pictures.centred.std()),
        "mean_norm": float(pictures.mean.norm()),
        "compressed": compressed(kind, data),
    }


def run(kind: str, process: str, seed: int, data: str | None, quick: bool, folder: Path) -> Numbers:
    """Train under a process; the distance of its samples through every sampler."""
    budget, pictures = QUICK if quick else FULL[kind], pictures_of(kind, data, folder)
    reader, forward = reader_for(pictures, budget, folder), PROCESSES[process]
    model = trained(pictures, forward, budget, seed)
    features, numbers = _training_features(pictures, reader), dict[str, Any]()
    for name in (*SAMPLERS, *(OFF if process == BASELINE else ())):
        x = samples(model, forward, name, pictures, budget, seed)
        images = pictures.shown(x)
        numbers[name] = frechet_distance(reader.look(images), features)
        if name.startswith("ODE") and seed == 0:
            pixels = ((images[:12] + 1) * 127.5).round().to(torch.uint8)
            numbers[f"pictures, {name}"] = pixels.permute(0, 2, 3, 1).tolist()
    return numbers


@torch.no_grad()
def samples(
    model: Denoiser, process: Process, name: str, pictures: Pictures, budget: Budget, seed: int
) -> Tensor:
    """Pictures less their mean [n, C, H, W]; a seed gives every process and sampler one noise."""
    generator = torch.Generator().manual_seed(1000 + seed)
    shape = (budget.samples, *pictures.centred.shape[1:])
    noise = torch.randn(shape, generator=generator)
    if name == "ODE, common range":
        process = EDM(COMMON)  # any process of that range: these solvers see σ/α alone
    x = process.prior_std * noise
    if name in OFF:
        alpha = float(process.alpha(torch.tensor(process.horizon)))
        x, name = x - alpha * pictures.mean, OFF[name]
    end = float(grids.time_of_ratio(process, torch.tensor(2 * END)))
    parts = []
    for part in x.split(250):
        if name == "EM":
            times = grids.uniform(process, 30, end)
            parts.append(
                _walk(model, process, EulerMaruyama(Constant(1.0)), part, times, generator)
            )
        elif name == "ancestral":
            times = grids.karras(process, 20, t_end=end)
            parts.append(_walk(model, process, GDDIM(1.0), part, times, generator))
        else:
            times = grids.karras(process, 15, t_end=end)
            last = dpmpp_2m(process, model.under(process), part, times)
            parts.append(model.under(process)(last, times[-1].expand(len(last))).data)
    return torch.cat(parts)


def _walk(
    model: Denoiser,
    process: Process,
    kernel: Kernel,
    x: Tensor,
    times: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """A kernel along a grid, and x̂0 at its end."""
    field, times = model.under(process), times.double()
    for now, then in pairwise(times):
        t, t_next = now.expand(len(x)), then.expand(len(x))
        x = kernel(process, x, field(x, t), t, t_next).draw(generator)
    return field(x, times[-1].expand(len(x))).data


def _training_features(pictures: Pictures, reader: Reader) -> Tensor:
    """Features of 10,000 pictures that the networks learned from."""
    return reader.look(pictures.shown(pictures.centred[:10_000]))


# ------------------------------------------------------------------------------------ the page


def present(results: dict[str, Numbers], page: Page) -> Numbers:
    """What was compared, then distances by kind of pictures, sampler and process."""
    numbers: Numbers = {}
    kinds = [name.removesuffix("-real") for name in results if name.endswith("-real")]
    page.text(ABOUT)
    page.text("\n".join(f"* {name}: {distances}." for name, distances in SAMPLERS.items()))
    page.text(ALSO)
    for kind in kinds:
        about = results[f"{kind}-real"]
        runs = {name: _runs(results, kind, name) for name in PROCESSES}
        tables = {
            name: {s: interval([run[s] for run in arm]) for s in arm[0] if s in SAMPLERS}
            for name, arm in runs.items()
        }
        over = {
            name: {
                s: interval([a[s] - b[s] for a, b in zip(arm, runs["VP"], strict=True)])
                for s in SAMPLERS
            }
            for name, arm in runs.items()
        }
        off = {s: interval([run[s] for run in runs[BASELINE]]) for s in OFF}
        numbers[kind] = about | {"distance": tables, "minus VP": over, "off centre": off}
        page.text(_heading(kind, about, len(runs["VP"])))
        rows = [[name, *(shown(tables[name][s], 1) for s in SAMPLERS)] for name in PROCESSES]
        rows += [
            [f"{name} − VP", *(shown(over[name][s], 1, sign="+") for s in SAMPLERS)]
            for name in PROCESSES
            if name != "VP"
        ]
        page.table(["process", *SAMPLERS], rows)
        distances = [f"{shown(spread, 1)} through {OFF[s]}" for s, spread in off.items()]
        page.text(f"Contractive sub-VP started off centre: {', '.join(distances)}.")
    page.figure(
        "images", _draw(numbers), "Fréchet distance by process and sampler, 95 % over seeds"
    )
    for kind in kinds:
        page.figure(f"{kind}-samples", _sheet(results, kind), f"{kind}, ODE samples of one noise")
    return numbers


def _runs(results: dict[str, Numbers], kind: str, process: str) -> list[Numbers]:
    start = f"{kind}-{process.replace(' ', '-')}-"
    return [
        cell
        for name, cell in results.items()
        if name.startswith(start) and name.removeprefix(start).isdigit()
    ]


def _heading(kind: str, about: Numbers, seeds: int) -> str:
    budget = FULL[kind]
    lossy = " These pictures are a JPEG copy." if about["compressed"] else ""
    return (
        f"## {TITLES[kind]}\n\nA network of {about['parameters']:,} weights, {budget.updates:,} "
        f"updates in batches of {budget.batch}, {budget.samples:,} samples, {seeds} seeds. The "
        f"classifier is right on {about['accuracy']:.1%} of held-out pictures; as many of those "
        f"score {about['floor']:.1f}.{lossy}"
    )


def _draw(numbers: Numbers) -> Any:
    size = (3.6 * len(numbers) + 2.2, 4.2)
    figure, panels = subplots(1, len(numbers), squeeze=False, size=size, grid="y")
    for axes, (kind, distances) in zip(panels[0], numbers.items(), strict=True):
        for k, (process, colour) in enumerate(zip(PROCESSES, COLOURS, strict=False)):
            spreads = [distances["distance"][process][s] for s in SAMPLERS]
            places = [j + (k - 1) * 0.2 for j in range(len(SAMPLERS))]
            means = [s[0] for s in spreads]
            errors = [[s[0] - s[1] for s in spreads], [s[2] - s[0] for s in spreads]]
            axes.errorbar(places, means, yerr=errors, fmt="o", color=colour, ms=4, label=process)
        axes.axhline(distances["floor"], color="#777777", linestyle=":", label="held-out pictures")
        axes.set_xticks(range(len(SAMPLERS)), [s.replace(", ", ",\n") for s in SAMPLERS])
        axes.set(title=TITLES[kind], ylim=(0, None))
    figure.axes[0].set_ylabel("Fréchet distance")
    legend_outside(figure, "lower center", ncols=5)
    return figure


def _sheet(results: dict[str, Numbers], kind: str) -> Any:
    """A row of pictures for each process, from the same noise."""
    rows = [(name, "pictures, ODE") for name in PROCESSES]
    rows.append((BASELINE, "pictures, ODE, off centre"))
    figure, panels = subplots(len(rows), 1, size=(9.6, 1.05 * len(rows)), grid="none")
    for axes, (name, which) in zip(panels, rows, strict=True):
        pictures = torch.tensor(_runs(results, kind, name)[0][which])
        gap = torch.full_like(pictures[0][:, : max(1, pictures.shape[2] // 14)], 255)
        strip = torch.cat([part for picture in pictures for part in (picture, gap)], 1)
        axes.imshow(strip.numpy(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        label = name + (", started off centre" if which.endswith("centre") else "")
        axes.set_title(label, loc="left", fontsize="small", pad=3)
        axes.set(xticks=[], yticks=[], frame_on=False)
    return figure


TITLES = {"digits": "8×8 digits", "mnist": "MNIST", "cifar10": "CIFAR-10"}
ABOUT = """
A reduced run on a CPU: networks are hundreds of times smaller, and trained thousands of times
shorter, than the paper's, so that no number here compares with a published FID. What is compared
is the processes: all train the same network from the same first weights, pictures and noise, with
the ε-loss and times uniform on their own clocks, and all sample from the same noise. Pictures are
[−1, 1] less the mean of all: a contractive start would otherwise be off centre.

Distances are Fréchet distances in the 64 penultimate features of a small convolutional classifier,
trained here, of the samples to 10,000 (digits: all 1,200) pictures that networks learned from.
Small is good. Mean and 95 % interval over seeds; differences to VP are paired by seed.
"""
ALSO = """
All end at σ/α = 0.02 with x̂0. Below each table: contractive sub-VP without the centring, by the
very same networks, started where pixels in [−1, 1] would have it.
"""
