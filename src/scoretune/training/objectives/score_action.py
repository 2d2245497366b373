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
SLOPED: tuple[Form, ...] = ("slope", "rate", "explicit")
"""The forms that follow the gradient of a value."""


def check(settings: config.ScoreAction, context: Context) -> None:
    method.check_on_rewards(context)
    method.check_trust_region(settings.trust_region, context.sizes)
    if settings.form == "auto" and context.differentiable is not None:
        _check_read_by_auto(settings, context.differentiable)
    at_visited = settings.form in ("rate", "explicit")
    critic_alone = at_visited and settings.critic.skip == "none"
    if settings.form in SLOPED and not critic_alone:
        method.check_follows_gradient(context)
    becomes_rate = settings.form == "auto" and context.differentiable is not False
    if context.sampling.solver is None or not (at_visited or becomes_rate):
        method.check_has_noise(context)
    if settings.form == "slope" and settings.kl_weight:
        method.check_shard(context, "objective.form=slope", True)


def _check_read_by_auto(settings: config.ScoreAction, differentiable: bool) -> None:
    """Raise UserError for a setting that the form which `auto` comes to does not read."""
    critic = settings.critic
    unread: dict[str, tuple[object, object]]  # each value with its default
    if differentiable:
        unread = {"clip": (settings.clip, CLIP), "critic.gae_lambda": (critic.gae_lambda, None)}
        why = "the reward has a gradient, so objective.form=auto is rate, which has no ratios"
        fix = "set objective.form=ratio"
    else:
        unread = {"critic.estimate": (critic.estimate, "pretrained")}
        why = "the reward has no gradient, so objective.form=auto is ratio, which takes no slopes"
        fix = "give a reward that has one"
    for name, (value, default) in unread.items():
        if value != default:
            raise UserError(
                f"objective.{name}={value} is of no use here: {why}; leave it out, or {fix}"
            )


def build(settings: config.ScoreAction, setup: Setup) -> Method:
    form = form_of(settings, bool(setup.context.differentiable))
    policy, kl_weight, exploration = setup.policy, settings.kl_weight, settings.exploration
    trust = trust_region(settings, policy)
    objective = ScoreAction(policy, kl_weight, settings.clip, exploration, trust)
    rule, at_once = rule_named(form, exploration), setup.context.at_once
    if form == "ratio":
        rule = traced(settings.critic.gae_lambda or 0.0)
    first = first_step(form)
    critic = fitted_critic(settings.critic, policy, rule, kl_weight, first=first, at_once=at_once)
    choose = any_steps(setup.context.sizes.share, noisy=form == "ratio", first=first)
    everywhere = asks_everywhere(form, setup.context)
    paths = method.on_policy(
        setup,
        critic,
        choose,
        reference=method.references(kl_weight, everywhere=everywhere),
        in_chain=form in IN_CHAIN,
        features=critic.shares_features and form == "ratio",  # slopes have their own forward pass
    )
    return Method(objective, paths, trust, settings.critic.warmup)


def first_step(form: Form) -> int:
    """The number of the first step that is learned from."""
    return 0 if form in IN_CHAIN else method.FIRST_IN_TIME


def asks_everywhere(form: Form, context: Context) -> bool:
    """Whether a KL is asked for at every state: increments take in that of each, and of one step
    that is drawn from several nothing follows for the others (`rl.drawn_returns`)."""
    candidates = context.sampling.steps - first_step(form)
    return form == "ratio" or trained_steps(context.sizes.share, candidates) == 1 < candidates


def costs(settings: config.ScoreAction, context: Context, paths: Paths) -> Costs:
    form = form_of(settings, bool(context.differentiable))
    ratios = form == "ratio" and context.sampling.solver is None
    steps = paths.steps - first_step(form)
    trained = trained_steps(context.sizes.share, paths.noisy if ratios else steps)
    slopes, decodes = form != "ratio", settings.critic.skip != "none"
    # Where a path ends no network is called; of a random share of the steps, so often on average.
    inside = 1 - 1 / paths.steps if form == "slope" else 1.0
    everywhere = asks_everywhere(form, context)
    return Costs(
        trained,
        references=_references(settings, form, trained, paths.steps, everywhere=everywhere),
        on_paths=everywhere,
        credit_calls=paths.samples * trained * inside if slopes else 0,
        decodes=paths.samples * (trained if slopes else paths.steps) * decodes,
        credit_graph="" if not slopes else "both" if decodes else "network",
        credit_batch=min(context.at_once, math.ceil(paths.samples * trained)),
        measured=method.measured_states(
            settings.trust_region, context.sizes, paths.samples * trained
        ),
        warm_up=settings.critic.warmup,
    )


def _references(
    settings: config.ScoreAction, form: Form, trained: int, steps: int, *, everywhere: bool
) -> float:
    """At how many steps of a path the pretrained policy is asked besides where slopes ask it."""
    if not settings.kl_weight:
        return 0
    if everywhere:
        return steps
    if settings.critic.estimate == "policy":
        return trained
    if form == "slope":  # which asks where steps arrive: k is one of these if k − 1 was drawn too
        return trained / steps * (1 + steps - trained)
    return 0


def follows_slopes(settings: config.ScoreAction, differentiable: bool) -> bool:
    """Whether the gradient of the reward itself is followed, not only that of what is learned."""
    return form_of(settings, differentiable) in SLOPED and settings.critic.skip != "none"


def form_of(settings: config.ScoreAction, differentiable: bool) -> Form:
    """The form that settings name, or the one that suits the reward."""
    if settings.form == "auto":
        return "rate" if differentiable else "ratio"
    return settings.form
