"""What objectives share: the KL to the pretrained policy and to the one that acted; likelihood
ratios; trust regions; and the loss of the score as the action."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from scoretune.core.conditions import Condition, Tokens
from scoretune.core.config import Trusting
from scoretune.core.errors import UserError
from scoretune.core.records import Loss, Steps
from scoretune.diffusion.estimates import Estimate
from scoretune.diffusion.kernels import response
from scoretune.diffusion.processes import expand
from scoretune.diffusion.transitions import Transition, squared_norm
from scoretune.policy import Policy
from scoretune.rl import clipped_surrogate, controlled_coefficient

T = TypeVar("T")


def reference_kl(estimate: Estimate, steps: Steps) -> Tensor:
    """Each state's share of the KL to the pretrained policy, [M].

    w‖x̂_θ − x̂_pre‖² with the weights of `diffusion.paths`: a sum over a path is the KL of the chain
    or, for methods in continuous time, Girsanov's ½∫g²‖s_θ − s_pre‖²dt (arXiv 2409.08400).
    """
    reference = given(steps.reference_data, "a KL weight needs a rollout with its reference")
    return steps.kl_weight * squared_norm(estimate.data - reference)


def moved_kl(estimate: Estimate, steps: Steps) -> Tensor:
    """Each state's share of the KL of the policy that acted to the present one, [M]."""
    return steps.kl_weight * squared_norm(estimate.data - steps.data)


def acted_transition(policy: Policy, steps: Steps) -> Transition:
    """The law of the next states under the estimates `steps.data`: of the policy that acted, or of
    whichever is compared with."""
    process = policy.backbone.process
    alpha, sigma = (expand(level(steps.t), steps.x) for level in (process.alpha, process.sigma))
    estimate = Estimate(steps.data, (steps.x - alpha * steps.data) / sigma)
    return policy.move(steps.x, estimate, steps.t, steps.t_next)


def step_ratio(policy: Policy, estimate: Estimate, steps: Steps) -> Tensor:
    """log N(x_next; μ_θ, c²) − log N(x_next; μ, c²), [M], μ the mean of the policy that acted.

    (⟨x_next − μ, δ⟩ − ½‖δ‖²)/c² with δ = μ_θ − μ = r(x̂_θ − x̂), r the kernel's response. No
    difference of two log-probabilities: each is of the size of the number of dimensions, and their
    rounding alone would be a tenth of a clip range at 262,144 of them.
    """
    needs = "a likelihood ratio needs a stochastic step: leave sampling.solver unset"
    x_next, acting = given(steps.x_next, needs), acted_transition(policy, steps)
    along = response(policy.kernel, policy.backbone.process, steps.t, steps.t_next)
    delta = expand(along, steps.x) * (estimate.data - steps.data)
    std = replace(acting, noisy=steps.noisy).noisy_std("likelihood ratio")
    return (((x_next - acting.mean) - delta / 2) * delta / std**2).flatten(1).sum(1)


def clipped(log_ratio: Tensor, advantage: Tensor, clip: float) -> tuple[Tensor, dict[str, Tensor]]:
    """The clipped surrogate [M] of log-ratios since acting, and how far ratios have gone: the share
    of them beyond the clip, the smallest and the largest."""
    gain = clipped_surrogate(log_ratio, torch.zeros_like(log_ratio), advantage, clip)
    ratio = log_ratio.detach().exp()
    return gain, {
        "clip_fraction": ((ratio - 1).abs() > clip).float().mean(),
        "ratio_min": ratio.min(),
        "ratio_max": ratio.max(),
    }


STOP = 1.5
"""With `early_stop` an update ends where its KL is so many times the radius."""


@dataclass
class TrustRegion:
    """A penalty C on the KL to the policy that acted, with C adapted towards a radius.

    The penalty is the plain KL, since the noise does not depend on the action (arXiv 2502.01819).
    After each update the KL that it moved is measured, once, and C changes by `adapt`. With
    `early_stop` an update also ends before the first step of the optimiser that begins too far.
    """

    policy: Policy
    radius: float
    early_stop: bool = False
    coefficient: float = 1.0

    def adapt(self, update: int, metrics: Mapping[str, float]) -> None:
        self.coefficient = controlled_coefficient(
            self.coefficient, metrics["update_kl"], self.radius
        )

    def left(self, approx_kl: float) -> bool:
        """Whether an update that has moved so far is to end."""
        return self.early_stop and approx_kl > STOP * self.radius

    def moved(self, part: Steps) -> Tensor:
        """The KL of a path from the policy that acted to the present one, by these states."""
        estimate = self.policy.estimate(part.x, part.t, part.condition)
        return part.path_steps * moved_kl(estimate, part).mean()

    def state(self) -> dict[str, Any]:
        return {"coefficient": self.coefficient}

    def restore(self, state: dict[str, Any]) -> None:
        self.coefficient = state["coefficient"]


def trust_region(settings: Trusting, policy: Policy) -> TrustRegion | None:
    """The trust region that settings name, if any."""
    if settings.trust_region is None:
        return None
    return TrustRegion(policy, settings.trust_region, settings.early_stop)


def penalised(
    gain: Tensor,
    estimate: Estimate,
    steps: Steps,
    *,
    kl_weight: float,
    trust: TrustRegion | None,
    metrics: Mapping[str, Tensor],
) -> Loss:
    """Minus a gain [M] of single steps as that of whole paths, less both KLs by their weights;
    `metrics` are of the gain. `approx_kl` is a path's KL from the policy that acted so far: in
    closed form, so there is nothing to estimate from ratios."""
    if kl_weight:
        gain = gain - kl_weight * reference_kl(estimate, steps)
    moved = moved_kl(estimate, steps)
    if trust is not None:
        gain = gain - trust.coefficient * moved
    approx_kl = steps.path_steps * moved.detach().mean()
    return Loss(-steps.path_steps * gain.mean(), {**metrics, "approx_kl": approx_kl})


def with_dropped_prompts(condition: Condition, coin: Tensor | None, share: float) -> Tokens:
    """The tokens with this share of prompts replaced by the empty one, for
    classifier-free guidance (arXiv 2207.12598); uniform numbers `coin` [B] decide, None draws."""
    tokens = condition.tokens
    if not share:
        return tokens
    if condition.null is None:
        raise UserError("dropout needs an empty prompt, which this model has not: set it to 0")
    if coin is None:
        coin = torch.rand(len(tokens), device=tokens.device)
    return condition.dropped(coin < share)


def given(part: T | None, why: str) -> T:
    """The part of a batch that an objective cannot do without."""
    if part is None:
        raise UserError(why)
    return part


@dataclass(frozen=True)
class ScoreAction:
    """The loss of every method that says what a step's action is worth.

    An action is a score, and the sampler follows it linearly, so all that a step needs to know is
    what a unit of its action is worth. The unit here is the network's estimate of the data, x̂0,
    which is well scaled at every time. Three forms of the gradient, by what credit gave:

    * `data_slope`: sum_k ⟨x̂0_θ(x_k), ∂V/∂x̂0⟩, the reparametrised gradient E∫g²(∂s)ᵀ∇V dt. Where
      the slopes come from is the method: a critic at the next state or at random times of the path,
      an adjoint (DRaFT, AlignProp, adjoint matching), the reward itself (ReFL), an energy (DxMI).
    * `action`: an explicitly tried action and its advantage rate q_k, as PPO's surrogate of q_k Δ_k
      with the ratio of Gaussians around the estimates; `exploration` is their deviation.
    * `advantage` alone: the increments A_k of a critic, with the ratio of the transitions; the
      sampler's own noise is the exploration, and any reward will do.

    In the first and the third the path KL is differentiated directly; in the second it is in q.
    """

    policy: Policy
    kl_weight: float = 0.01
    clip: float = 0.2
    exploration: float = 0.0
    trust: TrustRegion | None = None

    def __call__(self, steps: Steps) -> Loss:
        estimate = self.policy.estimate(steps.x, steps.t, steps.condition)
        metrics: dict[str, Tensor] = {}
        kl_weight = self.kl_weight
        if steps.data_slope is not None:
            gain = (estimate.data * steps.data_slope).flatten(1).sum(1)
        else:
            advantage = given(steps.advantage, "score as action needs slopes or advantages")
            if steps.action is not None:
                log_ratio, kl_weight = self._action_ratio(estimate, steps, steps.action), 0.0
            else:
                log_ratio = step_ratio(self.policy, estimate, steps)
            gain, metrics = clipped(log_ratio, advantage, self.clip)
        return penalised(
            gain, estimate, steps, kl_weight=kl_weight, trust=self.trust, metrics=metrics
        )

    def _action_ratio(self, estimate: Estimate, steps: Steps, action: Tensor) -> Tensor:
        """log N(action; ε̂_θ, exploration²) − log N(action; ε̂_acting, exploration²), [M]."""
        process = self.policy.backbone.process
        alpha, sigma = process.alpha(steps.t), process.sigma(steps.t)
        acting = (steps.x - expand(alpha, steps.x) * steps.data) / expand(sigma, steps.x)
        nearer = (action - acting) ** 2 - (action - estimate.noise) ** 2
        return nearer.flatten(1).sum(1) / (2 * self.exploration**2)
