"""Chains that were: stakes and prices from a folder, and what the best trading would have done."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from scoretune.commands.reproduce.base import Numbers, Page
from scoretune.commands.reproduce.drawing import COLOURS, subplots
from scoretune.control.problems.staking import (
    GrowingSupply,
    Leg,
    Price,
    Staking,
    Utility,
    Walk,
    walk,
)
from scoretune.control.problems.staking.problem import Array
from scoretune.core.errors import UserError

STAKES, PRICES = "avalanche_validator_stake_weekly.npz", "price.csv"
REWARDS = "eth_beacon_decentralization_daily.csv"
REQUIRED = (0.02, 0.04, 0.1)
STRATEGIES = ("rule", "buy", "sell", "hold")
SPEED = 0.3
"""What may be traded a year, in first stakes: three years do not take a share to 0."""


def check_folder(data: str) -> Path:
    """Raises UserError unless the folder has the stakes; prices are optional."""
    folder = Path(data)
    if not (folder / STAKES).is_file():
        raise UserError(f"--data {data} has no {STAKES}: leave it out, or name its folder")
    return folder


def history(folder: str) -> Numbers:
    """How the stakes grew, the best trading at a price that stays, and along the prices if there
    are any."""
    stakes_file, rewards_file, prices_file = (Path(folder) / n for n in (STAKES, REWARDS, PRICES))
    with np.load(stakes_file) as weekly:
        offsets, dates = weekly["offsets"], [str(d) for d in weekly["dates"]]
        stakes = weekly["own_stake_avax"] + weekly["delegated_avax"]
    totals = np.array([stakes[a:b].sum() for a, b in pairwise(offsets)], float)
    rate = _growth(years_of(dates), totals)
    last = stakes[offsets[-2] : offsets[-1]]
    shares = np.sort(last)[::-1] / last.sum()
    numbers: Numbers = {
        "weeks": len(totals),
        "span": [dates[0], dates[-1]],
        "rate": rate,
        "largest": float(shares[0]),
        "median": float(np.median(shares)),
        "effective": float(1 / (shares**2).sum()),
        "rows": _at_constant_price(rate, float(totals[-1]), float(np.median(last))),
    }
    if rewards_file.is_file():
        numbers["rewarded"] = _reward_concentration(rewards_file)
    if prices_file.is_file():
        first = stakes[offsets[0] : offsets[1]]
        stake = float(np.median(first))
        numbers["walk"] = _along_prices(read_prices(prices_file), dates, totals, stake)
    return numbers


def years_of(dates: Sequence[str]) -> Array:
    """Years since the first of the dates; weeks may be missing."""
    days = [date.fromisoformat(day).toordinal() for day in dates]
    return (np.array(days, float) - days[0]) / 365.25


def _growth(years: Array, totals: Array) -> float:
    """A year, of the line through the logarithms of the totals."""
    return float(np.polyfit(years, np.log(totals), 1)[0])


def _reward_concentration(file: Path) -> Numbers:
    """1/HHI of a day's rewards on Ethereum's beacon chain: how many equal stakers would be as
    concentrated, on the first and on the last day."""
    with file.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    ends = {row["date"]: 1 / float(row["HHI_total"]) for row in (rows[0], rows[-1])}
    return {"days": len(rows), "effective": ends}


def _at_constant_price(rate: float, total: float, stake: float) -> list[list[Any]]:
    """The best trading from the last week on, at a price that stays, by required return."""
    rows: list[list[Any]] = []
    for required in REQUIRED:
        problem = Staking(
            stake=stake,
            supply=GrowingSupply(start=total, rate=max(rate, 0.0)),
            price=Price(start=1.0),
            cap=stake / 10,
            discount=required,
            running=Utility(weight=0.05),
        )
        best, hold = problem.optimum(), problem.value([Leg(0.0, 0.0)])
        rows.append([required, best.strategy, best.value / stake, hold / stake])
    return rows


def read_prices(file: Path) -> dict[str, float]:
    """Prices by day, of a CSV file with a column `date` and a column `close` (or `price`).

    Days without a number are left out. Raises UserError for other columns and for prices that are
    not positive.
    """
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        names = {name.strip().lower(): name for name in reader.fieldnames or []}
        value = names.get("close", names.get("price"))
        if "date" not in names or value is None:
            raise UserError(f"{file} needs a column `date` and a column `close` (or `price`)")
        prices: dict[str, float] = {}
        for row in reader:
            try:
                prices[str(date.fromisoformat(row[names["date"]]))] = float(row[value])
            except (TypeError, ValueError):
                continue
    if any(not 0 < price < math.inf for price in prices.values()):
        raise UserError(f"{file}: prices must be finite and > 0")
    return prices


def _along_prices(
    by_day: dict[str, float], dates: list[str], totals: Array, stake: float
) -> Numbers:
    """Fit a GBM to the weekly prices, and trade along them by the rule of linear utilities.

    A stake is worth in the end what it costs at first: who trades so has no view of the price.
    """
    weeks = [n for n, day in enumerate(dates) if day in by_day]
    if len(weeks) < 52 or weeks != list(range(weeks[0], weeks[-1] + 1)):
        raise UserError(
            f"{PRICES} has prices of {len(weeks)} of the {len(dates)} weeks of {STAKES}: it needs "
            "a year of them without a gap"
        )
    prices: Array = np.array([by_day[dates[n]] for n in weeks], float)
    times = years_of([dates[n] for n in weeks])
    growth, sigma = _fitted_gbm(times, prices)
    start, horizon = float(prices[0]), float(times[-1])
    supply = GrowingSupply(
        start=float(totals[weeks[0]]), rate=max(_growth(times, totals[weeks]), 0.0)
    )
    problems = [
        Staking(
            stake=stake,
            supply=supply,
            price=Price(start=start, growth=growth, volatility=sigma),
            cap=SPEED * stake,
            discount=required,
            horizon=horizon,
            running=Utility(weight=0.05 * start),
            terminal=Utility(weight=start),
        )
        for required in REQUIRED
    ]
    rules = [walk(problem, times, prices) for problem in problems]
    shares = rules[-1].shares / problems[-1].share
    return {
        "span": [dates[weeks[0]], dates[weeks[-1]]],
        "prices": [start, float(prices[-1])],
        "growth": growth,
        "growth_error": sigma / math.sqrt(horizon),
        "volatility": sigma,
        "supply_rate": supply.rate,
        "rows": [
            _row(problem, rule, times, prices)
            for problem, rule in zip(problems, rules, strict=True)
        ],
        "series": [[round(float(x), 4) for x in series] for series in (times, prices, shares)],
    }


def _fitted_gbm(times: Array, prices: Array) -> tuple[float, float]:
    """Growth of the mean and volatility, a year, by maximum likelihood on uneven steps."""
    moves, widths = np.diff(np.log(prices)), np.diff(times)
    drift = float(moves.sum() / times[-1])
    sigma = math.sqrt(float(((moves - drift * widths) ** 2 / widths).sum() / (len(moves) - 1)))
    return drift + sigma**2 / 2, sigma


def _row(problem: Staking, rule: Walk, times: Array, prices: Array) -> list[float]:
    """Weeks of buying, and values by one's own measure and at the market, of the rule and of three
    strategies that do not look; all in units of the first stake's price."""
    unit, steps = problem.stake * float(prices[0]), np.ones(len(prices) - 1)
    walks = [rule, *(walk(problem, times, prices, rate * steps) for rate in (1.0, -1.0, 0.0))]
    own = [each.value(problem) / unit for each in walks]
    market = [each.value(problem, float(prices[-1])) / unit for each in walks]
    expected = problem.optimum().value / unit
    return [problem.discount, float((rule.rates > 0).mean()), expected, *own, *market]


# ------------------------------------------------------------------ the page


def present_history(data: Numbers, page: Page) -> None:
    """Stakes, supposed prices, and prices that were."""
    page.text(
        f"## Avalanche's validators\n\n{data['weeks']} weeks, {data['span'][0]} to "
        f"{data['span'][1]}: the stakes grew by {100 * data['rate']:.2f} % a year (the model's do "
        "not shrink, so a rate below 0 counts as 0); the largest validator holds "
        f"{100 * data['largest']:.2f} % of them, the median one {100 * data['median']:.4f} %; they "
        f"are as concentrated as {data['effective']:.0f} equal ones. The strategy of the median "
        "one from the last week on, at a price that stays, with 5 % of its price a year from a "
        "stake and a tenth of it traded a year at most."
    )
    page.table(
        ["required return", "strategy", "value a stake", "hold"],
        [[f"{r:.0%}", strategy, f"{v:.5f}", f"{h:.5f}"] for r, strategy, v, h in data["rows"]],
    )
    if "rewarded" in data:
        days = [f"{n:,.0f} ({day})" for day, n in data["rewarded"]["effective"].items()]
        page.text(
            "Rewards of Ethereum's beacon chain were as concentrated as those of "
            f"{', then '.join(days)} equal stakers: nobody there moves the supply, as the model "
            "supposes."
        )
    if "walk" in data:
        _present_walk(data["walk"], page)
    else:
        page.text(f"With a `{PRICES}` (date, close) in the folder the page has prices that were.")


def _present_walk(fitted: Numbers, page: Page) -> None:
    start, end = fitted["prices"]
    page.text(
        f"## Along a price that was\n\n{fitted['span'][0]} to {fitted['span'][1]}, the "
        f"{len(fitted['series'][0])} weeks of which there are stakes (some are missing): the price "
        f"went from {start:.2f} to {end:.2f}. As a GBM it grows by {fitted['growth']:.2f} ± "
        f"{fitted['growth_error']:.2f} a year at a volatility of {fitted['volatility']:.2f}; the "
        f"supply of stakes grew by {100 * fitted['supply_rate']:.2f} % a year. The rule of linear "
        "utilities, ν = cap·sign(A − P_β), needs neither growth nor volatility: it buys while a "
        "stake is worth more to its holder than it costs. Here one is worth in the end what it "
        f"cost at first, and 5 % of that a year; {SPEED:.0%} of the first stakes are traded a "
        "year. Values are in first prices of the first stakes: by that measure, and with the final "
        "stakes sold at the market."
    )
    page.table(
        [
            "required return",
            "weeks of buying",
            "expected by the GBM",
            *(f"{name}, {by}" for by in ("own measure", "market") for name in STRATEGIES),
        ],
        [
            [f"{row[0]:.0%}", f"{row[1]:.0%}", *(f"{value:.3f}" for value in row[2:])]
            for row in fitted["rows"]
        ],
    )
    page.figure("history", _draw(fitted), "the price, and the share under the rule")
    page.text(
        "Caveats. The rule is best on average over prices that the model draws, for who values "
        "stakes so; along one path another can do better, and by the market's measure buying "
        "throughout is right or wrong by where the price ends. Growth, volatility and the supply's "
        "growth were fitted to the very weeks that are traded (of these the rule uses the supply's "
        "alone). Nobody knows the drift of a price from three years of it: see its error, which "
        "`expected by the GBM` inherits. Neither file says what a stake earns: 5 % are supposed. "
        "Stakes were counted as staked, not as earned; lock-ups, "
        "fees, taxes and the price's answer to one's own trades are left out. This illustrates a "
        "formula, and is no advice."
    )


def _draw(fitted: Numbers) -> Any:
    figure, axes = subplots(size=(6.6, 3.6))
    years, prices, shares = fitted["series"]
    axes.plot(years, np.array(prices) / prices[0], color=COLOURS[0], label="price")
    axes.plot(years, shares, color=COLOURS[1], label="share, required return 10 %")
    axes.set(xlabel="years", ylabel="in units of the first", yscale="log")
    axes.set_yticks([0.5, 1, 2, 5], ["0.5", "1", "2", "5"])
    axes.minorticks_off()
    axes.legend(fontsize="small", frameon=False)
    return figure
