"""Who deserves what: from rewards, critics and gradients to what single steps are worth."""

from scoretune.credit.adjoint import AdjointCredit
from scoretune.credit.base import Credit, Credited, Judge
from scoretune.credit.critic import CriticCredit
from scoretune.credit.energy import EnergyCredit
from scoretune.credit.reward import RewardSlope
from scoretune.credit.running import RunningCredit, running_advantage
from scoretune.credit.terminal import TerminalCredit, group_advantage, standardise

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
