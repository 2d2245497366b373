"""Control problems with a known answer, each with `.optimum()`."""

from scoretune.control.problems.lq import LQ
from scoretune.control.problems.pair_trading import PairTrading

__all__ = ["LQ", "PairTrading"]
