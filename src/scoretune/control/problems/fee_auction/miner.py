"""What a proposer wants in the long run: a utility that jumps, and the designs that bear it.

The model is our reconstruction of arXiv 2308.13881, of which only the abstract could be read; any
function of the miner's net gain can take its place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from scoretune.control.problems.fee_auction.mechanisms import Array
from scoretune.core.errors import UserError

MinerUtility: TypeAlias = Callable[[Array], Array]
"""From the miner's own net gain over truthfulness in one block, [...], to the utility gained."""

NO_GAIN = 1e-9
"""A net gain of less counts as none: differences of sums of bids are not exact."""


def one_shot(gain: Array) -> Array:
    """A miner who only cares for the block at hand."""
    return gain


@dataclass(frozen=True, kw_only=True)
class Jumps:
    """gain + `up` where the gain is above 0, gain − `down` where it is below.

    `one_shot=False` leaves out the gain itself: three values, which no tick size can make safe.
    """

    up: float = 0.0
    down: float = 0.0
    one_shot: bool = True

    def __post_init__(self) -> None:
        if not (0 <= self.up < np.inf and 0 <= self.down < np.inf):
            raise UserError(
                f"jumps must be finite and >= 0, got up = {self.up}, down = {self.down}"
            )

    def __call__(self, gain: Array) -> Array:
        jump = self.up * (gain > NO_GAIN) - self.down * (gain < -NO_GAIN)
        return gain + jump if self.one_shot else jump


def long_run(*, worth: float, share: float) -> Jumps:
    """Revenue of the block + `worth`·E[the final share of all stake], for a share π₀ now.

    The share is a martingale if the miner is truthful; it tends to 1 if every own block brings more
    than truthfulness would, to 0 if less (`urn`). So the jumps are V(1 − π₀) and Vπ₀.
    """
    if not 0 <= worth < np.inf:
        raise UserError(f"worth must be finite and >= 0, got {worth}")
    if not 0 < share < 1:
        raise UserError(f"share must be between 0 and 1, got {share}")
    return Jumps(up=worth * (1 - share), down=worth * share)


def least_tick(*, gamma: float, theta: float, up: float) -> float:
    """δ* = J⁺/(γ − θ): the least tick at which BSP(θ) bears an upward jump; ∞ if θ = γ."""
    if up == 0:
        return 0.0
    return up / (gamma - theta) if theta < gamma else float("inf")


def largest_theta(*, gamma: float, tick: float, up: float) -> float:
    """γ − J⁺/δ: the θ of the largest revenue that bears the jump."""
    if tick <= 0:
        raise UserError(f"the tick must be > 0, got {tick}")
    return gamma - up / tick


def admissible(
    *, k: int, c: int, gamma: float, tick: float, up: float
) -> tuple[float, float] | None:
    """[c/k, γ − J⁺/δ], the θ at which BSP(θ) is safe from miners with users; None if empty."""
    if k < c:
        raise UserError(f"k = {k} must be at least the coalition c = {c}")
    low, high = c / k, largest_theta(gamma=gamma, tick=tick, up=up)
    return (low, high) if low <= high + 1e-12 else None


def coalition_gain(*, gamma: float, theta: float, tick: float, up: float) -> float:
    """max(0, J⁺ − (γ − θ)δ): the most that a miner with users gains from BSP(θ), θ ≤ γ.

    One unconfirmed over-bid of one tick raises revenue by θδ, costs its author γδ, and sets off the
    upward jump; a higher one costs more.
    """
    return max(0.0, up - (gamma - theta) * tick)
