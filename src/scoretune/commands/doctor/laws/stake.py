"""Laws of proof of stake: trading, fee auctions and the urn that both come from."""

from __future__ import annotations

import math

import numpy as np
import torch

from scoretune.commands.doctor.laws.base import Law, measurement
from scoretune.control.problems.fee_auction import (
    Jumps,
    Market,
    Mechanism,
    Urn,
    bsp,
    search,
    second_price,
)
from scoretune.control.problems.staking import (
    Leg,
    Price,
    RiskControl,
    StakeParity,
    Staking,
    Utility,
    Valuation,
    capped_cost,
    simulate,
    solve,
)

NOTHING = Utility(weight=0)
CONVEX = Utility(weight=1 / 40, power=2)
FAIR = Staking(price=Valuation(level=200))
CONCAVE = Staking(
    price=Valuation(level=100), running=NOTHING, terminal=Utility(weight=10, power=0.5)
)
TIGHT = Staking(stake=2, price=Price(start=3))
VOLATILE = Staking(price=Price(start=1.6, volatility=0.4))
FALLING = Staking(price=Price(start=2.8, growth=-0.3))

# ---------------------------------------------------------------------------- trading


@measurement
def optimal_value(_device: torch.device, problem: Staking) -> float:
    """The value of the optimum."""
    return problem.optimum().value


@measurement
def play_minus_optimum(_device: torch.device, problem: Staking) -> float:
    """What the best strategy earns by quadrature, less its value."""
    optimum = problem.optimum()
    return problem.value(optimum.legs) - optimum.value


@measurement
def lattice_error(_device: torch.device, problem: Staking) -> float:
    """The Bellman equation's value on 60 steps, less the closed form."""
    return solve(problem, steps=60).value - problem.optimum().value


def first_switch(_device: torch.device) -> float:
    """When buying ends where the valuation is a martingale."""
    return FAIR.optimum().switches[0]


def convex_tie(_device: torch.device) -> float:
    """Buying less selling throughout, where the martingale is 2cy₀ and the utility convex."""
    level = 2 * 0.2 * math.exp(-0.5) * 225**2 / 40
    problem = Staking(price=Valuation(level=level), running=NOTHING, terminal=CONVEX)
    return problem.value([Leg(0, 1)]) - problem.value([Leg(0, -1)])


def drawn_prices(_device: torch.device) -> float:
    """The mean over drawn prices less the formula, in standard errors."""
    values = simulate(VOLATILE, paths=4000, steps=60, seed=0)
    return float((values.mean() - VOLATILE.optimum().value) / values.std() * math.sqrt(len(values)))


def bellman_of_risk_control(_device: torch.device) -> float:
    """Largest residual of the equation on a grid of stakes and prices."""
    problem, points = RiskControl(), np.linspace(-4, 4, 9)
    return max(abs(problem.residual(float(x), float(p))) for x in points for p in points)


def blurred_parity(_device: torch.device) -> float:
    """The cost of the best gain by the formula of any gain, less the optimum's."""
    parity = StakeParity()
    return parity.blurred_cost(parity.gain, 0.0) - parity.cost(1.0)


def cost_at_full_capacity(_device: torch.device) -> float:
    """The cost of going to parity at full capacity."""
    return capped_cost(distance=2, cap=1, growth=0.05, discount=0.2)


# ---------------------------------------------------------------------------- fee auctions


@measurement
def gain(
    _device: torch.device,
    mechanism: Mechanism,
    kind: str = "",
    tick: float = 1.0,
    up: float = 0.0,
    coalition: int = 1,
) -> float:
    """The largest gain of a kind of deviation, or of all, on a grid of 3 ticks."""
    market = Market(grid=3, tick=tick, miner=Jumps(up=up, down=up), coalition=coalition)
    gains = search(mechanism, market).gains
    return gains[kind] if kind else max(gains.values())


@measurement
def share(_device: torch.device, gain: float, blocks: int) -> float:
    """The miner's expected share of 3 stakes in 10 after some blocks."""
    return Urn(gain=gain).mean_share(blocks)


def far_share(_device: torch.device) -> float:
    """Of Yule processes in the place of the urn, less the exact one, relative."""
    urn = Urn(gain=0.2)
    return urn.far_share(1000, points=100) / urn.mean_share(1000) - 1


def martingale(_device: torch.device) -> float:
    """Largest move of E[ψ(W/a_W)/a_W − ψ(B/a_B)/a_B] in 40 blocks."""
    urn = Urn(gain=0.2)
    first = float(urn.martingale(np.zeros(1), 0)[0])
    means = (float(urn.law(n) @ urn.martingale(np.arange(n + 1.0), n)) for n in range(1, 41, 13))
    return max(abs(mean - first) for mean in means)


_TRADING = "closed form, derived; after arXiv 2207.12581"
_FEES = "Chung and Shi, 2023; every deviation of a grid"
_LONG = "derived; after arXiv 2308.13881"
_HALF = bsp(theta=0.5)

LAWS = (
    Law("trading: value at a fair price", 53.446499, optimal_value(FAIR), 1e-5, _TRADING),
    Law("trading: end of buying at a fair price", 2.55316, first_switch, 1e-4, _TRADING),
    Law("trading: strategy played − value", 0, play_minus_optimum(FAIR), 1e-8, "quadrature"),
    Law("trading: lattice − closed form", 0, lattice_error(FALLING), 1e-3, "Bellman's equation"),
    Law("trading: concave utility, fair price", 40.693219, optimal_value(CONCAVE), 1e-5, _TRADING),
    Law("trading: buy − sell at the convex tie", 0, convex_tie, 1e-9, _TRADING),
    Law("trading: share that meets 0", 11.421836, optimal_value(TIGHT), 1e-5, _TRADING),
    Law("trading: lattice that meets 0", 0, lattice_error(TIGHT), 1e-2, "Bellman's equation"),
    Law("trading: volatile price", 58.00234, optimal_value(VOLATILE), 1e-4, _TRADING),
    Law("trading: drawn prices, errors from 0", 0, drawn_prices, 4, "Monte Carlo"),
    Law("risk control: residual", 0, bellman_of_risk_control, 1e-12, "Bellman's equation"),
    Law("parity: best of all gains", 0, blurred_parity, 1e-12, "closed form"),
    Law("parity: cost at full capacity", 2.6, cost_at_full_capacity, 1e-5, "closed form"),
    Law("BSP(1): largest gain", 0, gain(bsp()), 0, _FEES),
    Law("BSP(1), two users for one", 3, gain(bsp(), coalition=2), 1e-9, _FEES),
    Law("second price: the miner's gain", 3, gain(second_price(), "MIC"), 1e-9, _FEES),
    Law("BSP(1), jump of 0.3, tick 10", 0.3, gain(bsp(), "1-SCP", 10, 0.3), 1e-9, _LONG),
    Law("BSP(½), jump of 0.3, tick 0.599", 0.0005, gain(_HALF, "", 0.599, 0.3), 1e-9, _LONG),
    Law("BSP(½), jump of 0.3, tick 0.6", 0, gain(_HALF, "", 0.6, 0.3), 0, _LONG),
    Law("urn: share of the truthful", 0.3, share(0.0, 200), 1e-12, "martingale"),
    Law("urn: share with a gain, 100 blocks", 0.390417, share(0.2, 100), 1e-6, _LONG),
    Law("urn: Yule processes − exact", 0, far_share, 2e-3, _LONG),
    Law("urn: mean of the digamma martingale", 0, martingale, 1e-12, "ψ(z+1) − ψ(z) = 1/z"),
)
