"""What a policy step maximises, and how far it may go."""

import torch
from torch import Tensor

from scoretune.shapes import check_same_shape


def clipped_surrogate(
    log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, clip: float
) -> Tensor:
    """PPO's per-sample surrogate, to be **maximised**: min(r·A, clip(r, 1−ε, 1+ε)·A).

    r = exp(log_prob − old_log_prob) is the ratio of one step, not of a trajectory
    (arXiv 1707.06347 eq. 7). All tensors share one shape; log-probabilities are sums over
    dimensions, so a clip tuned for means over D dimensions is D times too tight here.
    At r = 1 the gradient is that of REINFORCE, A·∇log_prob. `old_log_prob` and `advantage` are
    treated as constants.
    """
    if not clip > 0:
        raise ValueError(f"clip must be > 0, got {clip}")
    check_same_shape(log_prob=log_prob, old_log_prob=old_log_prob, advantage=advantage)
    ratio = torch.exp(log_prob - old_log_prob.detach())
    advantage = advantage.detach()
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def kl_penalty(kl: Tensor, coefficient: float) -> Tensor:
    """C·KL per sample, to be subtracted from a surrogate.

    The natural penalty when the noise does not depend on the action (score fine-tuning): the gap
    of the surrogate is then of the order of the KL itself (arXiv 2502.01819).
    """
    return coefficient * kl


def sqrt_kl_penalty(kl: Tensor, coefficient: float, floor: float = 1e-12) -> Tensor:
    """C·√(KL + floor) per sample: CPPO's penalty (arXiv 2305.18901).

    `floor` keeps the gradient finite at KL = 0, where the root has none.
    """
    return coefficient * torch.sqrt(kl + floor)


def adapted_coefficient(
    coefficient: float, distance: float, radius: float, tolerance: float = 0.5, factor: float = 2.0
) -> float:
    """CPPO's rule for the penalty weight (arXiv 2305.18901).

    C·factor when distance > (1+tolerance)·radius, C/factor when distance < radius/(1+tolerance).
    """
    if distance > (1 + tolerance) * radius:
        return coefficient * factor
    if distance < radius / (1 + tolerance):
        return coefficient / factor
    return coefficient


def controlled_coefficient(
    coefficient: float,
    distance: float,
    radius: float,
    *,
    most: float = 2.0,
    bounds: tuple[float, float] = (1e-4, 1e4),
) -> float:
    """A penalty weight that steers a measured distance to a radius: C·distance/radius, bounded.

    CPPO's rule above leaves a band, radius/1.5 to 1.5·radius, in which it does nothing; this one is
    its smooth form. An update changes C by at most `most` either way. The `bounds` keep C from
    winding up: after any number of timid updates a single long one finds C no smaller than the
    lower of them.
    """
    factor = min(max(distance / radius, 1 / most), most)
    return min(max(coefficient * factor, bounds[0]), bounds[1])
