"""`scoretune control`: problems with known answers, as commands."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from scoretune.commands.options import Changes, Json, set_threads

MECHANISM = "bsp, second_price, first_price, eip1559, or module:function of your own."


def check(
    mechanism: Annotated[str, typer.Argument(help=MECHANISM)],
    changes: Changes = None,
    json_: Json = False,
) -> None:
    """Look for anybody who gains by not being truthful: MECHANISM k=2 c=1 gamma=1 tick=1 …

    Settings of the market: users, grid, fakes, tick, gamma, coalition, worth and share (or up,
    down), draws (0: every deviation). Exits with 1 where somebody gains.
    """
    from scoretune.commands.control import fee_auction

    report = fee_auction.check(mechanism, changes or [])
    if json_:
        typer.echo(json.dumps(fee_auction.as_dict(report)))
    else:
        typer.echo(fee_auction.written(report))
        if (safe := fee_auction.safe_range(mechanism, changes or [])) is not None:
            typer.echo(f"\n{safe}")
    raise typer.Exit(int(bool(report.witnesses)))


def staking(
    changes: Changes = None,
    json_: Json = False,
) -> None:
    """The best trading of somebody who stakes: stake=20 supply=100 price=0.8 growth=0 cap=2 …

    Also exponent, volatility or valuation, discount, horizon, running and terminal (weights of
    stakes in cash), running_power and terminal_power. Time in years.
    """
    from scoretune.commands.control import staking as trading

    best = trading.problem(changes or []).optimum()
    typer.echo(json.dumps(trading.as_dict(best)) if json_ else trading.written(best))


def train(
    problem: Annotated[
        str, typer.Argument(help="staking, parity, risk_control, lq or pair_trading.")
    ],
    changes: Changes = None,
    json_: Json = False,
) -> None:
    """Learn a problem from samples, and compare with its optimum: staking valuation=200 …

    Settings of the problem (of `staking` as in `scoretune control staking`, and policy: bang_bang,
    squashed_gaussian or beta, and temperature), and of learning: method (cpg or cppo), seed, dt,
    iterations, trajectories, rate.
    """
    from scoretune.commands.control import training
    from scoretune.commands.display import counting

    set_threads(1)
    job = training.training(problem, changes or [])
    with counting("iteration") as note:
        learned = job.run(lambda k, _: note(k + 1, job.effort.iterations))
    if json_:
        typer.echo(json.dumps(training.as_dict(job, learned)))
    else:
        typer.echo(training.written(job, learned))
