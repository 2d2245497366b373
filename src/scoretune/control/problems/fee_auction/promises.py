"""What the deviation search says of a mechanism, in three numbers."""

from __future__ import annotations

from typing import NamedTuple

from scoretune.control.problems.fee_auction.deviation import Deviation, Market
from scoretune.control.problems.fee_auction.mechanisms import Mechanism
from scoretune.control.problems.fee_auction.search import search


class Deviations(NamedTuple):
    """The largest gains of a user, of the miner, and of the miner with users; 0 where nobody gains.

    `witness` has, for each kind (UIC, MIC, 1-SCP, …) that somebody gains by, who does it how.
    """

    uic: float
    mic: float
    scp: float
    witness: dict[str, Deviation]


def deviation_search(mechanism: Mechanism, market: Market | None = None) -> Deviations:
    """Every deviation on the market's grid, as `search`, whose report says more."""
    report = search(mechanism, market)
    scp = max(gain for kind, gain in report.gains.items() if kind.endswith("SCP"))
    return Deviations(report.gains["UIC"], report.gains["MIC"], scp, report.witnesses)
