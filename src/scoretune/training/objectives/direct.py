"""The reward's own gradient through a rollout: DRaFT-K and AlignProp with the graph kept.

    maximise  E r(x_N),   x_{k+1} = m_k(x_k, x̂_θ(x_k)) + c_k ξ_k,   θ fixed before the last K steps

(arXiv 2309.17400 eq. 3; with a random K, arXiv 2310.03739). One network evaluation a step, one
backward pass through all of them. `credit.adjoint` finds the same gradient with one step's graph in
memory at a time, for one more evaluation of every step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scoretune.core.records import Loss, Starts
from scoretune.policy import Policy
from scoretune.rewards.base import Reward
from scoretune.rewards.weighted import reward_metrics, scored


@dataclass(frozen=True)
class Direct:
    """Minus the mean reward of where paths end that begin at `batches.Starts`."""

    policy: Policy
    reward: Reward
    reward_name: str

    def __call__(self, starts: Starts) -> Loss:
        final, rows = self._follow(starts)
        prompts = [starts.prompts[i] for i in rows.tolist()]
        images = self.policy.backbone.decode(final)
        scores = scored(self.reward, self.reward_name, images, prompts)
        return Loss(-scores.total.mean(), reward_metrics(scores))

    def _follow(self, starts: Starts) -> tuple[Tensor, Tensor]:
        """Where the paths end [B, *S], and whose they are, [B]: the longest come first."""
        policy, nodes = self.policy, starts.nodes
        rows = torch.zeros(0, dtype=torch.long, device=starts.x.device)
        x = starts.x[:0]
        for k in range(int(starts.first.min()), nodes.shape[1] - 1):
            new = (starts.first == k).nonzero()[:, 0]
            rows, x = torch.cat([rows, new]), torch.cat([x, starts.x[new]])
            t, t_next = nodes[rows, k], nodes[rows, k + 1]
            estimate = policy.estimate(x, t, starts.condition.take(rows))
            x = policy.move(x, estimate, t, t_next).draw_with(starts.noise[rows, k])
        return x, rows
