"""Preferences in data: people's choices between two samples, or their likes, learned from without
a reward. The losses are `preference_losses`."""

from __future__ import annotations

import torch

from scoretune.core import config
from scoretune.core.errors import UserError
from scoretune.data.pairs import check_table, read_likes, read_pairs
from scoretune.policy import Policy
from scoretune.training.objectives import method
from scoretune.training.objectives.method import Context, Costs, Method, Paths, Setup
from scoretune.training.objectives.preference_losses import (
    adaptive,
    check_preset,
    check_times,
    compares,
    loss_of,
    offset_of,
)
from scoretune.training.sources.pairs import Likes, Pairs, dispersion_of

# ------------------------------------------------------------------------------------- the method

follows_reward = False


def check(settings: config.Preference, context: Context) -> None:
    sizes, hardware = context.sizes, context.hardware
    check_preset(settings)
    check_times(settings)
    if context.data in UNJUDGED:
        raise UserError(
            f"recipe {context.recipe!r} learns from people's choices, and data={context.data} has "
            "none: set data=FOLDER (or a file) of pairs, see docs/data.md"
        )
    name = "sizes.batch" if sizes.batch else "sizes.prompts × sizes.group"
    method.check_divisible(name, method.batch_size(sizes), context.processes)
    if hardware.device_batch == 1 and not settings.likes:
        raise UserError("hardware.device_batch=1 holds no pair, which is two states: set 2 or more")
    if hardware.cache_prompts:
        raise UserError(
            "hardware.cache_prompts lets go of the text encoders, and pairs bring prompts of their "
            "own: leave it out"
        )
    check_table(context.data, likes=settings.likes)


def build(settings: config.Preference, setup: Setup) -> Method:
    """Pictures with their prompts, for a model that is there."""
    policy, batch = setup.policy, method.batch_size(setup.context.sizes)
    objective = loss_of(settings, policy)
    method.check_first_time(settings.t_min, policy.backbone.process)
    size = picture_size(policy)
    if settings.likes:
        likes = read_likes(setup.context.data, raters=settings.raters)
        return Method(objective, Likes(likes, policy, size, batch, setup.seed), adaptive(objective))
    table = read_pairs(setup.context.data, ties=settings.ties, raters=settings.raters)
    scale = dispersion_of(settings.dispersion, table, policy, size, setup.seed)
    offset = offset_of(settings)
    source = Pairs(table, policy, size, batch, setup.seed, scale=scale, offset=offset)
    return Method(objective, source, adaptive(objective))


def costs(settings: config.Preference, context: Context, paths: Paths) -> Costs:
    states = 1 if settings.likes else 2
    return Costs(1, calls=states, references=states * compares(settings), at_once=states)


def picture_size(policy: Policy) -> int:
    """The side of a model's pictures, to which those of pairs are brought; 0 for no pictures."""
    with torch.no_grad():
        shown = policy.backbone.decode(torch.zeros(1, *policy.backbone.shape, device=policy.device))
    return shown.shape[-1] if shown.dim() == 4 else 0


UNJUDGED = ("scenes",)
"""Data that come with the models and say nothing of what is preferred."""
