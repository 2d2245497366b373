"""Credit by the reward's gradient at the current guess of the data: ReFL (arXiv 2304.05977)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from scoretune.core.records import Scores, Stateless, Trajectory, spans
from scoretune.training.credit.base import Credited, RewardFn, slope_of


@dataclass
class RewardSlope(Stateless):
    """∂V/∂x̂0 with V = reward(x̂0): each step is judged as if the estimate were the sample.

    One network evaluation a step and no critic; biased, since the mean of what may still become of
    x is not what will. Looks at `at_once` states at a time.
    """

    at_once: int = 64

    def __call__(
        self, path: Trajectory, scores: Scores, reward_fn: RewardFn, k: Tensor, b: Tensor
    ) -> Credited:
        slope = path.data.new_empty(len(k), *path.data.shape[2:])
        for part in spans(len(k), self.at_once):
            slope[part] = slope_of(reward_fn, path.data[k[part], b[part]], b[part])[1]
        return Credited(data_slope=slope)
