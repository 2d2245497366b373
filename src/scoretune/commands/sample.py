"""Using a finished run: draw prompts with it, measure it again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from scoretune.core import model_folder
from scoretune.core.config import Run
from scoretune.core.errors import UserError
from scoretune.data.prompts import Prompts
from scoretune.diffusion import grids
from scoretune.evaluate import data_samples
from scoretune.evaluate.report import gallery
from scoretune.evaluate.samples import sample
from scoretune.evaluate.scores import evaluation_line, measure, verdict_metrics
from scoretune.models import score_network
from scoretune.models.recycled import inner
from scoretune.policy import Backbone, Policy
from scoretune.rewards.catalog import named_reward
from scoretune.training import from_data
from scoretune.training.build import held_out_prompts
from scoretune.training.overrides import of_data
from scoretune.training.run_folder import load, recorded


def draw(
    path: Path,
    prompts: list[str],
    out: Path,
    *,
    steps: int | None = None,
    solver: str | None = None,
    seed: int = 0,
    count: int = 64,
) -> str:
    """Write one picture a prompt, side by side; or `count` samples of a network of one's own.

    Says what was written.
    """
    policy = load(path)
    own = _own(policy.backbone)
    if own is None:
        mute = policy.backbone.encode([""]).tokens.numel() == 0  # it knows no prompts
        if not prompts and not mute:
            raise UserError("say what to draw: scoretune sample RUN 'a prompt' 'another prompt'")
        asked = prompts or [""] * count
        return _pictures(policy, asked, out, (solver or "ddim", steps or 20), seed)
    if prompts:
        raise UserError("this network knows no prompts: leave them out and give --count")
    chosen, names = data_samples.noted(_home(path))
    if steps is not None:
        chosen = replace(chosen, steps=steps)
    if solver is not None:
        chosen = replace(chosen, solver=solver, jumps=False)
    found = data_samples.draw(policy, count, chosen, seed)
    gallery.write(found, own.design.content, out, names)
    return f"{_counted(count, 'sample')} ({chosen}) in {out}"


def _own(backbone: Backbone) -> score_network.ScoreNetwork | None:
    own = inner(backbone)
    return own if isinstance(own, score_network.ScoreNetwork) else None


def _home(path: Path) -> Path:
    """The model folder of a run on data, of a fine-tuning of its model, or itself."""
    found = model_folder.home(path) or model_folder.home(Path(recorded(path).model.source))
    assert found is not None, "a network of one's own was loaded from there"
    return found


def _pictures(
    policy: Policy, prompts: list[str], out: Path, sampler: tuple[str, int], seed: int
) -> str:
    from PIL import Image

    asked = Prompts(tuple(prompts), ("all",) * len(prompts))
    solver, steps = sampler
    times = grids.uniform(policy.backbone.process, steps)
    images = sample(policy, asked, times=times, seed=seed, solver=solver)
    if images.dim() != 4 or images.shape[1] != 3:
        gallery.write(images, {2: "points", 3: "series"}.get(images.dim(), "images"), out)
        return _listed(prompts, "sample", out)
    strip = (images * 255).round().byte().permute(2, 0, 3, 1).flatten(1, 2)
    picture = Image.fromarray(strip.numpy())
    grow = max(1, 128 // images.shape[-1])
    size = (picture.width * grow, picture.height * grow)
    try:
        picture.resize(size, Image.Resampling.NEAREST).save(out)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {str(out)!r} ({error}): choose --out name.png") from error
    return _listed(prompts, "picture", out)


def _listed(prompts: list[str], what: str, out: Path) -> str:
    """The prompts by their places from the left, and how many of what was written where."""
    places = [f"{i}. {prompt}" for i, prompt in enumerate(prompts, 1)] if any(prompts) else []
    return "\n".join([*places, f"{_counted(len(prompts), what)} in {out}"])


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def measure_run(run: Run, folder: Path, features: str | None = None) -> dict[str, Any]:
    """Scores of a run's newest checkpoint on its held-out prompts, or its held-out data."""
    if of_data(run):
        return from_data.measure(run, folder, features)
    if features is not None:
        raise UserError("--features is for networks that learned from data: leave it out")
    policy = load(folder)
    measured = measure(
        policy,
        held_out_prompts(run),
        reward=named_reward(run.reward),
        reward_name=run.reward,
        metrics=verdict_metrics(run.model.source),
        evaluation=run.evaluation,
        sampling=run.sampling,
    )
    return evaluation_line(
        measured,
        run.evaluation,
        run.sampling,
        update=run.updates,
        seconds=0.0,
        network_evaluations=policy.calls,
    )
