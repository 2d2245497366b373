"""A problem of trading from the words of the command line, and its answer as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scoretune.commands.control.settings import shared_settings
from scoretune.control.problems.staking import (
    Leg,
    Optimum,
    PowerSupply,
    Price,
    Staking,
    Trading,
    Utility,
    Valuation,
    solve,
    solve_with_price,
)
from scoretune.core.errors import UserError

SIMPLE = {"buy always": 1.0, "sell always": -1.0, "hold": 0.0}


def participant(
    *, stake: float = 20.0, cap: float = 2.0, discount: float = 0.1, horizon: float = 5.0
) -> dict[str, float]:
    """Who trades: stakes, stakes a year, 1/year, years."""
    return {"stake": stake, "cap": cap, "discount": discount, "horizon": horizon}


def chain(*, supply: float = 100.0, exponent: float = 2.0) -> PowerSupply:
    """N(t) = (supply^{1/exponent} + t)^exponent."""
    return PowerSupply(start=supply, exponent=exponent)


def market(
    *,
    price: float | None = None,
    valuation: float | None = None,
    growth: float = 0.0,
    volatility: float = 0.0,
) -> Price | Valuation:
    """A price of exponential growth, or one that makes the valuation grow so."""
    if valuation is None:
        return Price(start=0.8 if price is None else price, growth=growth, volatility=volatility)
    if price is not None or volatility:
        raise UserError("valuation= says the price: leave out price= and volatility=")
    return Valuation(level=valuation, growth=growth)


def wishes(
    *,
    running: float = 0.2,
    running_power: float = 1.0,
    terminal: float = 1.0,
    terminal_power: float = 1.0,
) -> tuple[Utility, Utility]:
    """Utilities weight·x^power of stakes, a year and at the end."""
    return (
        Utility(weight=running, power=running_power),
        Utility(weight=terminal, power=terminal_power),
    )


TAKERS = (participant, chain, market, wishes)


def problem(words: Sequence[str]) -> Staking:
    """Raises UserError for what is wrong with the words."""
    return built(*shared_settings("staking", words, *TAKERS))


def built(
    of_participant: dict[str, Any],
    of_chain: dict[str, Any],
    of_market: dict[str, Any],
    of_wishes: dict[str, Any],
) -> Staking:
    """The problem of what each of TAKERS is given."""
    running, terminal = wishes(**of_wishes)
    return Staking(
        **participant(**of_participant),
        supply=chain(**of_chain),
        price=market(**of_market),
        running=running,
        terminal=terminal,
    )


def as_dict(best: Optimum) -> dict[str, Any]:
    """Plain data."""
    legs = [{"from": leg.start, "rate": leg.rate * best.problem.cap} for leg in best.legs]
    return {
        "value": best.value,
        "strategy": best.strategy,
        "legs": legs,
        "method": best.method,
        "error": best.error,
        "simple": simple(best.problem),
    }


def simple(problem: Trading) -> dict[str, float | None]:
    """What buying, selling and holding throughout are worth; None where it is infeasible."""
    values: dict[str, float | None] = {}
    for name, rate in SIMPLE.items():
        try:
            values[name] = problem.value([Leg(0.0, rate)])
        except UserError:
            values[name] = None
    return values


def written(best: Optimum) -> str:
    """Value, strategy, how it was found, and what simple strategies are worth."""
    lines = [
        f"value       {best.value:.6g}" + (f" ± {best.error:.1g}" if best.error else ""),
        f"strategy    {best.strategy}",
        f"method      {best.method}",
    ]
    for name, value in simple(best.problem).items():
        lines.append(f"{name:11} {'infeasible' if value is None else f'{value:.6g}'}")
    if best.problem.price.volatility == 0:
        surface = solve(best.problem, steps=200)
        value, steps, residual = surface.value, 200, surface.residual()
    else:
        watched = solve_with_price(best.problem, steps=60)
        value, steps, residual = watched.value, 60, watched.residual
    lines.append(f"Bellman     {value:.6g} on a lattice of {steps} steps, residual {residual:.1g}")
    return "\n".join(lines)
