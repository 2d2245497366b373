"""Who deserves what: from rewards, critics and gradients to what single steps are worth."""

from scoretune.training.credit.adjoint import AdjointCredit
from scoretune.training.credit.base import Credit, Credited, Judge
from scoretune.training.credit.critic import CriticCredit
from scoretune.training.credit.energy import EnergyCredit
from scoretune.training.credit.outcome import TerminalCredit, group_advantage, standardise
from scoretune.training.credit.reward_gradient import RewardSlope
from scoretune.training.credit.running import RunningCredit, running_advantage

__all__ = [
    "AdjointCredit",
    "Credit",
    "Credited",
    "CriticCredit",
    "EnergyCredit",
    "Judge",
    "RewardSlope",
    "RunningCredit",
    "TerminalCredit",
    "group_advantage",
    "running_advantage",
    "standardise",
]
