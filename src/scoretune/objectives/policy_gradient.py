"""Policy gradient through likelihood ratios: DDPO (arXiv 2305.13301) and its regularised kin.

    maximise  E sum_k min(ρ_k A_k, clip(ρ_k, 1 ± ε) A_k)  −  κ · path KL to the pretrained model

The sum runs over the steps of a path. Log-probabilities are sums over dimensions, and the KL of
a path is the sum of its steps' KLs, which has a limit as the steps get finer: κ means the same at
5 steps and at 500.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from scoretune.batches import Loss, Steps
from scoretune.objectives.base import path_kl, ratio_metrics
from scoretune.policy import Policy
from scoretune.rl import clipped_surrogate


@dataclass(frozen=True)
class PolicyGradient:
    """The clipped surrogate of the advantages, minus `kl_weight` times the path KL.

    `temperature` divides log-ratios: 1 is the true ratio, the number of dimensions is the mean
    that DDPO's code uses.
    """

    policy: Policy
    clip: float = 0.2
    kl_weight: float = 0.0
    temperature: float = 1.0

    def __call__(self, steps: Steps) -> Loss:
        transition = self.policy.transition(steps.x, steps.t, steps.t_next, steps.condition)
        log_ratio = (transition.log_prob(steps.x_next) - steps.log_prob) / self.temperature
        gain = clipped_surrogate(log_ratio, torch.zeros_like(log_ratio), steps.advantage, self.clip)
        if self.kl_weight:
            gain = gain - self.kl_weight * path_kl(transition, steps)
        return Loss(-steps.path_steps * gain.mean(), ratio_metrics(log_ratio, self.clip))
