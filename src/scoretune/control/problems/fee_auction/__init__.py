"""Transaction-fee mechanisms of a chain, and whether anybody gains by not being truthful.

>>> report = search(bsp(k=2, extra=2, c=1, gamma=1.0), Market(users=4, grid=4, fakes=1))
>>> report.gains
{'UIC': 0.0, 'MIC': 0.0, '1-SCP': 0.0}

After Chung and Shi (2023) and arXiv 2308.13881. Of the latter only the abstract could be read: the
long-run utility and BSP(θ) are our reconstruction, and each is a function that can be exchanged.
"""

from scoretune.control.problems.fee_auction.deviation import Deviation, Market, gain_of, story
from scoretune.control.problems.fee_auction.mechanisms import (
    MECHANISMS,
    Mechanism,
    bsp,
    eip1559,
    first_price,
    second_price,
)
from scoretune.control.problems.fee_auction.miner import (
    Jumps,
    admissible,
    coalition_gain,
    largest_theta,
    least_tick,
    long_run,
    one_shot,
)
from scoretune.control.problems.fee_auction.outcome import expected, utility
from scoretune.control.problems.fee_auction.random_search import draw
from scoretune.control.problems.fee_auction.search import (
    Deviations,
    Report,
    deviation_search,
    search,
)
from scoretune.control.problems.fee_auction.urn import Urn

__all__ = [
    "MECHANISMS",
    "Deviation",
    "Deviations",
    "Jumps",
    "Market",
    "Mechanism",
    "Report",
    "Urn",
    "admissible",
    "bsp",
    "coalition_gain",
    "deviation_search",
    "draw",
    "eip1559",
    "expected",
    "first_price",
    "gain_of",
    "largest_theta",
    "least_tick",
    "long_run",
    "one_shot",
    "search",
    "second_price",
    "story",
    "utility",
]
