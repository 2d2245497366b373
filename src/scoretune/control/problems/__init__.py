"""Control problems with a known answer, each with `.optimum()`; `staking`, trading under proof of
stake; and `fee_auction`, mechanisms whose incentives are searched."""

from scoretune.control.problems import fee_auction, staking
from scoretune.control.problems.lq import LQ
from scoretune.control.problems.pair_trading import PairTrading

__all__ = ["LQ", "PairTrading", "fee_auction", "staking"]
