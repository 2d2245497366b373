"""Objectives, one file each: a differentiable loss of a policy on a batch, with the settings that
suit it, its wiring and its costs."""

from __future__ import annotations

from scoretune.training.objectives import (
    adjoint,
    consistency,
    direct,
    energy,
    guidance,
    matching,
    policy_gradient,
    preference,
    ranked_preference,
    score_action,
    step_preference,
)
from scoretune.training.objectives.method import FromData, Kind

KINDS: dict[str, Kind] = {
    "adjoint": adjoint,
    "consistency": consistency,
    "direct": direct,
    "energy": energy,
    "guidance": guidance,
    "matching": matching,
    "policy_gradient": policy_gradient,
    "preference": preference,
    "ranked_preference": ranked_preference,
    "score_action": score_action,
    "step_preference": step_preference,
}
"""By `objective.kind` of the configuration."""
FROM_DATA: dict[str, FromData] = {"consistency": consistency, "matching": matching}
"""Those that a network of one's own can be trained by."""
