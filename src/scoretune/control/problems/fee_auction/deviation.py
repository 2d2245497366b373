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


def accounts(mechanism: Mechanism, market: Market, it: Deviation) -> Accounts:
    """The deviation played out, from the rules alone and not from a table."""
    values = np.array(it.values, dtype=float) * market.tick
    honest = expected(mechanism, values, values)
    before = utility(honest, values, values, market.gamma)[list(it.members)]
    bids = np.full(len(values) + len(it.fakes), ABSENT)
    for user in it.included:
        bids[user] = values[user]
    for user, bid in zip(it.members, it.bids, strict=True):
        bids[user] = ABSENT if bid is None else bid * market.tick
    bids[len(values) :] = np.array(it.fakes, dtype=float) * market.tick
    own = np.concatenate([values, np.zeros(len(it.fakes))])
    outcome = expected(mechanism, bids, own)
    worth = utility(outcome, bids, own, market.gamma)
    return Accounts(
        before,
        worth[list(it.members)],
        float(worth[len(values) :].sum()),
        float(honest.revenue),
        float(outcome.revenue),
    )


def gain_of(mechanism: Mechanism, market: Market, it: Deviation) -> float:
    """What the deviation brings to all who take part in it together."""
    a = accounts(mechanism, market, it)
    users = float((a.members_after - a.members_before).sum())
    if not it.with_miner:
        return users + a.fakes
    revenue = a.revenue_after - a.revenue_before
    net = revenue + (a.fakes if it.author == "miner" else 0.0)
    miner = float(market.miner(np.array(net)))
    return users + miner + (a.fakes if it.author == "user" else 0.0)


def story(mechanism: Mechanism, market: Market, it: Deviation) -> str:
    """Who bids what, and who gains how much, in plain sentences."""
    a, tick = accounts(mechanism, market, it), market.tick

    def money(ticks: float) -> str:
        return f"{ticks * tick:g}"

    lines = [f"Values: {', '.join(f'user {u + 1} {money(v)}' for u, v in enumerate(it.values))}."]
    honest = f"Truthfully each bids that, and the miner expects {a.revenue_before:g}."
    lines.append(honest)
    for user, bid in zip(it.members, it.bids, strict=True):
        value = it.values[user]
        if bid is None:
            lines.append(f"User {user + 1} agrees to be left out.")
        elif bid != value:
            how = "above" if bid > value else "below"
            lines.append(f"User {user + 1} bids {money(bid)}, {how} the value {money(value)}.")
        else:
            lines.append(f"User {user + 1} is in it, with the truthful bid {money(bid)}.")
    if it.fakes:
        who = "the miner" if it.author == "miner" else "the user"
        lines.append(f"Fake bids on the account of {who}: {', '.join(map(money, it.fakes))}.")
    others = [u for u in range(len(it.values)) if u not in it.members]
    left = [f"user {u + 1}" for u in others if u not in it.included]
    if left and it.with_miner:
        lines.append(f"The miner leaves out {', '.join(left)}.")
    for user, before, after in zip(it.members, a.members_before, a.members_after, strict=True):
        lines.append(f"User {user + 1}: utility {before:g} → {after:g} ({after - before:+.4g}).")
    if it.fakes:
        lines.append(f"The fakes are worth {a.fakes:+.4g} to their author.")
    if it.with_miner:
        change = a.revenue_after - a.revenue_before
        lines.append(
            f"The miner's revenue: {a.revenue_before:g} → {a.revenue_after:g} ({change:+.4g})."
        )
        net = change + (a.fakes if it.author == "miner" else 0.0)
        jump = float(market.miner(np.array(net))) - net
        if abs(jump) > 1e-12:
            sign = "above" if net > 0 else "below"
            lines.append(f"The miner's net gain is {sign} 0: the long run adds {jump:+.4g}.")
    lines.append(f"Together they gain {it.gain:+.6g}.")
    return "\n".join(lines)
