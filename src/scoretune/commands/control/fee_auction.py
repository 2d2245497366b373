"""A fee mechanism by name or from a user's module, searched for deviations, and what came out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any, cast

from scoretune.commands.control.settings import shared_settings
from scoretune.control.problems import fee_auction
from scoretune.control.problems.fee_auction import Jumps, Market, Mechanism, Report, long_run
from scoretune.core.errors import UserError, unknown
from scoretune.core.resolve import imported, is_function
from scoretune.core.user_code import contained

PROMISES = {
    "UIC": "no user gains by another bid or fakes",
    "MIC": "the miner gains nothing by leaving out bids or by fakes",
}


def market(
    *,
    users: int = 4,
    grid: int = 4,
    fakes: int = 1,
    tick: float = 1.0,
    gamma: float = 1.0,
    c: int = 1,
    coalition: int | None = None,
) -> Market:
    """A market of a miner who only cares for the block; `c` users collude unless `coalition` do."""
    return Market(
        users=users,
        grid=grid,
        fakes=fakes,
        tick=tick,
        gamma=gamma,
        coalition=c if coalition is None else coalition,
    )


def jumps(
    *, worth: float | None = None, share: float | None = None, up: float = 0.0, down: float = 0.0
) -> Jumps:
    """Of the miner's utility in the long run: by `worth` and `share`, or `up` and `down`."""
    if (worth is None) != (share is None):
        raise UserError("worth= and share= belong together: the worth of all stake and π₀")
    if worth is not None and share is not None:
        if up or down:
            raise UserError("worth= and share= give the jumps: leave out up= and down=")
        return long_run(worth=worth, share=share)
    return Jumps(up=up, down=down)


def effort(*, draws: int = 0, rounds: int = 150, seed: int = 0) -> dict[str, int]:
    """0 draws: every deviation there is."""
    if draws < 0 or rounds < 0 or seed < 0:
        raise UserError(f"draws, rounds and seed must be >= 0, got {draws}, {rounds}, {seed}")
    return {"draws": draws, "rounds": rounds, "seed": seed}


def check(name: str, words: Sequence[str]) -> Report:
    """Search the mechanism called `name`, or module:function, for deviations.

    Raises UserError for settings that are wrong and for a user's mechanism that fails.
    """
    constructor = _constructor(name)
    of_mechanism, of_market, of_jumps, of_effort = shared_settings(
        f"mechanism {name!r}", words, constructor, market, jumps, effort
    )
    miner = jumps(**of_jumps)
    problem = replace(market(**of_market), miner=miner)
    drawing = effort(**of_effort)
    try:
        with contained(f"mechanism {name!r}"):
            mechanism = constructor(**of_mechanism)
            if drawing["draws"]:
                return fee_auction.draw(mechanism, problem, **drawing)
            return fee_auction.search(mechanism, problem)
    except UserError:
        raise
    except Exception as error:
        if name in fee_auction.MECHANISMS:
            raise
        raise UserError(
            f"mechanism {name!r} failed with {type(error).__name__}: {error}; its rules see blocks "
            "[..., size] of bids that do not increase"
        ) from error


def safe_range(name: str, words: Sequence[str]) -> str | None:
    """Which θ make BSP(θ) safe from a miner who thinks of the long run, or that none does."""
    if name != "bsp":
        return None
    of_mechanism, of_market, of_jumps, _ = shared_settings(
        f"mechanism {name!r}", words, fee_auction.bsp, market, jumps, effort
    )
    up, tick = jumps(**of_jumps).up, market(**of_market).tick
    if up == 0:
        return None
    names = inspect.signature(fee_auction.bsp).parameters
    k, c, gamma = (of_mechanism.get(n, names[n].default) for n in ("k", "c", "gamma"))
    safe = fee_auction.admissible(k=k, c=c, gamma=gamma, tick=tick, up=up)
    if safe is not None:
        return f"safe theta at a tick of {tick:g}: {safe[0]:.4g} to {safe[1]:.4g}"
    if c / k >= gamma:
        return "no theta is safe: c/k must be below gamma, take a larger k"
    least = fee_auction.least_tick(gamma=gamma, theta=c / k, up=up)
    return f"no theta is safe at a tick of {tick:g}: the tick must be at least {least:.4g}"


def _constructor(name: str) -> Callable[..., Mechanism]:
    if is_function(name):
        return cast(Callable[..., Mechanism], imported("mechanism", name))
    if name not in fee_auction.MECHANISMS:
        raise unknown("mechanism", name, [*fee_auction.MECHANISMS, "module:function"])
    return fee_auction.MECHANISMS[name]


def as_dict(report: Report) -> dict[str, Any]:
    """Plain data."""
    return {
        "mechanism": report.mechanism.name,
        "exhaustive": report.exhaustive,
        "gains": report.gains,
        "deviations": report.deviations,
        "least_burned": report.burned,
        "witnesses": {kind: asdict(witness) for kind, witness in report.witnesses.items()},
    }


def written(report: Report) -> str:
    """The verdict on each promise, and a story for every one that is broken."""
    market = report.market
    extent = "every one of" if report.exhaustive else "at random"
    lines = [
        report.mechanism.name,
        f"{market.users} users, values of 0 to {market.grid} ticks of {market.tick:g}, up to "
        f"{market.fakes} fakes, γ = {market.gamma:g}: {extent} {report.deviations:,} deviations, "
        f"{report.seconds:.1f} s",
        "",
    ]
    for kind, gain in report.gains.items():
        together = f"the miner and {kind.partition('-')[0]} user(s) gain nothing together"
        promise = PROMISES.get(kind, together)
        holds = "holds" if report.exhaustive else "nothing found against it"
        verdict = holds if report.holds(kind) else f"FAILS by {gain:.6g}"
        lines.append(f"{kind:6} {verdict:24} {promise}")
    for kind, witness in report.witnesses.items():
        lines += ["", f"Why {kind} fails:", fee_auction.story(report.mechanism, market, witness)]
    return "\n".join(lines)
