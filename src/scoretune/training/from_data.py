"""Training a network of one's own on data: what a run does whose model is learned from nothing.

The order: read the data and hold a share out; build or load the network; restore the newest
checkpoint; measure; train; measure again; save. The averaged weights are what is measured, drawn
from and saved.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoretune.core import checkpoints, files, model_folder
from scoretune.core.config import Run
from scoretune.core.errors import UserError
from scoretune.core.records import Examples, spans
from scoretune.evaluate import data_samples
from scoretune.evaluate.report import data_page, gallery
from scoretune.models.lora import restore_adapter
from scoretune.policy import Policy
from scoretune.training import trackers
from scoretune.training.fit_parts import Parts, build, sampler_of
from scoretune.training.hooks import Watcher
from scoretune.training.loop import train
from scoretune.training.progress import Progress

JUDGED = 512
"""Held-out examples, each with noise of its own, of one evaluation of the loss."""


def launch(run: Run, folder: Path, watcher: Watcher) -> dict[str, Any]:
    """Train as configured in `folder`, from its newest checkpoint if it has one; the result."""
    torch.manual_seed(run.seed)
    watcher.stage("reading the data")
    parts = build(run)
    folder.mkdir(parents=True, exist_ok=True)
    progress = _progress(parts, run, folder)
    first = progress.restore()
    progress.forget_after(first)
    told = trackers.start(run, folder, first)

    def measured(update: int, picture: str | None = None) -> dict[str, Any]:
        watcher.stage("drawing samples")
        line = _evaluate(parts, run, folder, picture)
        line = {
            "update": update,
            "network_evaluations": parts.policy.calls,
            "seconds": round(progress.clock.seconds(), 2),
            **line,
        }
        files.append_line(progress.evaluations, line)
        told.evaluated(line)
        watcher.stage("training")
        return line

    def note(update: int) -> None:
        measured(update)

    if first == 0:
        _show_data(parts, folder)
        _write_plain(folder / "base.json", measured(0, "before"))
    train(
        parts.source,
        parts.objective,
        parts.optimiser,
        parts.engine,
        updates=range(first, run.updates),
        clip_norm=run.optimiser.clip_norm,
        hooks=progress.hooks(
            first,
            watcher.line,
            note,
            [told, *([parts.adaptive.adapt] if parts.adaptive else []), parts.average],
        ),
    )
    base = json.loads((folder / "base.json").read_text(encoding="utf-8"))
    result = _compared(base, measured(run.updates, "after"), _floor(parts, run))
    told.finish()
    result |= {
        "network_evaluations": parts.policy.calls,
        "seconds": round(progress.clock.seconds(), 1),
        "model": str(folder / "model"),
        "run": str(folder),
    }
    _write_plain(folder / "result.json", result)
    data_page.write(folder)
    return result


def _progress(parts: Parts, run: Run, folder: Path) -> Progress:
    kept = {"average": parts.average, "adaptive": parts.adaptive}
    return Progress(run, folder, parts.policy, parts.optimiser, parts.source, kept)


# ------------------------------------------------------------------------------- measuring


def _evaluate(parts: Parts, run: Run, folder: Path, picture: str | None) -> dict[str, Any]:
    """Measure the averaged weights, and save them; does not count as training."""
    calls, sampler = parts.policy.calls, sampler_of(run)
    with parts.average.in_place():
        found = _draw(parts, run)
        line: dict[str, Any] = {
            "sampler": str(sampler),
            "held_out_loss": _held_out_loss(parts, run.evaluation.seed),
            **data_samples.distances(found, parts.held_out.states, parts.model),
        }
        data_samples.save(parts.model, folder / "model", sampler, parts.known.names)
    parts.policy.calls = calls
    _show(parts, found, folder / "previews" / f"{picture or 'newest'}.png")
    return line


def _draw(parts: Parts, run: Run) -> Tensor:
    """As many samples as an evaluation wants, always from the same noise."""
    evaluation = run.evaluation
    return data_samples.draw(parts.policy, evaluation.samples, sampler_of(run), evaluation.seed)


def _held_out_loss(parts: Parts, seed: int, batch: int = 128) -> float:
    """The objective on examples that are never learned from, always with the same noise."""
    states = parts.model.embed(parts.held_out.states.to(parts.policy.device))
    index = torch.arange(max(JUDGED, min(len(states), 2 * JUDGED))) % len(states)
    torch.manual_seed(seed)  # training draws its own anew for every update
    total = 0.0
    for span in spans(len(index), batch):
        x0 = states[index[span]]
        ones = torch.ones(len(x0), device=x0.device)
        examples = Examples(x0, parts.model.encode([""] * len(x0)), ones)
        total += float(parts.objective(examples).value.detach()) * len(x0)
    return round(total / len(index), 6)


def _floor(parts: Parts, run: Run) -> dict[str, float]:
    """The distances of known data, as many as were drawn, to those held out: a perfect model's."""
    generator = torch.Generator().manual_seed(run.evaluation.seed)
    order = torch.randperm(len(parts.known), generator=generator)[: run.evaluation.samples]
    return data_samples.distances(parts.known.states[order], parts.held_out.states, parts.model)


def _compared(base: dict[str, Any], final: dict[str, Any], floor: dict[str, Any]) -> dict[str, Any]:
    names = [name for name in ("held_out_loss", "sliced_wasserstein", "frechet") if name in final]
    return {
        "sampler": final["sampler"],
        "data": {
            name: {"base": base[name], "final": final[name], "real": floor.get(name)}
            for name in names
        },
    }


def measure(run: Run, folder: Path, features: str | None = None) -> dict[str, Any]:
    """The numbers of a run's newest checkpoint on its held-out data, also in named features."""
    torch.manual_seed(run.seed)
    parts = build(run)
    update = _progress(parts, run, folder).restore()
    if not update:
        raise UserError(f"run {str(folder)!r} has no checkpoint yet: let it train a little longer")
    with parts.average.in_place():
        sampler = sampler_of(run)
        found = _draw(parts, run)
        line = {
            "update": update,
            "sampler": str(sampler),
            "held_out_loss": _held_out_loss(parts, run.evaluation.seed),
            **data_samples.distances(found, parts.held_out.states, parts.model),
            "real": _floor(parts, run),
        }
    if features is not None:
        line[features] = data_samples.featured(found, parts.held_out.states, parts.model, features)
    return line


def _show_data(parts: Parts, folder: Path) -> None:
    known, path = parts.known, folder / "previews" / "data.png"
    gallery.show(known.states, known.kind, path, names=known.names, label="data")


def _show(parts: Parts, found: Tensor, path: Path) -> None:
    known = parts.known
    real = None if known.kind == "images" else known.states
    gallery.show(found, known.kind, path, names=known.names, real=real)


def trained(folder: Path) -> Policy:
    """The policy of a run on data: the averaged weights of its newest checkpoint."""
    newest, home = checkpoints.latest(folder / "checkpoints"), model_folder.home(folder)
    if newest is None or home is None:
        raise UserError(f"run {str(folder)!r} has no checkpoint yet: let it train a little longer")
    policy = data_samples.policy_of(home)
    restore_adapter(policy.backbone.network, checkpoints.load(newest)["average"])
    return policy


def _write_plain(path: Path, numbers: dict[str, Any]) -> None:
    path.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
