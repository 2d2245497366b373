"""Credit of guidance distillation: what the pretrained policy says under guidance."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from scoretune.core.records import Scores, Stateless, Trajectory
from scoretune.policy import Policy
from scoretune.training.credit.base import Credited, RewardFn


@dataclass
class GuidedTeacher(Stateless):
    """x̂0 of the pretrained policy under classifier-free guidance of this `scale`, at the states
    that are learned from: two network evaluations a state, without gradient."""

    policy: Policy
    scale: float

    def __call__(
        self, path: Trajectory, scores: Scores, reward_fn: RewardFn, k: Tensor, b: Tensor
    ) -> Credited:
        place = path.states[k, b], path.times[k, b], path.condition.take(b)
        with self.policy.under(self.scale):
            return Credited(reference_data=self.policy.pretrained(*place).data)
