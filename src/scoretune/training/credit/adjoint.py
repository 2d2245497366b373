"""Credit by adjoints: the reward's gradient carried back through the steps that were taken.

    a_N = ∇reward(x_N),   a_k = (∂x_{k+1}/∂x_k)ᵀ a_{k+1} − κ ∇_x kl_k

with the noise of each step held fixed. Under the acting policy this is the exact gradient of a
differentiable rollout, so credit on the last K steps is DRaFT-K (arXiv 2309.17400) and on a random
number of them AlignProp (arXiv 2310.03739), one step's graph in memory at a time. Under the
pretrained policy, and without the KL term, it is the lean adjoint of adjoint matching
(arXiv 2409.08861), whose regression onto κ-scaled adjoints has the gradient of ⟨x̂0, slope⟩ − κ·KL.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from scoretune.core.records import Scores, Stateless, Trajectory, spans
from scoretune.diffusion.processes import expand
from scoretune.policy import Policy
from scoretune.training.credit.base import Credited, RewardFn, arrival_to_data, slope_of


@dataclass
class AdjointCredit(Stateless):
    """Slopes by the adjoint, `lean` under the pretrained policy or exact under the acting one, of
    `at_once` samples at a time."""

    policy: Policy
    lean: bool = False
    kl_weight: float = 0.0
    at_once: int = 64

    def __call__(
        self, path: Trajectory, scores: Scores, reward_fn: RewardFn, k: Tensor, b: Tensor
    ) -> Credited:
        samples, device = path.states.shape[1], path.states.device
        first = torch.full((samples,), len(path.data), device=device)
        first = first.scatter_reduce(0, b, k, "amin")  # as far as each path is learned from
        arrivals = torch.zeros_like(path.states)
        pretrained = torch.zeros_like(path.data) if self.asks_pretrained else None
        everyone = torch.arange(samples, device=device)
        for who in (everyone[part] for part in spans(samples, self.at_once)):
            if path.final_slope is None:
                adjoint = slope_of(reward_fn, path.final[who], who)[1]
            else:
                adjoint = path.final_slope[who]
            arrivals[-1, who] = adjoint
            for step in range(len(path.data) - 1, int(first[who].min()), -1):
                earlier = (first[who] < step).nonzero()[:, 0]
                who, adjoint = who[earlier], adjoint[earlier]
                adjoint, data = self._back(path, step, who, adjoint)
                arrivals[step, who] = adjoint
                if pretrained is not None:
                    pretrained[step, who] = data
        slope = arrival_to_data(self.policy, path, k, b, arrivals[k + 1, b])
        size = arrivals[k + 1, b].flatten(1).norm(dim=1).mean()
        reference_data = None
        if pretrained is not None:
            reference_data = self._reference(path, pretrained, k, b, first)
        metrics = {"adjoint_norm": float(size)}
        return Credited(data_slope=slope, reference_data=reference_data, metrics=metrics)

    @property
    def asks_pretrained(self) -> bool:
        """Whether the way back goes through the pretrained policy's network."""
        return self.lean or bool(self.kl_weight)

    def _reference(
        self, path: Trajectory, pretrained: Tensor, k: Tensor, b: Tensor, first: Tensor
    ) -> Tensor:
        """What the pretrained policy says at the steps k of samples b: asked at the first one of
        each path, where the way back ends; `pretrained` [N, B, *S] at the others."""
        data = pretrained[k, b]
        ends = (k == first[b]).nonzero()[:, 0]
        j, who = k[ends], b[ends]
        x, t, condition = path.states[j, who], path.times[j, who], path.condition.take(who)
        data[ends] = self.policy.pretrained(x, t, condition).data.to(data)
        return data

    def _back(
        self, path: Trajectory, step: int, who: Tensor, adjoint: Tensor
    ) -> tuple[Tensor, Tensor]:
        """a_k from a_{k+1} [M, *S], by one vector–Jacobian product; and what the pretrained policy
        said there, or, where it was not asked, the present one."""
        t, t_next = path.times[step, who], path.times[step + 1, who]
        condition, x = path.condition.take(who), path.states[step, who].requires_grad_()
        worth, back, said = torch.zeros(()), torch.zeros(()), None
        if self.kl_weight and not self.lean:  # one graph after the other: this one, and it is gone
            data, weight = path.data[step, who], 2 * self.kl_weight * path.kl_weights[step, who]
            with torch.enable_grad(), self.policy.reference():
                pretrained = self.policy.estimate(x, t, condition).data
                worth = expand(weight, data) * (pretrained.detach() - data)  # of a unit of x̂0
                back = -torch.autograd.grad((pretrained * worth).sum(), x)[0]
            said = pretrained.detach()
        with torch.enable_grad(), self.policy.reference() if self.lean else nullcontext():
            estimate = self.policy.estimate(x, t, condition)
            said = estimate.data.detach() if said is None else said
            # The noise that was drawn is held fixed and the std does not depend on x.
            gain = (self.policy.move(x, estimate, t, t_next).mean * adjoint).sum()
            if worth.dim():
                gain = gain + (estimate.data * worth).sum()
            return torch.autograd.grad(gain, x)[0] + back.to(x), said
