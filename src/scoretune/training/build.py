"""From a configuration to a trained model: the one function that builds everything.

`course` follows what is built here. Nothing here knows a formula.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

import torch

from scoretune.core import distributed, fsdp, hub, model_folder
from scoretune.core.config import NEW_NETWORKS, Matching, Model, Run
from scoretune.core.errors import UserError, unknown, user_errors
from scoretune.core.records import Objective, Source
from scoretune.core.resolve import is_function
from scoretune.data.prompts import Prompts, read_prompts
from scoretune.data.scenes import world
from scoretune.diffusion.named import kernel
from scoretune.diffusion.processes import process_named
from scoretune.diffusion.recycling import check_recyclable
from scoretune.evaluate.guard import guard
from scoretune.models import score_network
from scoretune.models.catalog import load_backbone, lora_targets, move, users_own
from scoretune.models.lora import add_adapter
from scoretune.policy import Distilled, Policy
from scoretune.rewards import weighted
from scoretune.rewards.base import Reward, RewardFailed, has_gradient
from scoretune.rewards.catalog import REWARDS, named_reward
from scoretune.training import hardware, trackers
from scoretune.training.engine import Machine
from scoretune.training.methods import check, method
from scoretune.training.objectives.base import TrustRegion


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


def build(run: Run) -> Parts:
    """The policy, source and objective of a configuration."""
    prompts, held_out, reward = verify(run)
    device = distributed.device()
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


def build_policy(run: Run, device: torch.device) -> Policy:
    """The model of a configuration behind its training kernel, with a fresh adapter."""
    backbone, spread = load_backbone(run.model), hardware.spreads(run)
    move(backbone, device, network=not spread)
    if run.model.rank:
        add_adapter(backbone.network, run.model.rank, lora_targets(run.model, backbone))
    else:
        backbone.network.requires_grad_(True)
    guidance = run.model.guidance
    if isinstance(backbone, Distilled):  # it is told the scale: asking twice would guide twice
        backbone.scale, guidance = guidance, 1.0
    with user_errors():
        policy = Policy(backbone, kernel(run.sampling), guidance)
    hardware.furnish(policy, run)
    if spread:
        fsdp.spread(backbone.network, device)
    return policy


def verify(run: Run) -> tuple[Prompts, Prompts, Reward]:
    """The prompts to train on, those held out, and the reward; refuses what cannot work.

    No model is loaded: a grey picture tells whether the reward has a gradient.
    """
    hardware.check(run)
    _check_source(run.model)
    _check_world(run)
    prompts, held_out = read_prompts(run.prompts, run.prompts_per_task), held_out_prompts(run)
    reward = named_reward(run.reward)
    guard.judge_and_features(run.guard, reward=run.reward, source=run.model.source)
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
    with user_errors(f"model.process={model.process}"):
        process, home = process_named(model.process), model_folder.home(Path(model.source))
        if home is not None:
            check_recyclable(score_network.load(home).process, process)


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
