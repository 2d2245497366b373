"""From a configuration to a trained model: the one function that builds everything.

`course` follows what is built here. Nothing here knows a formula.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import torch

from scoretune import fit, fit_parts, guard, hardware, hub, ranks, trackers
from scoretune.backbones import scores
from scoretune.config import NEW_NETWORKS, Matching, Model, Run, of_data
from scoretune.course import Parts, course
from scoretune.data import Prompts, read_prompts
from scoretune.diffusion.processes import process_named
from scoretune.diffusion.recycling import check_recyclable
from scoretune.errors import UserError, unknown
from scoretune.hooks import Watcher
from scoretune.imports import is_function
from scoretune.methods import check, method
from scoretune.models import build_policy, users_own
from scoretune.policy import Policy
from scoretune.rewards import weighted
from scoretune.rewards.base import Reward, RewardFailed, has_gradient
from scoretune.scenes import world
from scoretune.scorers import REWARDS, named_reward


def launch(run: Run, folder: Path, watcher: Watcher) -> dict[str, Any]:
    """Train as configured in `folder`, from its newest checkpoint if it has one; the result."""
    if of_data(run):
        return fit.launch(run, folder, watcher)
    torch.manual_seed(run.seed)
    watcher.stage("loading the model")
    return course(run, folder, watcher, build(run)).follow()


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
    _check_world(run)
    prompts, held_out = read_prompts(run.prompts, run.prompts_per_task), held_out_prompts(run)
    reward = named_reward(run.reward)
    guard.check(run)
    trackers.check(run)
    _check_process(run.model)
    try:
        grey = torch.full((3, 32, 32), 0.5)
        differentiable = has_gradient(reward, run.reward, grey, prompts.texts[0])
    except RewardFailed:  # it may want larger pictures: the model's own will tell
        return prompts, held_out, reward
    check(run, differentiable)
    return prompts, held_out, reward


def _check_world(run: Run) -> None:
    """Refuse the shipped world's prompts and reader to a model that does not draw it."""
    source = run.model.source
    # Of what is no pipeline its loader tells.
    missing = hub.is_local(source) and not (Path(source) / "model_index.json").exists()
    draws_scenes = source in world.SHIPPED or (Path(source) / "judge.safetensors").exists()
    if draws_scenes or missing or isinstance(run.objective, Matching):
        return
    if run.prompts == "scenes":
        raise UserError(
            f"prompts=scenes, the default, are of the shipped digits, which {source!r} has not "
            "learned: set prompts=FILE (one a line), or prompts=none, and a reward"
        )
    if "reader" in {name.partition("(")[0] for _, name in weighted.terms(run.reward, REWARDS)}:
        raise UserError(
            f"reward=reader, the default, judges the shipped digits, which {source!r} has not "
            "learned: set reward=NAME, or a function of yours as reward=module:function"
        )


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


def held_out_prompts(run: Run) -> Prompts:
    """What is evaluated: the named prompts, else held-out scenes, else some that are trained on."""
    chosen = run.evaluation
    if chosen.prompts is None and run.model.source not in world.SHIPPED:
        return read_prompts(run.prompts, chosen.per_task).few(chosen.per_task)
    return read_prompts(chosen.prompts or "scenes-held-out", chosen.per_task)
