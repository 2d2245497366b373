"""What entries may expect of a mechanism, exactly: probabilities, payments and utilities."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from scoretune.control.problems.fee_auction.mechanisms import Array, Mechanism
from scoretune.core.errors import UserError

Places: TypeAlias = NDArray[np.intp]
NO_OFFENCE = 1e-12
ABSENT = -1.0
"""The bid of an entry that is not there."""


class Expected(NamedTuple):
    """Of entries [..., E]: the probability to be confirmed and the expected payment; the miner's
    expected revenue, [...]."""

    confirmed: Array
    paid: Array
    revenue: Array


def expected(mechanism: Mechanism, bids: Array, values: Array) -> Expected:
    """The outcome of bids [..., E] in any order, of which the highest are included.

    A negative bid is an entry that is not there. Of equal bids those above their value come last,
    as what was sent later; equal ones of one kind share the places that they fill, also behind the
    end of the block. `values` [..., E] are those of the authors, 0 for a fake.
    """
    order = np.lexsort((bids > values + NO_OFFENCE, -bids), axis=-1)
    ranked = np.take_along_axis(bids, order, axis=-1)
    above = ranked > np.take_along_axis(values, order, axis=-1) + NO_OFFENCE
    inside = min(bids.shape[-1], mechanism.size)
    block = np.zeros((*bids.shape[:-1], mechanism.size))
    block[..., :inside] = np.maximum(ranked[..., :inside], 0)
    confirm, paid = np.zeros_like(ranked), np.zeros_like(ranked)
    confirm[..., :inside] = mechanism.confirm(block)[..., :inside]
    paid[..., :inside] = confirm[..., :inside] * mechanism.price(block)[..., :inside]
    first, last = _ties(ranked, above)
    back = np.argsort(order, axis=-1, kind="stable")
    present = bids >= 0
    shared = (_mean_of_runs(part, first, last) for part in (confirm, paid))
    confirmed, payment = (np.take_along_axis(part, back, axis=-1) * present for part in shared)
    return Expected(confirmed, payment, mechanism.revenue(block))


def _ties(ranked: Array, above: NDArray[np.bool_]) -> tuple[Places, Places]:
    """The first and the last place of the run of equal entries that each place is in."""
    entries = ranked.shape[-1]
    new = (ranked[..., 1:] != ranked[..., :-1]) | (above[..., 1:] != above[..., :-1])
    edge = np.ones((*ranked.shape[:-1], 1), dtype=bool)
    place = np.arange(entries)
    starts = np.where(np.concatenate([edge, new], axis=-1), place, 0)
    ends = np.where(np.concatenate([new, edge], axis=-1), place, entries)[..., ::-1]
    return np.maximum.accumulate(starts, -1), np.minimum.accumulate(ends, -1)[..., ::-1]


def _mean_of_runs(part: Array, first: Places, last: Places) -> Array:
    total = np.concatenate([np.zeros((*part.shape[:-1], 1)), part.cumsum(-1)], axis=-1)
    high, low = (np.take_along_axis(total, at, axis=-1) for at in (last + 1, first))
    mean: Array = (high - low) / (last - first + 1)
    return mean


def utility(outcome: Expected, bids: Array, values: Array, gamma: float) -> Array:
    """What every entry is worth to its author, [..., E]: strict γ-utility (Chung and Shi, 2023).

    Confirmed: value − payment. An entry that is not confirmed costs γ(bid − value)⁺. A fake has the
    value 0, and one that is not there is worth 0.
    """
    lost = gamma * np.maximum(bids - values, 0)
    worth: Array = outcome.confirmed * values - outcome.paid - (1 - outcome.confirmed) * lost
    return np.where(bids >= 0, worth, 0.0)


def check_burn(mechanism: Mechanism, blocks: Array) -> float:
    """The least that is burned in any of the blocks [N, size]. Raises UserError if it is < 0."""
    burned = mechanism.burned(blocks)
    least = int(np.argmin(burned))
    if burned[least] < -1e-9:
        bids = ", ".join(f"{bid:g}" for bid in blocks[least])
        raise UserError(
            f"{mechanism.name} burns a negative amount, {burned[least]:.4g}, with the bids {bids}: "
            "the miner's revenue must not exceed what is paid"
        )
    return float(burned[least])


def check_rules(mechanism: Mechanism) -> None:
    """Raise UserError unless the rules give probabilities and numbers of the right shapes."""
    if not isinstance(mechanism, Mechanism):
        raise UserError(
            f"a mechanism is a fee_auction.Mechanism(name=…, size=…, confirm=…, price=…, "
            f"revenue=…), got {type(mechanism).__name__}"
        )
    name, size = mechanism.name, mechanism.size
    if size < 1:
        raise UserError(f"{name}: size must be at least 1, got {size}")
    block = np.arange(3 * size, dtype=float).reshape(3, size)[:, ::-1].copy()
    wanted = {"confirm": (3, size), "price": (3, size), "revenue": (3,)}
    for rule, shape in wanted.items():
        out = np.asarray(getattr(mechanism, rule)(block))
        if out.shape != shape:
            raise UserError(
                f"{name}: {rule} must map [3, {size}] to {list(shape)}, got {list(out.shape)}"
            )
        if not np.isfinite(out).all():
            raise UserError(f"{name}: {rule} must be finite")
    probability = mechanism.confirm(block)
    if probability.min() < 0 or probability.max() > 1:
        raise UserError(f"{name}: confirm must give probabilities, from 0 to 1")
