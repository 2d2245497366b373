"""A deviation from truthfulness, what its authors gain, and its story."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from scoretune.control.problems.fee_auction.mechanisms import Array, Mechanism
from scoretune.control.problems.fee_auction.miner import MinerUtility, one_shot
from scoretune.control.problems.fee_auction.outcome import ABSENT, expected, utility
from scoretune.core.errors import UserError

Author = Literal["user", "miner"]


@dataclass(frozen=True, kw_only=True)
class Market:
    """Who bids, on which grid, and what they fear and want.

    `users` with values of 0 … `grid` ticks, bids of up to grid + 1 ticks, up to `fakes` fake bids;
    `tick` in units of money; a bid above its value that is not confirmed costs `gamma` of the
    difference; `coalition` users at most join the miner, who gains `miner(net gain)`.
    """

    users: int = 4
    grid: int = 4
    fakes: int = 1
    tick: float = 1.0
    gamma: float = 1.0
    coalition: int = 1
    miner: MinerUtility = one_shot

    def __post_init__(self) -> None:
        for name in ("users", "grid"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.fakes < 0:
            raise UserError(f"fakes must be at least 0, got {self.fakes}")
        if not 0 < self.tick < np.inf:
            raise UserError(f"tick must be finite and > 0, got {self.tick}: bids live on its grid")
        if not 0 < self.gamma <= 1:
            raise UserError(f"gamma must be in (0, 1], got {self.gamma}")
        if not 0 <= self.coalition <= self.users:
            raise UserError(
                f"coalition must be from 0 to the {self.users} users, got {self.coalition}"
            )


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """Everything in ticks. `values` of all users; the `members` who deviate, what they bid (None:
    they are left out), the `included` among the others, `fakes` and whose account they are on.
    Without `with_miner` a lone member deviates and inclusion is truthful.
    """

    values: tuple[int, ...]
    members: tuple[int, ...]
    bids: tuple[int | None, ...]
    included: tuple[int, ...]
    fakes: tuple[int, ...]
    author: Author
    with_miner: bool
    gain: float

    @property
    def kind(self) -> str:
        """UIC, MIC or s-SCP: which promise it breaks."""
        if not self.with_miner:
            return "UIC"
        return f"{len(self.members)}-SCP" if self.members else "MIC"


class Accounts(NamedTuple):
    """What members and the miner have before and after, in money; `fakes`: what those are worth."""

    members_before: Array
    members_after: Array
    fakes: float
    revenue_before: float
    revenue_after: float


def accounts(mechanism: Mechanism, market: Market, deviation: Deviation) -> Accounts:
    """The deviation played out, from the rules alone and not from a table."""
    values = np.array(deviation.values, dtype=float) * market.tick
    honest = expected(mechanism, values, values)
    before = utility(honest, values, values, market.gamma)[list(deviation.members)]
    bids = np.full(len(values) + len(deviation.fakes), ABSENT)
    for user in deviation.included:
        bids[user] = values[user]
    for user, bid in zip(deviation.members, deviation.bids, strict=True):
        bids[user] = ABSENT if bid is None else bid * market.tick
    bids[len(values) :] = np.array(deviation.fakes, dtype=float) * market.tick
    author_values = np.concatenate([values, np.zeros(len(deviation.fakes))])
    outcome = expected(mechanism, bids, author_values)
    worth = utility(outcome, bids, author_values, market.gamma)
    return Accounts(
        before,
        worth[list(deviation.members)],
        float(worth[len(values) :].sum()),
        float(honest.revenue),
        float(outcome.revenue),
    )


def gain_of(mechanism: Mechanism, market: Market, deviation: Deviation) -> float:
    """What the deviation brings to all who take part in it together."""
    a = accounts(mechanism, market, deviation)
    users = float((a.members_after - a.members_before).sum())
    if not deviation.with_miner:
        return users + a.fakes
    miner = float(market.miner(np.array(_net_gain_of_miner(a, deviation))))
    return users + miner + (a.fakes if deviation.author == "user" else 0.0)


def _net_gain_of_miner(a: Accounts, deviation: Deviation) -> float:
    """Of revenue, and of fakes on the miner's account."""
    revenue = a.revenue_after - a.revenue_before
    return revenue + (a.fakes if deviation.author == "miner" else 0.0)


def story(mechanism: Mechanism, market: Market, deviation: Deviation) -> str:
    """Who bids what, and who gains how much, in plain sentences."""
    a, tick = accounts(mechanism, market, deviation), market.tick

    def money(ticks: float) -> str:
        return f"{ticks * tick:g}"

    values = ", ".join(f"user {u + 1} {money(v)}" for u, v in enumerate(deviation.values))
    lines = [
        f"Values: {values}.",
        f"Truthfully each bids that, and the miner expects {a.revenue_before:g}.",
    ]
    for user, bid in zip(deviation.members, deviation.bids, strict=True):
        value = deviation.values[user]
        if bid is None:
            lines.append(f"User {user + 1} agrees to be left out.")
        elif bid != value:
            side = "above" if bid > value else "below"
            lines.append(f"User {user + 1} bids {money(bid)}, {side} the value {money(value)}.")
        else:
            lines.append(f"User {user + 1} is in it, with the truthful bid {money(bid)}.")
    if deviation.fakes:
        fakes = ", ".join(map(money, deviation.fakes))
        lines.append(f"Fake bids on the account of the {deviation.author}: {fakes}.")
    bidding = {*deviation.members, *deviation.included}
    left_out = [f"user {u + 1}" for u in range(len(deviation.values)) if u not in bidding]
    if left_out and deviation.with_miner:
        lines.append(f"The miner leaves out {', '.join(left_out)}.")
    for user, before, after in zip(
        deviation.members, a.members_before, a.members_after, strict=True
    ):
        lines.append(f"User {user + 1}: utility {before:g} → {after:g} ({after - before:+.4g}).")
    if deviation.fakes:
        lines.append(f"The fakes are worth {a.fakes:+.4g} to their author.")
    if deviation.with_miner:
        change = a.revenue_after - a.revenue_before
        lines.append(
            f"The miner's revenue: {a.revenue_before:g} → {a.revenue_after:g} ({change:+.4g})."
        )
        net = _net_gain_of_miner(a, deviation)
        jump = float(market.miner(np.array(net))) - net
        if abs(jump) > 1e-12:
            sign = "above" if net > 0 else "below"
            lines.append(f"The miner's net gain is {sign} 0: the long run adds {jump:+.4g}.")
    lines.append(f"Together they gain {deviation.gain:+.6g}.")
    return "\n".join(lines)
