"""The score as the action: policy optimisation in continuous time (arXiv 2409.08400, 2502.01819).

    maximise  E[reward(X_0)] − κ · KL to the pretrained model

with a critic, in four forms: value slopes at the visited states (rate) or where steps arrive
(slope), tried actions (explicit), and likelihood ratios (ratio). The first and the third are of
continuous time, whatever sampler led to the states, and so is their KL; the other two go through a
kernel, and have the KL of its chain. The loss is `base.ScoreAction`.
"""

from __future__ import annotations

import math

from scoretune.core import config
from scoretune.core.errors import UserError
from scoretune.training.credit.critic import Form, fitted_critic, rule_named, traced
from scoretune.training.objectives import method
from scoretune.training.objectives.base import ScoreAction, trust_region
from scoretune.training.objectives.method import Context, Costs, Method, Paths, Setup
from scoretune.training.sources.step_choice import any_steps, trained_steps

follows_reward = True
CLIP = config.ScoreAction().clip
IN_CHAIN: tuple[Form, ...] = ("ratio", "slope")
"""The forms that go through the kernel, hence have the KL of its chain."""


def check(settings: config.ScoreAction, context: Context) -> None:
    method.check_on_rewards(context)
    method.check_trust_region(settings.trust_region, context.sizes)
    if settings.form == "auto" and context.differentiable and settings.clip != CLIP:
        raise UserError(
            f"objective.clip={settings.clip:g} is of no use here: the reward has a gradient, so "
            "objective.form=auto is rate, which has no ratios; leave it out, or set "
            "objective.form=ratio"
        )
    at_visited = settings.form in ("rate", "explicit")
    critic_alone = at_visited and settings.critic.skip == "none"
    if settings.form in ("slope", "rate", "explicit") and not critic_alone:
        method.check_follows_gradient(context)
    becomes_rate = settings.form == "auto" and context.differentiable is not False
    if context.sampling.solver is None or not (at_visited or becomes_rate):
        method.check_has_noise(context)


def build(settings: config.ScoreAction, setup: Setup) -> Method:
    form = form_of(settings, bool(setup.context.differentiable))
    policy, kl_weight, exploration = setup.policy, settings.kl_weight, settings.exploration
    trust = trust_region(settings, policy)
    objective = ScoreAction(policy, kl_weight, settings.clip, exploration, trust)
    rule, at_once = rule_named(form, exploration), setup.context.at_once
    if form == "ratio":
        rule = traced(settings.critic.gae_lambda or 0.0)
    critic = fitted_critic(settings.critic, policy, rule, kl_weight, at_once=at_once)
    # Pure noise stands for nothing of a path in continuous time: nothing is to be learned there.
    first = 0 if form in IN_CHAIN else 1
    choose = any_steps(setup.context.sizes.share, noisy=form == "ratio", first=first)
    features = critic.shares_features
    paths = method.on_policy(
        setup,
        critic,
        choose,
        reference=method.references(kl_weight, everywhere=True),
        in_chain=form in IN_CHAIN,
        features=features,
    )
    return Method(objective, paths, trust, settings.critic.warmup)


def costs(settings: config.ScoreAction, context: Context, paths: Paths) -> Costs:
    form = form_of(settings, bool(context.differentiable))
    ratios = form == "ratio" and context.sampling.solver is None
    steps = paths.steps if form in IN_CHAIN else paths.steps - 1
    trained = trained_steps(context.sizes.share, paths.noisy if ratios else steps)
    slopes, decodes = form != "ratio", settings.critic.skip != "none"
    # Where a path ends no network is called; of a random share of the steps, so often on average.
    inside = 1 - 1 / paths.steps if form == "slope" else 1.0
    return Costs(
        trained,
        references=paths.steps if settings.kl_weight else 0,
        on_paths=True,
        credit_calls=paths.samples * trained * inside if slopes else 0,
        credit_graph="" if not slopes else "both" if decodes else "network",
        credit_batch=min(context.at_once, math.ceil(paths.samples * trained)),
        measured=method.measured_states(
            settings.trust_region, context.sizes, paths.samples * trained
        ),
        warm_up=settings.critic.warmup,
    )


def form_of(settings: config.ScoreAction, differentiable: bool) -> Form:
    """The form that settings name, or the one that suits the reward."""
    if settings.form == "auto":
        return "rate" if differentiable else "ratio"
    return settings.form
