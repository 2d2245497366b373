"""The long run of proof of stake: an urn in which one colour is reinforced a little more.

A block is proposed by a miner with the share of its stake; the winner's stake grows by `reward`,
and by `reward + gain` if it is the miner who deviates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scoretune.control.problems.fee_auction.mechanisms import Array
from scoretune.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Urn:
    """The miner's stake W and the others' B, both > 0, and what a block adds to the winner's."""

    miner: float = 3.0
    others: float = 7.0
    reward: float = 1.0
    gain: float = 0.0

    def __post_init__(self) -> None:
        if not (self.miner > 0 and self.others > 0):
            raise UserError(f"stakes must be > 0, got {self.miner} and {self.others}")
        if not (self.reward > 0 and self.reward + self.gain > 0):
            raise UserError(
                f"a block must add to the winner's stake: reward = {self.reward} and reward + gain "
                f"= {self.reward + self.gain:g} must be > 0"
            )

    @property
    def share(self) -> float:
        """π₀."""
        return self.miner / (self.miner + self.others)

    @property
    def final_share(self) -> float:
        """E π_∞: π₀ without a gain, 1 with one however small, 0 with a loss."""
        if self.gain == 0:
            return self.share
        return 1.0 if self.gain > 0 else 0.0

    def stakes(self, won: Array, blocks: int) -> tuple[Array, Array]:
        """W and B after `won` of `blocks` blocks."""
        own = self.miner + (self.reward + self.gain) * won
        return own, self.others + self.reward * (blocks - won)

    def martingale(self, won: Array, blocks: int) -> Array:
        """ψ(W/a_W)/a_W − ψ(B/a_B)/a_B, whose mean never changes: ψ(z+1) − ψ(z) = 1/z."""
        from scipy.special import digamma

        own, other = self.stakes(won, blocks)
        a_own, a_other = self.reward + self.gain, self.reward
        value: Array = digamma(own / a_own) / a_own - digamma(other / a_other) / a_other
        return value

    def law(self, blocks: int) -> Array:
        """P(the miner has won w of the blocks), [blocks + 1], exactly."""
        law = np.zeros(blocks + 1)
        law[0] = 1.0
        won = np.arange(blocks, dtype=float)
        for t in range(blocks):
            own, other = self.stakes(won[: t + 1], t)
            wins = law[: t + 1] * (own / (own + other))
            law[: t + 1] -= wins
            law[1 : t + 2] += wins
        return law

    def mean_share(self, blocks: int) -> float:
        """E π_T after `blocks` blocks, exactly; the work grows with their square."""
        own, other = self.stakes(np.arange(blocks + 1, dtype=float), blocks)
        return float(self.law(blocks) @ (own / (own + other)))

    def simulate(self, blocks: int, *, paths: int, seed: int = 0) -> Array:
        """How many blocks the miner has won at every time, [blocks + 1, paths]."""
        random = np.random.default_rng(seed)
        won = np.zeros((blocks + 1, paths))
        for t in range(blocks):
            own, other = self.stakes(won[t], t)
            won[t + 1] = won[t] + (random.random(paths) * (own + other) < own)
        return won

    def far_share(self, blocks: float, *, points: int = 200) -> float:
        """E π_T for long horizons, where `law` would take too long, up to a relative O(T^{-1/2}).

        In continuous time both stakes are Yule processes: W ≈ a_W·Γ(W₀/a_W)·e^{a_W s} and B alike,
        with independent gammas, met where W/a_W + B/a_B = T. The gammas are taken at the middles of
        `points` quantiles each.
        """
        from scipy.special import gammaincinv

        a_own, a_other = self.reward + self.gain, self.reward
        middles = (np.arange(points) + 0.5) / points
        own = np.log(gammaincinv(self.miner / a_own, middles))[:, None]
        other = np.log(gammaincinv(self.others / a_other, middles))[None, :]
        goal = np.log(blocks)
        # Newton's steps on a convex function that grows, from the right of its root.
        time = np.minimum((goal - own) / a_own, (goal - other) / a_other)
        for _ in range(20):
            sizes = own + a_own * time, other + a_other * time
            total = np.logaddexp(*sizes)
            part = np.exp(sizes[0] - total)
            time = time - (total - goal) / (a_own * part + a_other * (1 - part))
        own_stake = np.log(a_own) + own + a_own * time
        other_stake = np.log(a_other) + other + a_other * time
        return float(np.exp(own_stake - np.logaddexp(own_stake, other_stake)).mean())
