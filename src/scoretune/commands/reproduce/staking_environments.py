"""What is learned in the part `learning` of `staking`: environments with known optima, by name."""

from __future__ import annotations

from collections.abc import Callable

from scoretune.commands.control.training import EFFORTS, Effort, Stake, best_value
from scoretune.commands.reproduce.staking_problems import CASES, volatile
from scoretune.control.problems import StakeTrading
from scoretune.control.problems.staking import Leg, RiskControl, StakeParity, Staking

TRADING: dict[str, Staking] = {
    "A1": CASES["P = 0.8"],
    "A3": CASES["P_β = 200"],
    "A4": CASES["P = 2.8e^{−0.3t}"],
    "A5": CASES["P = 0.9e^{0.06t}"],
    "A-GBM": volatile(0.4),
}
ABOUT = {
    "A1": "P = 0.8: always buy",
    "A3": "P_β = 200: buy, then sell",
    "A4": "P = 2.8e^{−0.3t}: sell, then buy",
    "A5": "P = 0.9e^{0.06t}: buy, then sell",
    "A-GBM": "a GBM price, watched",
    "B": "stake parity",
    "C1": "risk control",
}


def environment_of(name: str, *, dt: float, temperature: float = 0.0) -> Stake:
    """A (trading), B (stake parity) or C (risk control)."""
    if name == "B":
        return StakeParity()
    if name == "C1":
        return RiskControl()
    return StakeTrading(trading=TRADING[name], step=dt, temperature=temperature)


def effort_of(name: str) -> Effort:
    """How hard the environment is learned."""
    kinds: dict[str, type[Stake]] = {"B": StakeParity, "C1": RiskControl}
    return EFFORTS[kinds.get(name, StakeTrading)]


def optimal_value(name: str) -> float:
    """In continuous time."""
    return best_value(environment_of(name, dt=0.1))


def scoring(environment: Stake) -> Callable[[float], float]:
    """The score of a value: 0 for about what the first policy earns, 1 for the optimum."""
    best = best_value(environment)
    if isinstance(environment, StakeTrading):
        low = environment.trading.value([Leg(0.0, 0.0)])
    elif isinstance(environment, StakeParity):
        low = environment.objective([-0.2], 0.0)
    else:
        low = environment.objective([0.0, 0.0], 0.0)
    return lambda value: (value - low) / (best - low)
