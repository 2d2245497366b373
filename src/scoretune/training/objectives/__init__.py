"""Objectives, one file each: a differentiable loss of a policy on a batch, with the settings that
suit it, its wiring and its costs."""

from __future__ import annotations

from scoretune.training.objectives import (
    adjoint,
    consistency,
    direct,
    energy,
    matching,
    policy_gradient,
    score_action,
)
from scoretune.training.objectives.method import FromData, Kind

KINDS: dict[str, Kind] = {
    "adjoint": adjoint.KIND,
    "consistency": consistency.KIND,
    "direct": direct.KIND,
    "energy": energy.KIND,
    "matching": matching.KIND,
    "policy_gradient": policy_gradient.KIND,
    "score_action": score_action.KIND,
}
"""By `objective.kind` of the configuration."""
FROM_DATA: dict[str, FromData] = {
    "consistency": consistency.KIND,
    "matching": matching.KIND,
}
"""Those that a network of one's own can be trained by."""
