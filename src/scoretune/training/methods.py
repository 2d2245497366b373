"""From a configuration to a method: the source, the credit rule and the objective it is made of.

Everything is checked before anything is loaded (`check`), so that a mistake costs a second.
"""

from __future__ import annotations

from typing import Any, assert_never

import torch
from torch import Tensor

from scoretune.core.config import (
    NEW_NETWORKS,
    Adjoint,
    Consistency,
    Direct,
    Energy,
    Matching,
    PolicyGradient,
    Run,
    ScoreAction,
)
from scoretune.core.config import Critic as CriticSettings
from scoretune.core.config import Dataset as DatasetSettings
from scoretune.core.errors import UserError, user_errors
from scoretune.core.records import Objective, Source
from scoretune.data.images import read_pictures
from scoretune.data.prompts import Prompts
from scoretune.diffusion.named import grid, window
from scoretune.policy import Policy
from scoretune.rewards.base import Reward
from scoretune.rewards.weighted import Weighted
from scoretune.training.credit.adjoint import AdjointCredit
from scoretune.training.credit.base import Credit
from scoretune.training.credit.critic import CriticCredit, Form
from scoretune.training.credit.energy import EnergyCredit
from scoretune.training.credit.outcome import TerminalCredit
from scoretune.training.credit.reward_gradient import RewardSlope
from scoretune.training.credit.running import RunningCredit
from scoretune.training.credit.values import critic_for
from scoretune.training.objectives import (
    consistency,
    direct,
    matching,
    policy_gradient,
    score_action,
)
from scoretune.training.objectives.base import TrustRegion
from scoretune.training.sources.differentiable import Differentiable
from scoretune.training.sources.on_policy import (
    Chooser,
    Dataset,
    OnPolicy,
    any_steps,
    last_steps,
    one_of_last,
)


def check(run: Run, differentiable: bool) -> None:
    """Refuse settings that do not fit each other, in one line, before anything is loaded."""
    chosen, sampling = run.objective, run.sampling
    if isinstance(chosen, Consistency):
        raise UserError(
            "recipe 'consistency' is for networks of one's own: set model.source to the folder of "
            "a run on data, or to a new unet, dit or mlp"
        )
    if run.optimiser.ema or run.dataset != DatasetSettings() or run.sizes.batch:
        _only_from_data(run)
    if isinstance(chosen, Matching):
        return
    memoryless = sampling.eta == 1 and sampling.noise == "constant" and sampling.solver is None
    if isinstance(chosen, Adjoint) and not memoryless:
        raise UserError(
            "adjoint matching needs a memoryless kernel, under which the sample does not depend on "
            f"the noise it began with: set sampling.eta=1 (it is {sampling.eta:g}) and leave "
            "sampling.noise=constant and sampling.solver=null"
        )
    needs_gradient = isinstance(chosen, Direct | Adjoint) or (
        isinstance(chosen, ScoreAction) and chosen.form in ("slope", "rate", "explicit")
    )
    critic_alone = (
        isinstance(chosen, ScoreAction)
        and chosen.form in ("rate", "explicit")
        and chosen.critic.skip == "none"
    )
    if needs_gradient and not differentiable and not critic_alone:
        raise UserError(
            f"reward {run.reward!r} has no gradient, and recipe {run.recipe!r} follows one: choose "
            "ddpo, grpo, dpok or reinforce, or score_as_action with objective.form=ratio (or "
            "objective.form=rate with objective.critic.skip=none)"
        )
    if getattr(chosen, "trust_region", None) is not None and run.sizes.accumulate == 0:
        raise UserError(
            "objective.trust_region holds back later steps of an update, and sizes.accumulate=0 "
            "makes only one: set sizes.accumulate=1, or leave the trust region out"
        )
    if sampling.solver is not None and not (
        isinstance(chosen, ScoreAction)
        and (chosen.form in ("rate", "explicit") or (chosen.form == "auto" and differentiable))
    ):
        raise UserError(
            f"sampling.solver={sampling.solver} has no noise, hence no likelihood ratios and no "
            "response of a step: use score_as_action with objective.form=rate or explicit, or set "
            "sampling.solver=null"
        )
    if sampling.window.size:
        _check_window(run)
    if isinstance(chosen, PolicyGradient):
        _check_combination(chosen)
    if isinstance(chosen, Direct) and chosen.graph == "kept" and not _may_keep(run, chosen):
        raise UserError(
            "objective.graph=kept knows no path KL, and makes one step of the optimiser an update: "
            "set objective.kl_weight=0 and sizes.accumulate=0, or objective.graph=steps"
        )


def _check_combination(chosen: PolicyGradient) -> None:
    """Refuse single comparisons of several rewards to a critic, which has one value."""
    if chosen.baseline == "critic" and chosen.combine == "advantages":
        raise UserError(
            "objective.combine=advantages compares every reward by itself, and a critic values "
            "their sum: set objective.combine=rewards, or objective.baseline=group or running"
        )


def _check_window(run: Run) -> None:
    """Refuse a window to methods that learn from the whole path."""
    chosen, sampling = run.objective, run.sampling
    if not isinstance(chosen, PolicyGradient) or chosen.baseline == "critic":
        raise UserError(
            "sampling.window is for likelihood ratios credited by outcome, and recipe "
            f"{run.recipe!r} learns from the whole path: use mix_grpo, flow_grpo or ddpo, or set "
            "sampling.window.size=0"
        )
    if sampling.solver is not None or sampling.jitter:
        raise UserError(
            "sampling.window has a solver of its own, on a fixed grid: set sampling.window.solver, "
            "and leave sampling.solver=null and sampling.jitter=false"
        )


def _only_from_data(run: Run) -> None:
    """Refuse what only the recipes on data understand, with a network of one's own or with any."""
    if run.sizes.batch and not isinstance(run.objective, Matching):
        raise UserError("sizes.batch is of recipes on data: set sizes.prompts and sizes.group")
    for name, is_set in (
        ("optimiser.ema", bool(run.optimiser.ema)),
        ("dataset", run.dataset != DatasetSettings()),
    ):
        if is_set:
            raise UserError(
                f"{name} is for networks of one's own that learn from data: leave it out, or set "
                "recipe supervised with model.source=unet, dit, mlp or the folder of such a run"
            )


def method(
    run: Run, policy: Policy, prompts: Prompts, reward: Reward, differentiable: bool
) -> tuple[Objective, Source, TrustRegion | None]:
    """The objective and the source of a configuration, and what adapts between updates."""
    chosen = run.objective
    if isinstance(chosen, Matching):
        return _matching(run, policy, chosen)
    assert not isinstance(chosen, Consistency), "refused by `check`"
    objective: Objective
    credit: Credit
    trust, choose = None, any_steps(run.sizes.share, noisy=_needs_ratios(chosen, differentiable))
    if isinstance(chosen, PolicyGradient | ScoreAction) and chosen.trust_region is not None:
        trust = TrustRegion(chosen.trust_region)
    if isinstance(chosen, PolicyGradient):
        objective, credit = _policy_gradient(run, chosen, policy, trust, reward)
    elif isinstance(chosen, ScoreAction):
        objective, credit = _score_action(run, chosen, policy, trust, differentiable)
    else:
        objective = score_action.ScoreAction(policy, chosen.kl_weight)
        if isinstance(chosen, Direct):
            credit, choose = _direct(run, chosen, policy)
        elif isinstance(chosen, Adjoint):
            credit = AdjointCredit(policy, lean=True, minibatch=run.sizes.minibatch)
        elif isinstance(chosen, Energy):
            credit = _energy(run, chosen, policy)
        else:
            assert_never(chosen)
    features = isinstance(credit, CriticCredit) and credit.shares_features
    process = policy.backbone.process
    with user_errors():
        times = grid(process, run.sampling)
        place = window(run.sampling, times, process, run.seed)
    paths = OnPolicy(
        policy=policy,
        prompts=prompts,
        reward=reward,
        reward_name=run.reward,
        credit=credit,
        times=times,
        sizes=run.sizes,
        seed=run.seed,
        choose=choose,
        reference=chosen.kl_weight > 0,
        jitter=run.sampling.jitter,
        solver=run.sampling.solver,
        features=features,
        window=place,
        shared_noise=run.sampling.shared_noise,
        home=torch.device("cpu") if run.hardware.offload_paths else None,
    )
    if isinstance(chosen, Direct) and keeps_graph(run, chosen):
        objective = direct.Direct(policy, reward, run.reward)
        return objective, Differentiable(paths, chosen.last, chosen.random), None
    return objective, paths, trust


def keeps_graph(run: Run, chosen: Direct) -> bool:
    """Whether the last steps are followed with one graph, and not with one step's at a time."""
    wanted = chosen.graph == "kept" or (
        chosen.graph == "auto" and not run.hardware.checkpointing and _may_keep(run, chosen)
    )
    return wanted and chosen.through == "steps"


def _may_keep(run: Run, chosen: Direct) -> bool:
    return not chosen.kl_weight and run.sizes.accumulate == 0


def _needs_ratios(chosen: Any, differentiable: bool) -> bool:
    """Whether the steps that are learned from must have a likelihood."""
    return isinstance(chosen, PolicyGradient) or (
        isinstance(chosen, ScoreAction) and _form(chosen, differentiable) == "ratio"
    )


def _form(chosen: ScoreAction, differentiable: bool) -> Form:
    if chosen.form == "auto":
        return "rate" if differentiable else "ratio"
    return chosen.form


def from_data(
    run: Run, policy: Policy, x0: Tensor
) -> tuple[Objective, Dataset, consistency.Consistency | None]:
    """The objective and the source of a network of one's own, and what adapts between updates.

    x0 [n, *S] are clean states, without conditions.
    """
    chosen = run.objective
    weight = torch.ones(len(x0), device=x0.device)
    condition = policy.backbone.encode([""] * len(x0))
    source = Dataset(x0, condition, weight, _batch(run), run.seed)
    if isinstance(chosen, Matching):
        return _matching_objective(policy, chosen), source, None
    assert isinstance(chosen, Consistency)
    objective = consistency.Consistency(
        policy, _plan(run, chosen), t_min=chosen.t_min, sigma_data=chosen.sigma_data
    )
    return objective, source, objective


def _plan(run: Run, chosen: Consistency) -> consistency.Plan:
    new = run.model.source in NEW_NETWORKS
    rule = ("ict" if new else "distillation") if chosen.rule == "auto" else chosen.rule
    if rule == "distillation":
        return consistency.Distillation(chosen.points or 40, chosen.solver, chosen.decay)
    return consistency.Training(run.updates, rule, chosen.points or None)


def _matching(run: Run, policy: Policy, chosen: Matching) -> tuple[Objective, Source, None]:
    images, captions = read_pictures(run.data, run.seed)
    backbone = policy.backbone
    x0, condition = backbone.embed(images.to(policy.device)), backbone.encode(captions)
    weight = torch.ones(len(x0), device=policy.device)
    source = Dataset(x0, condition, weight, _batch(run), run.seed)
    return _matching_objective(policy, chosen), source, None


def _matching_objective(policy: Policy, chosen: Matching) -> matching.Matching:
    return matching.Matching(
        policy,
        chosen.t_min,
        weight=chosen.weight,
        times=chosen.times,
        loss=chosen.loss,
        dropout=chosen.dropout,
    )


def _batch(run: Run) -> int:
    return run.sizes.batch or run.sizes.prompts * run.sizes.group


def _policy_gradient(
    run: Run, chosen: PolicyGradient, policy: Policy, trust: TrustRegion | None, reward: Reward
) -> tuple[Objective, Credit]:
    clip = chosen.clip if chosen.surrogate == "clipped" else None
    objective = policy_gradient.PolicyGradient(
        policy, clip, chosen.kl_weight, chosen.temperature, trust
    )
    if chosen.baseline == "critic":
        return objective, _critic(chosen.critic, policy, "outcome", chosen.kl_weight)
    weights = {}
    if isinstance(reward, Weighted) and chosen.combine == "advantages":
        weights = reward.weights
    if chosen.baseline == "running":
        return objective, RunningCredit(chosen.buffer, chosen.min_count, weights=weights)
    return objective, TerminalCredit(run.sizes.group, chosen.shared_scale, weights=weights)


def _score_action(
    run: Run,
    chosen: ScoreAction,
    policy: Policy,
    trust: TrustRegion | None,
    differentiable: bool,
) -> tuple[Objective, Credit]:
    form = _form(chosen, differentiable)
    objective = score_action.ScoreAction(
        policy, chosen.kl_weight, chosen.clip, chosen.exploration, trust
    )
    credit = _critic(chosen.critic, policy, form, chosen.kl_weight, chosen.exploration)
    return objective, credit


def _direct(run: Run, chosen: Direct, policy: Policy) -> tuple[Credit, Chooser]:
    if chosen.through == "estimate":
        return RewardSlope(run.sizes.minibatch), one_of_last(chosen.last)
    credit = AdjointCredit(policy, kl_weight=chosen.kl_weight, minibatch=run.sizes.minibatch)
    return credit, last_steps(chosen.last, chosen.random)


def _energy(run: Run, chosen: Energy, policy: Policy) -> EnergyCredit:
    """Energy and value are networks like a critic's F, of the noisy state alone."""
    backbone = policy.backbone
    images, captions = read_pictures(run.data, run.seed)
    condition = backbone.encode(captions)
    energy, value = (
        critic_for(
            backbone.shape,
            condition.tokens.shape[-1],
            backbone.process.horizon,
            width=chosen.width,
            inputs="noisy",
        ).body.to(policy.device)
        for _ in range(2)
    )
    parameters = [*energy.parameters(), *value.parameters()]
    return EnergyCredit(
        energy=energy,
        optimiser=torch.optim.Adam(parameters, lr=chosen.learning_rate),
        policy=policy,
        data=backbone.embed(images.to(policy.device)),
        seed=run.seed,
        condition=condition,
        form="arrival" if chosen.update == "dxmi" else "departure",
        value=value,
    )


def _critic(
    settings: CriticSettings,
    policy: Policy,
    form: Form,
    kl_weight: float,
    exploration: float = 0.0,
) -> CriticCredit:
    backbone = policy.backbone
    auto = policy.has_features and settings.inputs == "both"
    shares = settings.body == "backbone" or (settings.body == "auto" and auto)
    exact = torch.promote_types(next(backbone.network.parameters()).dtype, torch.float32)
    critic = critic_for(
        backbone.shape,
        backbone.encode([""]).tokens.shape[-1],
        backbone.process.horizon,
        width=settings.width,
        skip=settings.skip,
        inputs=settings.inputs,
        features=policy.feature_size if shares else 0,
    ).to(policy.device, exact)
    return CriticCredit(
        critic=critic,
        optimiser=torch.optim.Adam(critic.parameters(), lr=settings.learning_rate),
        policy=policy,
        kl_weight=kl_weight,
        form=form,
        passes=settings.passes,
        exploration=exploration,
        shares_features=shares,
        jacobian=settings.jacobian,
    )
