"""What objectives share: the path KL, to the pretrained policy and to the one that acted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from scoretune.core.errors import UserError
from scoretune.core.records import Steps
from scoretune.diffusion.estimates import Estimate
from scoretune.rl import adapted_coefficient

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


def ratio_metrics(log_ratio: Tensor, clip: float) -> dict[str, float]:
    """How often likelihood ratios left the trust of the clip."""
    ratio = log_ratio.detach().exp()
    return {"clipped_share": float(((ratio - 1).abs() > clip).float().mean())}


@dataclass
class TrustRegion:
    """A penalty C on the path KL to the policy that acted, with C adapted towards a radius.

    The penalty is the plain KL, since the noise does not depend on the action (arXiv 2502.01819).
    A hook: after each update C grows where the update went too far, shrinks where it was timid.
    """

    radius: float
    coefficient: float = 1.0

    def adapt(self, update: int, metrics: Mapping[str, float]) -> None:
        self.coefficient = adapted_coefficient(
            self.coefficient, metrics["update_kl"], self.radius, tolerance=0.5
        )

    def state(self) -> dict[str, Any]:
        return {"coefficient": self.coefficient}

    def restore(self, state: dict[str, Any]) -> None:
        self.coefficient = state["coefficient"]


def given(part: T | None, why: str) -> T:
    """The part of a batch that an objective cannot do without."""
    if part is None:
        raise UserError(why)
    return part


def _squared(x: Tensor) -> Tensor:
    return (x**2).flatten(1).sum(1)
