"""The score as the action: policy optimisation in continuous time (arXiv 2409.08400, 2502.01819).

    maximise  E[reward(X_0)] − κ · path KL to the pretrained model

The running cost of the path KL is known in closed form, and a critic V says what a state is worth,
so each step has an advantage of its own, proportional to its Δt. Two forms of the gradient:

* likelihood ratio: sum_k min(ρ_k A_k, clip(ρ_k) A_k), A_k = V_{k+1} − V_k + r_k Δ_k. The sampler's
  own noise is the exploration; any reward will do.
* value slope: sum_k ⟨μ_θ(x_k), ∇V(x_{k+1})⟩, whose gradient is E∫g²(∂s)ᵀ∇V dt. It has no sampling
  noise beyond the states, and is only as good as the critic's gradient.

In both the path KL is differentiated directly: −κ ∂KL_k is −κ g²(∂s)ᵀ(s − s_pre)Δ_k.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scoretune.batches import Loss, Steps
from scoretune.diffusion.kernels import Transition
from scoretune.errors import UserError
from scoretune.objectives.base import path_kl, ratio_metrics
from scoretune.policy import Policy
from scoretune.rl import clipped_surrogate


@dataclass(frozen=True)
class ScoreAction:
    """Continuous-time policy optimisation; `slope_weight` mixes the second form into the first."""

    policy: Policy
    kl_weight: float = 0.01
    clip: float = 0.2
    slope_weight: float = 0.0

    def __call__(self, steps: Steps) -> Loss:
        transition = self.policy.transition(steps.x, steps.t, steps.t_next, steps.condition)
        log_prob = transition.log_prob(steps.x_next)
        log_ratio = log_prob - steps.log_prob
        gain = torch.zeros_like(log_ratio)
        if self.slope_weight < 1:
            gain = (1 - self.slope_weight) * clipped_surrogate(
                log_prob, steps.log_prob, steps.advantage, self.clip
            )
        if self.slope_weight > 0:
            gain = gain + self.slope_weight * slope_gain(transition, steps)
        if self.kl_weight:
            gain = gain - self.kl_weight * path_kl(transition, steps)
        return Loss(-steps.path_steps * gain.mean(), ratio_metrics(log_ratio, self.clip))


def slope_gain(transition: Transition, steps: Steps) -> Tensor:
    """⟨μ_θ(x_k), ∇V(x_{k+1})⟩ [M]: its gradient is that of E V(x_{k+1}), the noise held fixed."""
    if steps.value_slope is None:
        raise UserError(
            "slope_weight above 0 needs the slopes of the value, which only a critic gives"
        )
    return (transition.mean * steps.value_slope).flatten(1).sum(1)
