"""Who deserves what: from rewards, critics and gradients to what single steps are worth."""

from scoretune.training.credit.adjoint import AdjointCredit
from scoretune.training.credit.base import Credit, Credited, RewardFn
from scoretune.training.credit.critic import CriticCredit, rule_named
from scoretune.training.credit.energy import EnergyCredit
from scoretune.training.credit.outcome import (
    GroupCredit,
    RunningCredit,
    group_advantage,
    running_advantage,
    standardise,
)
from scoretune.training.credit.reward_gradient import RewardSlope

__all__ = [
    "AdjointCredit",
    "Credit",
    "Credited",
    "CriticCredit",
    "EnergyCredit",
    "RewardFn",
    "RewardSlope",
    "RunningCredit",
    "GroupCredit",
    "group_advantage",
    "rule_named",
    "running_advantage",
    "standardise",
]
