"""Policy gradient through likelihood ratios: DDPO (arXiv 2305.13301) and its regularised kin.

    maximise  E sum_k min(ρ_k A_k, clip(ρ_k, 1 ± ε) A_k)  −  κ · path KL to the pretrained model

The sum runs over the steps of a path. Log-probabilities are sums over dimensions, and the path KL
is an integral, so κ means the same at 5 steps and at 500, on any grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from scoretune.core.records import Loss, Steps
from scoretune.policy import Policy
from scoretune.rl import clipped_surrogate
from scoretune.training.objectives.base import TrustRegion, given, moved_kl, path_kl, ratio_metrics


@dataclass(frozen=True)
class PolicyGradient:
    """The surrogate of the advantages, minus `kl_weight` times the path KL.

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
        needs = "a likelihood ratio needs a stochastic step: leave sampling.solver unset"
        estimate = self.policy.estimate(steps.x, steps.t, steps.condition)
        transition = self.policy.move(steps.x, estimate, steps.t, steps.t_next)
        log_ratio = transition.log_prob(given(steps.x_next, needs)) - given(steps.log_prob, needs)
        log_ratio = log_ratio / self.temperature
        advantage = given(steps.advantage, "a policy gradient needs advantages")
        if self.clip is None:
            gain, metrics = advantage * log_ratio, {}
        else:
            gain = clipped_surrogate(log_ratio, torch.zeros_like(log_ratio), advantage, self.clip)
            metrics = ratio_metrics(log_ratio, self.clip)
        if self.kl_weight:
            gain = gain - self.kl_weight * path_kl(estimate, steps)
        moved = moved_kl(estimate, steps)
        if self.trust is not None:
            gain = gain - self.trust.coefficient * moved
        metrics["update_kl"] = steps.path_steps * float(moved.detach().mean())
        return Loss(-steps.path_steps * gain.mean(), metrics)
