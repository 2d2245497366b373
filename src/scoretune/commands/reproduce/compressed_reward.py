"""A reward on decoded pictures fine-tunes a model of measurements, through the decoder.

The score network lives in the measured space; `score_as_action` asks for the reward's slope in the
pictures, and the decoder's exact derivative takes it to the measurements.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoretune import recipes
from scoretune.commands.reproduce.base import (
    Cell,
    Numbers,
    Page,
    claim_row,
    interval,
    kept_tensors,
    shown,
)
from scoretune.commands.reproduce.compressed_sets import digits
from scoretune.commands.reproduce.drawing import COLOURS, draw_band, subplots
from scoretune.commands.reproduce.fine_tuning import curve, fine_tune
from scoretune.commands.reproduce.image_data import idx
from scoretune.core.errors import UserError
from scoretune.evaluate.data_samples import DataSampler, draw
from scoretune.training import overrides
from scoretune.training.hooks import Silent
from scoretune.training.run import launch
from scoretune.training.run_folder import load, record

LEARNED = 4000
"""Pictures that are learned from."""
MEASURED = (
    *("model.source=mlp", "model.prediction=sample", "model.width=256", "model.depth=2"),
    *("sizes.batch=128", "compress.ratio=0.42", "compress.weight=0.05", "compress.precision=0.1"),
    "evaluation.every=0",
)
FULL = ("updates=500", "evaluation.samples=64")
QUICK = ("updates=2", "evaluation.samples=8", "model.width=16")
REWARD = "scoretune.commands.reproduce.compressed_reward:lean"
TUNED = ("updates=20", "sizes.prompts=32", "model.rank=8", "evaluation.every=5")
TUNED_QUICK = ("updates=1", "sizes.prompts=2", "sampling.steps=3", "model.rank=2")
COUNT = 256
"""Samples that are looked at before and after."""


def lean(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Ten times the shear of the ink of pictures [B, C, H, W], −cov(x, y)/var(y): how far the top
    stands to the right of the foot, in heights. 0 for pictures without ink."""
    ink = images.mean(1)
    rows, columns = (
        torch.linspace(-1, 1, n, device=ink.device, dtype=ink.dtype) for n in ink.shape[1:]
    )
    weight = ink / ink.sum((1, 2), keepdim=True).clamp_min(1e-3)
    y, x = rows[:, None].expand(ink.shape[1:]), columns[None].expand(ink.shape[1:])
    y = y - (weight * y).sum((1, 2), keepdim=True)
    x = x - (weight * x).sum((1, 2), keepdim=True)
    return -10 * (weight * x * y).sum((1, 2)) / (weight * y * y).sum((1, 2)).clamp_min(1e-2)


def cells(seeds: int, quick: bool, data: str | None = None) -> list[Cell]:
    """A model and its fine-tuning a seed: MNIST if the folder has it, bundled digits otherwise."""
    if data is not None and not (Path(data) / "mnist").is_dir():
        raise UserError(f"--data {data} holds no mnist: put its four idx files there")
    return [
        Cell(f"lean-{seed}", tuned, {"seed": seed, "data": data, "quick": quick}, keeps_files=True)
        for seed in range(seeds)
    ]


def tuned(seed: int, data: str | None, quick: bool, folder: Path) -> Numbers:
    """Train in the measured space, fine-tune through the decoder, look at the pictures of both."""
    images, labels = _pictures(data)
    array = folder / "pictures.npy"
    if not array.exists():
        np.save(array, images[:, 0].numpy())
    base = folder / "runs" / f"base-{seed}"
    changes = [f"data={array}", f"seed={seed}", *MEASURED, *FULL, *(QUICK if quick else ())]
    run = overrides.changed(recipes.named("supervised"), changes)
    if not (base / "result.json").exists():
        record(run, base, 1)
        launch(run, base, Silent())
    more = [f"model.source={base}", f"reward={REWARD}", f"seed={seed}", *TUNED]
    more += ["evaluation.per_task=20", "evaluation.steps=20", *(TUNED_QUICK if quick else ())]
    name = f"tuned-{seed}"
    numbers = fine_tune("score_as_action", more, name, folder)
    reader = _reader(images, labels, folder)
    work, rewards = curve(numbers, "reward")
    seen = {}
    for part, where in (("base", base), ("tuned", folder / "runs" / name)):
        policy = load(where)
        pictures = draw(policy, 16 if quick else COUNT, DataSampler(), seed)
        with torch.no_grad():
            sure = reader(pictures[:, :1]).softmax(1).amax(1)
        seen[part] = {
            "reward": float(lean(pictures, ()).mean()),
            "confidence": float(sure.mean()),
            "ink": float(pictures.mean()),
            "pictures": (pictures[:10, 0] * 255).round().int().tolist(),
        }
    result = numbers["result"]
    return {
        **seen,
        "real": float(lean(images[:1000], ()).mean()),
        "real_confidence": float(reader(images[:1000]).softmax(1).amax(1).mean()),
        "work": work,
        "rewards": rewards,
        "chain_kl": result["chain_kl"],
        "seconds": result["seconds"],
        "plan": run.compress.ratio,
    }


def _pictures(data: str | None) -> tuple[Tensor, Tensor]:
    """Pictures [n, 1, H, W] and their digits."""
    if data is None:
        from sklearn.datasets import load_digits

        images = digits(1797)
        side = round(images.shape[1] ** 0.5)
        return images.view(-1, 1, side, side), torch.tensor(load_digits().target)
    files = (
        Path(data) / "mnist" / f"train-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")
    )
    images, labels = (idx(file)[:LEARNED] for file in files)
    return images[:, None].float() / 255, labels.long()


def _reader(images: Tensor, labels: Tensor, folder: Path) -> nn.Module:
    """A perceptron that reads these pictures, which nothing is optimised for."""

    def fresh() -> nn.Module:
        torch.manual_seed(0)
        size = images[0].numel()
        return nn.Sequential(nn.Flatten(), nn.Linear(size, 128), nn.SiLU(), nn.Linear(128, 10))

    def made() -> dict[str, Tensor]:
        reader = fresh()
        optimiser = torch.optim.AdamW(reader.parameters(), 2e-3)
        for _ in range(400):
            index = torch.randint(len(images), (128,))
            optimiser.zero_grad()
            F.cross_entropy(reader(images[index]), labels[index]).backward()
            optimiser.step()
        return reader.state_dict()

    reader = fresh()
    reader.load_state_dict(kept_tensors(folder / "reader.safetensors", made))
    return reader.eval().requires_grad_(False)


# ------------------------------------------------------------------------------------- the page


def present(results: dict[str, Numbers], page: Page) -> Numbers:
    """Rewards before and after, what a reader thinks of the pictures, and the pictures."""
    runs = list(results.values())
    page.text(ABOUT)
    spreads = {
        part: {key: interval([run[part][key] for run in runs]) for key in SEEN}
        for part in ("base", "tuned")
    }
    real = interval([run["real"] for run in runs]), interval([r["real_confidence"] for r in runs])
    rows = [[part, *(shown(spread[key]) for key in SEEN)] for part, spread in spreads.items()]
    page.table(
        ["", "reward", "reader's confidence", "mean ink"],
        [*rows, ["training pictures", *(f"{spread[0]:.3f}" for spread in real), "—"]],
    )
    gain = interval([run["tuned"]["reward"] - run["base"]["reward"] for run in runs])
    lost = interval([run["tuned"]["confidence"] - run["base"]["confidence"] for run in runs])
    claims = [
        claim_row("gain of the reward", "interval above 0", shown(gain, sign="+"), gain[1] > 0),
        claim_row(
            "change of the reader's confidence", "≥ −0.1", shown(lost, sign="+"), lost[0] >= -0.1
        ),
    ]
    page.claims(claims)
    kls = interval([run["chain_kl"] for run in runs])
    page.text(
        f"KL of the chain: {shown(kls, 1)} nats; seconds: "
        f"{shown(interval([run['seconds'] for run in runs]), 0)}."
    )
    page.figure("reward", _figure(runs), "reward by network evaluations; pictures before and after")
    return {"arms": spreads, "gain": gain, "confidence": lost, "chain_kl": kls, "claims": claims}


def _figure(runs: list[Numbers]) -> Any:
    figure, (left, above, below) = subplots(
        3, 1, size=(7.2, 5.4), grid="none", height_ratios=(3, 1, 1)
    )
    work = [w / 1000 for w in runs[0]["work"]]
    draw_band(left, work, [run["rewards"] for run in runs], COLOURS[0], "score as action")
    left.set(xlabel="network evaluations of training (thousands)", ylabel="10 × shear")
    for axes, part in ((above, "base"), (below, "tuned")):
        pictures = torch.tensor(runs[0][part]["pictures"])
        axes.imshow(torch.cat(list(pictures), 1).numpy(), cmap="gray", vmin=0, vmax=255)
        axes.set_title(part, loc="left", fontsize="small", pad=3)
        axes.set(xticks=[], yticks=[], frame_on=False)
    return figure


SEEN = ("reward", "confidence", "ink")
ABOUT = """
A perceptron learns Gaussian measurements of pictures (42 % of their numbers; MNIST, 4,000 of its
training pictures), and `scoretune train score_as_action` makes decoded digits lean to the right:
the reward is ten times the shear of their ink, a function of pixels with a gradient, which passes
through the decoder as one linear system a sample. A reader that nothing is optimised for, a small
perceptron of the same pictures, says whether they are still digits. Samples are of DPM-Solver++(2M)
with 20 steps, the same noise before and after. Intervals are over seeds, each with a model of its
own.
"""
