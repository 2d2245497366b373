"""What objectives share: the path KL, to the pretrained policy and to the one that acted; trust
regions; and the loss of the score as the action."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from scoretune.core.errors import UserError
from scoretune.core.records import Loss, Steps
from scoretune.diffusion.estimates import Estimate
from scoretune.diffusion.processes import expand
from scoretune.policy import Policy
from scoretune.rl import adapted_coefficient, clipped_surrogate

T = TypeVar("T")


def path_kl(estimate: Estimate, steps: Steps) -> Tensor:
    """Each state's share of the path KL to the pretrained policy, [M].

    ½ ((1+η²)/2η)² (α/σ)² ‖x̂_θ − x̂_pre‖² Δℓ with the weights of `diffusion.paths`: a sum over a path
    is Girsanov's ½∫g²‖s_θ − s_pre‖²dt (arXiv 2409.08400) on any grid.
    """
    reference = given(steps.reference_data, "a KL weight needs a rollout with its reference")
    return steps.kl_weight * _squared(estimate.data - reference)


def moved_kl(estimate: Estimate, steps: Steps) -> Tensor:
    """Each state's share of the path KL to the policy that acted, [M]."""
    return steps.kl_weight * _squared(estimate.data - steps.data)


def step_ratio(policy: Policy, estimate: Estimate, steps: Steps) -> Tensor:
    """log N(x_next; θ) − log N(x_next; acting), [M]."""
    needs = "a likelihood ratio needs a stochastic step: leave sampling.solver unset"
    transition = policy.move(steps.x, estimate, steps.t, steps.t_next)
    return transition.log_prob(given(steps.x_next, needs)) - given(steps.log_prob, needs)


def clipped(log_ratio: Tensor, advantage: Tensor, clip: float) -> tuple[Tensor, dict[str, float]]:
    """The clipped surrogate [M] of log-ratios since acting, and how often ratios left the clip."""
    gain = clipped_surrogate(log_ratio, torch.zeros_like(log_ratio), advantage, clip)
    ratio = log_ratio.detach().exp()
    return gain, {"clipped_share": float(((ratio - 1).abs() > clip).float().mean())}


@dataclass
class TrustRegion:
    """A penalty C on the path KL to the policy that acted, with C adapted towards a radius.

    The penalty is the plain KL, since the noise does not depend on the action (arXiv 2502.01819).
    A hook: after each update C grows where the update went too far, shrinks where it was timid.
    """

    radius: float
    coefficient: float = 1.0

    @staticmethod
    def of(radius: float | None) -> TrustRegion | None:
        """The trust region of a radius in nats, none of None."""
        return None if radius is None else TrustRegion(radius)

    def adapt(self, update: int, metrics: Mapping[str, float]) -> None:
        self.coefficient = adapted_coefficient(
            self.coefficient, metrics["update_kl"], self.radius, tolerance=0.5
        )

    def state(self) -> dict[str, Any]:
        return {"coefficient": self.coefficient}

    def restore(self, state: dict[str, Any]) -> None:
        self.coefficient = state["coefficient"]


def penalised(
    gain: Tensor,
    estimate: Estimate,
    steps: Steps,
    *,
    kl_weight: float,
    trust: TrustRegion | None,
    metrics: Mapping[str, float],
) -> Loss:
    """Minus a gain [M] of single steps as that of whole paths, less both path KLs by their weights;
    `metrics` are of the gain."""
    if kl_weight:
        gain = gain - kl_weight * path_kl(estimate, steps)
    moved = moved_kl(estimate, steps)
    if trust is not None:
        gain = gain - trust.coefficient * moved
    update_kl = steps.path_steps * float(moved.detach().mean())
    return Loss(-steps.path_steps * gain.mean(), {**metrics, "update_kl": update_kl})


def given(part: T | None, why: str) -> T:
    """The part of a batch that an objective cannot do without."""
    if part is None:
        raise UserError(why)
    return part


def _squared(x: Tensor) -> Tensor:
    return (x**2).flatten(1).sum(1)


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
        metrics: dict[str, float] = {}
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
