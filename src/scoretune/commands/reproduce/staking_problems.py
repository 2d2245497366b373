"""The trading problems that the parts of `staking` share, by name."""

from __future__ import annotations

from scoretune.control.problems.staking import Price, Staking, Utility, Valuation

NOTHING = Utility(weight=0)
CONCAVE = Utility(weight=10, power=0.5)
CONVEX = Utility(weight=1 / 40, power=2)
CASES: dict[str, Staking] = {
    "P = 0.8": Staking(price=Price(start=0.8)),
    "P = 3": Staking(price=Price(start=3)),
    "P_β = 200": Staking(price=Valuation(level=200)),
    "P = 2.8e^{−0.3t}": Staking(price=Price(start=2.8, growth=-0.3)),
    "P = 0.9e^{0.06t}": Staking(price=Price(start=0.9, growth=0.06)),
    "convex h, P = 1": Staking(price=Price(start=1), running=NOTHING, terminal=CONVEX),
    "concave h, P = 1": Staking(price=Price(start=1), running=NOTHING, terminal=CONCAVE),
    "concave h, P_β = 100": Staking(price=Valuation(level=100), running=NOTHING, terminal=CONCAVE),
    "concave ℓ, P_β = 140": Staking(
        price=Valuation(level=140), running=Utility(weight=0.3, power=0.5)
    ),
    "share meets 0, P = 3": Staking(stake=2, price=Price(start=3)),
}
"""The price is known in advance."""


def volatile(sigma: float) -> Staking:
    """Linear utilities and a GBM price of that volatility."""
    return Staking(price=Price(start=1.6, volatility=sigma))
