"""Policy gradient through likelihood ratios: DDPO (arXiv 2305.13301) and its regularised kin.

    maximise  E sum_k min(ρ_k A_k, clip(ρ_k, 1 ± ε) A_k)  −  κ · KL(chain ‖ pretrained chain)

The sum runs over the steps of a path. Log-probabilities are sums over dimensions, and the KL is
that of the Gaussian chain which acts (`diffusion.paths.chain_weights`). It is differentiated at the
states that were visited: how a step changes the KL of the steps after it is part of the return
where a critic is fitted, and left out, as is usual, where the credit knows only outcomes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from scoretune.core import config
from scoretune.core.errors import UserError
from scoretune.core.records import Loss, Steps
from scoretune.policy import Policy
from scoretune.rewards.weighted import Weighted
from scoretune.training.credit.base import Credit
from scoretune.training.credit.critic import fitted_critic, traced
from scoretune.training.credit.outcome import GroupCredit, RunningCredit
from scoretune.training.objectives import method
from scoretune.training.objectives.base import (
    TrustRegion,
    clipped,
    given,
    penalised,
    step_ratio,
    trust_region,
)
from scoretune.training.objectives.method import Context, Costs, Method, Paths, Setup
from scoretune.training.sources.step_choice import any_steps, trained_steps


@dataclass(frozen=True)
class PolicyGradient:
    """The surrogate of the advantages, minus `kl_weight` times the KL.

    With a `clip` the surrogate is PPO's (DDPO's IS form); without, it is A·log ρ, whose gradient is
    the score function estimator (REINFORCE; DDPO's SF form), right only while the policy is the one
    that acted. `temperature` divides log-ratios: 1 is the true ratio, the number of dimensions is
    the mean that DDPO's code uses.
    """

    policy: Policy
    clip: float | None = 0.2
    kl_weight: float = 0.0
    temperature: float = 1.0
    trust: TrustRegion | None = None

    def __call__(self, steps: Steps) -> Loss:
        estimate = self.policy.estimate(steps.x, steps.t, steps.condition)
        log_ratio = step_ratio(self.policy, estimate, steps) / self.temperature
        advantage = given(steps.advantage, "a policy gradient needs advantages")
        gain, metrics = advantage * log_ratio, dict[str, Tensor]()
        if self.clip is not None:
            gain, metrics = clipped(log_ratio, advantage, self.clip)
        return penalised(
            gain, estimate, steps, kl_weight=self.kl_weight, trust=self.trust, metrics=metrics
        )


# ------------------------------------------------------------------------------------- the method

follows_reward = False


def check(settings: config.PolicyGradient, context: Context) -> None:
    by_critic = settings.baseline == "critic"
    method.check_on_rewards(context, ends_alone=not by_critic)
    method.check_has_noise(context)
    method.check_trust_region(settings.trust_region, context.sizes)
    if by_critic and settings.combine == "advantages":
        raise UserError(
            "objective.combine=advantages compares every reward by itself, and a critic values "
            "their sum: set objective.combine=rewards, or objective.baseline=group or running"
        )
    if context.sampling.window.size and context.sampling.jitter:
        raise UserError(
            "sampling.window has a solver of its own, on a fixed grid: leave sampling.jitter=false"
        )


def build(settings: config.PolicyGradient, setup: Setup) -> Method:
    clip = settings.clip if settings.surrogate == "clipped" else None
    trust = trust_region(settings, setup.policy)
    kl_weight = settings.kl_weight
    objective = PolicyGradient(setup.policy, clip, kl_weight, settings.temperature, trust)
    credit, features = _credit(settings, setup)
    choose = any_steps(setup.context.sizes.share, noisy=True)
    everywhere = settings.baseline == "critic"  # its return to go has the KL of every step
    reference = method.references(kl_weight, everywhere=everywhere)
    paths = method.on_policy(setup, credit, choose, reference=reference, features=features)
    return Method(objective, paths, trust, _warm_up(settings))


def costs(settings: config.PolicyGradient, context: Context, paths: Paths) -> Costs:
    trained = trained_steps(context.sizes.share, paths.noisy)
    by_critic = settings.baseline == "critic"
    asked, looked = paths.steps if by_critic else trained, 0
    if by_critic and settings.critic.skip != "none":
        looked = trained if settings.critic.gae_lambda in (None, 1.0) else paths.steps
    return Costs(
        trained,
        references=asked if settings.kl_weight else 0,
        on_paths=by_critic,
        decodes=paths.samples * looked,
        ratios=True,
        measured=method.measured_states(
            settings.trust_region, context.sizes, paths.samples * trained
        ),
        warm_up=_warm_up(settings),
    )


def _credit(settings: config.PolicyGradient, setup: Setup) -> tuple[Credit, bool]:
    """The credit rule, and whether its critic reads the network's features."""
    if settings.baseline == "critic":
        kl_weight, decay = settings.kl_weight, settings.critic.gae_lambda
        rule = traced(1.0 if decay is None else decay)
        critic = fitted_critic(
            settings.critic, setup.policy, rule, kl_weight, at_once=setup.context.at_once
        )
        return critic, critic.shares_features
    weights: Mapping[str, float] = {}
    if isinstance(setup.reward, Weighted) and settings.combine == "advantages":
        weights = setup.reward.weights
    if settings.baseline == "running":
        return RunningCredit(settings.buffer, settings.min_count, weights=weights), False
    group = setup.context.sizes.group
    return GroupCredit(group, settings.shared_scale, weights=weights), False


def _warm_up(settings: config.PolicyGradient) -> int:
    return settings.critic.warmup if settings.baseline == "critic" else 0
