"""What objectives share: the path KL and the surrogate of likelihood ratios."""

from __future__ import annotations

from torch import Tensor

from scoretune.batches import Steps
from scoretune.diffusion.kernels import Transition
from scoretune.errors import UserError


def path_kl(transition: Transition, steps: Steps) -> Tensor:
    """KL of each step's law to the pretrained policy's, [M].

    Both laws have the same std, so it is ‖μ − μ_pre‖²/(2 std²). Summed over a path it tends to
    Girsanov's ½∫g²‖s_θ − s_pre‖²dt (arXiv 2409.08400), whatever the grid.
    """
    if steps.reference_mean is None:
        raise UserError(
            "a KL weight needs a rollout with its reference: rollout(..., reference=True)"
        )
    return transition.kl(Transition(steps.reference_mean, transition.std))


def ratio_metrics(log_ratio: Tensor, clip: float) -> dict[str, float]:
    """How far the policy has moved from the one that acted."""
    ratio = log_ratio.detach().exp()
    return {
        "clipped_share": float(((ratio - 1).abs() > clip).float().mean()),
        "update_kl": float((ratio - 1 - log_ratio.detach()).mean()),
    }
