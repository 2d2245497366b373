"""Transaction-fee mechanisms as rules: who is confirmed, who pays what, what the miner gets."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from scoretune.core.errors import UserError

Array: TypeAlias = NDArray[np.float64]
Rule: TypeAlias = Callable[[Array], Array]


@dataclass(frozen=True, kw_only=True)
class Mechanism:
    """What a chain does with the bids of a block.

    A truthful miner includes the `size` highest bids. Each rule sees blocks [..., size] of bids
    that do not increase; places that nobody fills hold 0. `confirm(block)` [..., size] is the
    probability that a place is confirmed, which the chain draws and not the miner; `price(block)`
    [..., size] what a confirmed one pays; `revenue(block)` [...] what the miner expects. The rest
    is burned. Equal bids share the probabilities of their places.
    """

    name: str
    size: int
    confirm: Rule
    price: Rule
    revenue: Rule

    def burned(self, block: Array) -> Array:
        """What is paid and goes to nobody, [...]; below 0 the chain would have to print money."""
        paid = (self.confirm(block) * self.price(block)).sum(-1)
        burned: Array = paid - self.revenue(block)
        return burned


def bsp(
    *,
    k: int = 2,
    extra: int = 2,
    c: int = 1,
    gamma: float = 1.0,
    theta: float | None = None,
    confirmed: int | None = None,
) -> Mechanism:
    """The burning second-price auction BSP(γ), or BSP(θ) where `theta` takes γ's place.

    Of the `k` highest bids ⌊θk/c⌋ are confirmed, uniformly at random; each pays the (k+1)-th bid;
    the miner gets θ times the sum of the `extra` bids behind the first k, and the rest is burned
    (Chung and Shi, 2023, for θ = γ; BSP(θ) of arXiv 2308.13881 as we reconstruct it). `c` is the
    largest coalition that it is made for, `gamma` the share of an offending bid that its author
    fears to lose.
    `confirmed` overrides ⌊θk/c⌋, for auctions that are not sound.
    """
    share = gamma if theta is None else theta
    _check_places(k=k, extra=extra, c=c)
    if k < c:
        raise UserError(f"bsp: k = {k} must be at least the coalition c = {c}")
    if not 0 < gamma <= 1:
        raise UserError(f"bsp: gamma must be in (0, 1], got {gamma}")
    if not c / k <= share <= gamma:
        name = "gamma" if theta is None else "theta"
        raise UserError(
            f"bsp: {name} must be in [c/k, gamma] = [{c / k:.4g}, {gamma:.4g}], got {share}: "
            "below it nobody is confirmed"
        )
    winners = math.floor(share * k / c + 1e-9) if confirmed is None else confirmed
    if not 1 <= winners <= k:
        raise UserError(f"bsp: confirmed must be from 1 to k = {k}, got {winners}")
    if share * extra > winners + 1e-9:
        raise UserError(
            f"bsp: it would burn a negative amount: theta·extra = {share * extra:.4g} must be at "
            f"most the {winners} bids that are confirmed; take a smaller extra or theta"
        )
    rank = np.arange(k + extra)

    return Mechanism(
        name=f"BSP({'γ' if theta is None else 'θ'} = {share:g}), k = {k}, extra = {extra}, "
        f"{winners} confirmed",
        size=k + extra,
        confirm=lambda block: np.where(rank < k, winners / k, 0.0) + 0 * block,
        price=lambda block: block[..., k : k + 1] + 0 * block,
        revenue=lambda block: share * block[..., k:].sum(-1),
    )


def second_price(*, k: int = 2) -> Mechanism:
    """The k highest bids are confirmed and pay the (k+1)-th, all of it to the miner."""
    _check_places(k=k)
    rank = np.arange(k + 1)
    return Mechanism(
        name=f"second price, k = {k}",
        size=k + 1,
        confirm=lambda block: np.where(rank < k, 1.0, 0.0) + 0 * block,
        price=lambda block: block[..., k : k + 1] + 0 * block,
        revenue=lambda block: k * block[..., k],
    )


def first_price(*, k: int = 2) -> Mechanism:
    """The k highest bids are confirmed and pay what they bid, all of it to the miner."""
    _check_places(k=k)
    return Mechanism(
        name=f"first price, k = {k}",
        size=k,
        confirm=np.ones_like,
        price=lambda block: block,
        revenue=lambda block: block.sum(-1),
    )


def eip1559(*, k: int = 4, base_fee: float = 1.0, tip: float = 0.0) -> Mechanism:
    """After EIP-1559: a bid is a fee cap; those that reach the base fee are confirmed.

    Each pays the base fee, which is burned, and up to `tip` more, which the miner gets. Where more
    than `k` reach it the highest bids win, though all pay the same. The base fee does not move.
    """
    _check_places(k=k)
    if not (0 <= base_fee < math.inf and 0 <= tip < math.inf):
        raise UserError(f"eip1559: base_fee and tip must be finite and >= 0, got {base_fee}, {tip}")
    return Mechanism(
        name=f"EIP-1559-style, k = {k}, base fee {base_fee:g}, tip {tip:g}",
        size=k,
        confirm=lambda block: np.where(block >= base_fee, 1.0, 0.0),
        price=lambda block: np.minimum(block, base_fee + tip),
        revenue=lambda block: np.clip(block - base_fee, 0, tip).sum(-1),
    )


MECHANISMS: dict[str, Callable[..., Mechanism]] = {
    "bsp": bsp,
    "second_price": second_price,
    "first_price": first_price,
    "eip1559": eip1559,
}


def _check_places(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise UserError(f"{name} must be at least 1, got {count}")
