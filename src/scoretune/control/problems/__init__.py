"""Control problems with a known answer, each with `.optimum()`; `staking`, trading under proof of
stake; and `fee_auction`, mechanisms whose incentives are searched."""

from scoretune.control.problems import fee_auction, staking
from scoretune.control.problems.fee_auction import Deviations, deviation_search
from scoretune.control.problems.fee_auction import Mechanism as FeeAuction
from scoretune.control.problems.lq import LQ
from scoretune.control.problems.pair_trading import PairTrading
from scoretune.control.problems.staking import StakeTrading

__all__ = [
    "LQ",
    "Deviations",
    "FeeAuction",
    "PairTrading",
    "StakeTrading",
    "deviation_search",
    "fee_auction",
    "staking",
]
