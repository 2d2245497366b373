"""Optimal trading of a participant who stakes: closed forms, the Bellman equation, risk control.

>>> Staking(price=Valuation(level=200.0)).optimum().strategy
'buy, then sell from 2.553'

After arXiv 2207.12581, of which only the abstract could be read: see `problem`.
"""

from scoretune.control.problems.staking.bellman import Surface, solve
from scoretune.control.problems.staking.bellman_price import PriceSurface, solve_with_price
from scoretune.control.problems.staking.environment import StakeTrading, played
from scoretune.control.problems.staking.optimum import (
    Optimum,
    Staking,
    optimum,
    sub_martingale,
    worth,
)
from scoretune.control.problems.staking.parity import (
    RiskControl,
    StakeParity,
    capped_cost,
    time_to_parity,
)
from scoretune.control.problems.staking.problem import (
    GrowingSupply,
    Leg,
    PowerSupply,
    Price,
    Trading,
    Utility,
    Valuation,
)
from scoretune.control.problems.staking.simulate import Walk, simulate, walk

__all__ = [
    "GrowingSupply",
    "Leg",
    "Optimum",
    "PowerSupply",
    "Price",
    "PriceSurface",
    "RiskControl",
    "StakeParity",
    "StakeTrading",
    "Staking",
    "Surface",
    "Trading",
    "Utility",
    "Valuation",
    "Walk",
    "capped_cost",
    "optimum",
    "played",
    "simulate",
    "solve",
    "solve_with_price",
    "sub_martingale",
    "time_to_parity",
    "walk",
    "worth",
]
