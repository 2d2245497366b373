"""From a configuration to a trained model: the one function that builds everything.

The order of a run: build policy, source and objective; restore the newest checkpoint if there is
one; measure the base model; train; measure again; export. Nothing here knows a formula.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from scoretune import export, fit, fit_parts, gallery, gap, guard, hardware, hooks, ranks
from scoretune.backbones import own, scores
from scoretune.batches import Objective, Source
from scoretune.config import NEW_NETWORKS, Model, PolicyGradient, Run, ScoreAction, of_data
from scoretune.data import Prompts, read_prompts
from scoretune.diffusion.processes import process_named
from scoretune.diffusion.recycling import check_recyclable
from scoretune.engine import Machine
from scoretune.errors import UserError, unknown
from scoretune.hooks import Watcher
from scoretune.imports import is_function
from scoretune.measure import Measurement, Verdicts, compare, measure
from scoretune.methods import check, method
from scoretune.models import build_policy, users_own
from scoretune.objectives.base import TrustRegion
from scoretune.policy import Policy
from scoretune.progress import Progress
from scoretune.rewards.base import Reward, RewardFailed, has_gradient
from scoretune.scenes import world
from scoretune.scorers import named_reward
from scoretune.train import train


@dataclass
class Parts:
    """Everything a run is made of."""

    policy: Policy
    source: Source
    objective: Objective
    optimiser: torch.optim.Optimizer
    reward: Reward
    held_out: Prompts
    engine: Machine
    trust: TrustRegion | None = None


def launch(run: Run, folder: Path, watcher: Watcher) -> dict[str, Any]:
    """Train as configured in `folder`, from its newest checkpoint if it has one; the result."""
    if of_data(run):
        return fit.launch(run, folder, watcher)
    torch.manual_seed(run.seed)
    watcher.stage("loading the model")
    parts = build(run)
    folder.mkdir(parents=True, exist_ok=True)
    watch = guard.sentry(run, folder, parts.held_out, watcher.line)
    kept = {"trust": parts.trust, "guard": watch, "engine": parts.engine}
    progress = Progress(run, folder, parts.policy, parts.optimiser, parts.source, kept)
    first = progress.restore()
    progress.forget_after(first, ended=watch.ended is not None)

    def measured(update: int) -> Measurement:
        watcher.stage("evaluating on held-out prompts")
        seconds = progress.clock.seconds()
        return measure(parts.policy, run, parts.held_out, parts.reward, update, seconds)

    def evaluate(update: int) -> Measurement:
        found = measured(update)
        seen = watch.look(found, parts.policy)
        hooks.append_line(progress.evaluations, found.verdicts.line | seen)
        if gap.due(run, update):
            watcher.stage("measuring the sampler gap")
            matrix = gap.line(parts.policy, run, parts.held_out, parts.reward, update)
            hooks.append_line(progress.gaps, matrix)
        return found

    main = ranks.team().main
    if first == 0:
        before = evaluate(0)
        if main:
            before.verdicts.save(folder / "base.json")
            _show(before, folder / "previews", "before")
        _warm_up(run, parts, watcher)
        watcher.stage("training")

    def note(update: int) -> None:
        evaluate(update)
        watcher.stage("training")

    train(
        parts.source,
        parts.objective,
        parts.optimiser,
        parts.engine,
        updates=watch.while_calm(range(first, run.updates)),
        clip_norm=run.optimiser.clip_norm,
        hooks=progress.hooks(first, watcher.line, note, [parts.trust.adapt] if parts.trust else []),
    )
    final = evaluate(run.updates) if watch.ended is None else None
    if watch.ended is not None:  # perhaps by that very evaluation
        weights_of = watch.settle(parts.policy)
        progress.save(watch.ended)
        final = measured(weights_of)
    assert final is not None
    calls = progress.calls()
    if not main:
        return {}
    _show(final, folder / "previews", "after")
    if run.model.rank:
        export.lora(parts.policy, folder / "lora")
    elif is_function(run.model.source):
        own.save(parts.policy.backbone, folder)
    base = Verdicts.load(folder / "base.json")
    result = compare(base, final.verdicts) | watch.summary()
    return _finish(result, calls, folder, progress.clock)


def build(run: Run) -> Parts:
    """The policy, source and objective of a configuration."""
    prompts, held_out, reward = verify(run)
    device = ranks.device()
    policy = build_policy(run, device)
    hardware.remember(policy, run, [*prompts.texts, *held_out.texts])
    differentiable = _differentiable(run, policy, prompts, reward)
    check(run, differentiable)
    objective, source, trust = method(run, policy, prompts, reward, differentiable)
    return Parts(
        policy=policy,
        source=source,
        objective=objective,
        optimiser=hardware.optimiser(run, policy.parameters()),
        reward=reward,
        held_out=held_out,
        engine=hardware.machine(run, device),
        trust=trust,
    )


def ready(run: Run) -> None:
    """Refuse what cannot work, before there is a run folder."""
    if of_data(run):
        fit_parts.build(run)  # data and network are small: all is tried
    else:
        verify(run)


def verify(run: Run) -> tuple[Prompts, Prompts, Reward]:
    """The prompts to train on, those held out, and the reward; refuses what cannot work.

    No model is loaded: a grey picture tells whether the reward has a gradient.
    """
    hardware.check(run)
    _check_source(run.model)
    prompts, held_out = read_prompts(run.prompts, run.prompts_per_task), held_out_prompts(run)
    reward = named_reward(run.reward)
    guard.check(run)
    _check_process(run.model)
    try:
        grey = torch.full((3, 32, 32), 0.5)
        differentiable = has_gradient(reward, run.reward, grey, prompts.texts[0])
    except RewardFailed:  # it may want larger pictures: the model's own will tell
        return prompts, held_out, reward
    check(run, differentiable)
    return prompts, held_out, reward


def _check_process(model: Model) -> None:
    """Refuse a process that is none, or that a network of one's own cannot be run under."""
    if model.process is None:
        return
    process, home = process_named(model.process), scores.home(Path(model.source))
    if home is not None:
        try:
            check_recyclable(scores.load(home).process, process)
        except ValueError as error:
            raise UserError(f"model.process={model.process}: {error}") from error


def _check_source(model: Model) -> None:
    if model.source in NEW_NETWORKS:
        raise UserError(
            f"a new {model.source} has learned nothing that could be fine-tuned: train it with "
            "recipe supervised, then set model.source to the folder of that run"
        )
    if is_function(model.source) and not (model.width or model.depth):
        users_own(model)  # before there is a run folder: it may want settings that are not there
        return
    known = [*world.SHIPPED, *NEW_NETWORKS]
    meant = difflib.get_close_matches(model.source, known, cutoff=0.7)
    if meant and model.source not in known and not Path(model.source).exists():
        raise unknown("model source", model.source, known)
    if model.prediction or model.width or model.depth:
        raise UserError(
            "model.prediction, model.width and model.depth are of new networks: leave them out, or "
            "set model.source=unet, dit or mlp"
        )
    if model.shape:
        raise UserError("model.shape is of a network of your own, module:function: leave it out")


def _differentiable(run: Run, policy: Policy, prompts: Prompts, reward: Reward) -> bool:
    """Whether the reward of the model's own pictures has a gradient."""
    backbone = policy.backbone
    with torch.no_grad():
        image = backbone.decode(torch.zeros(1, *backbone.shape, device=policy.device))[0]
    return has_gradient(reward, run.reward, image, prompts.texts[0])


def _show(measured: Measurement, folder: Path, name: str) -> None:
    """Pictures in a grid that the report cuts up; points and series drawn for themselves."""
    images = measured.images
    if images.dim() == 4 and images.shape[2] == images.shape[3]:
        measured.save_preview(folder, name)
    else:
        kind = {2: "points", 3: "series", 4: "images"}[images.dim()]
        gallery.show(images, kind, folder / f"{name}.png")


def _warm_up(run: Run, parts: Parts, watcher: Watcher) -> None:
    """Rounds that fit the critic, if there is one, to the base model before the policy moves."""
    chosen = run.objective
    if isinstance(chosen, ScoreAction) or (
        isinstance(chosen, PolicyGradient) and chosen.baseline == "critic"
    ):
        watcher.stage("fitting the critic")
        for lap in range(chosen.critic.warmup):
            parts.source(-1 - lap)


def held_out_prompts(run: Run) -> Prompts:
    """What is evaluated: the named prompts, else held-out scenes, else a user's own prompts."""
    fallback = "scenes-held-out" if run.model.source in world.SHIPPED else run.prompts
    return read_prompts(run.evaluation.prompts or fallback, run.evaluation.per_task)


def _finish(result: dict[str, Any], calls: int, folder: Path, clock: hooks.Clock) -> dict[str, Any]:
    from scoretune.report import write_report

    result |= {
        "network_evaluations": calls,
        "seconds": round(clock.seconds(), 1),
        "run": str(folder),
    }
    (folder / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    write_report(folder)
    return result
