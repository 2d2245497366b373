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
        miner = self.miner + (self.reward + self.gain) * won
        return miner, self.others + self.reward * (blocks - won)

    def shares(self, won: Array, blocks: int) -> Array:
        """π = W/(W + B) after `won` of `blocks` blocks."""
        miner, others = self.stakes(won, blocks)
        share: Array = miner / (miner + others)
        return share

    def martingale(self, won: Array, blocks: int) -> Array:
        """ψ(W/a_W)/a_W − ψ(B/a_B)/a_B, whose mean never changes: ψ(z+1) − ψ(z) = 1/z."""
        from scipy.special import digamma

        miner, others = self.stakes(won, blocks)
        a_miner, a_others = self.reward + self.gain, self.reward
        value: Array = digamma(miner / a_miner) / a_miner - digamma(others / a_others) / a_others
        return value

    def law(self, blocks: int) -> Array:
        """P(the miner has won w of the blocks), [blocks + 1], exactly."""
        law = np.zeros(blocks + 1)
        law[0] = 1.0
        won = np.arange(blocks, dtype=float)
        for t in range(blocks):
            wins = law[: t + 1] * self.shares(won[: t + 1], t)
            law[: t + 1] -= wins
            law[1 : t + 2] += wins
        return law

    def mean_share(self, blocks: int) -> float:
        """E π_T after `blocks` blocks, exactly; the work grows with their square."""
        return float(self.law(blocks) @ self.shares(np.arange(blocks + 1, dtype=float), blocks))

    def simulate(self, blocks: int, *, paths: int, seed: int = 0) -> Array:
        """How many blocks the miner has won at every time, [blocks + 1, paths]."""
        random = np.random.default_rng(seed)
        won = np.zeros((blocks + 1, paths))
        for t in range(blocks):
            won[t + 1] = won[t] + (random.random(paths) < self.shares(won[t], t))
        return won

    def far_share(self, blocks: float, *, points: int = 200) -> float:
        """E π_T for long horizons, where `law` would take too long, up to a relative O(T^{-1/2}).

        In continuous time both stakes are Yule processes: W ≈ a_W·Γ(W₀/a_W)·e^{a_W s} and B alike,
        with independent gammas, met where W/a_W + B/a_B = T. The gammas are taken at the middles of
        `points` quantiles each.
        """
        from scipy.special import gammaincinv

        a_miner, a_others = self.reward + self.gain, self.reward
        middles = (np.arange(points) + 0.5) / points
        log_miner = np.log(gammaincinv(self.miner / a_miner, middles))[:, None]
        log_others = np.log(gammaincinv(self.others / a_others, middles))[None, :]
        log_blocks = np.log(blocks)
        # Newton's steps on a convex function that grows, from the right of its root.
        time = np.minimum((log_blocks - log_miner) / a_miner, (log_blocks - log_others) / a_others)
        for _ in range(20):
            won, lost = log_miner + a_miner * time, log_others + a_others * time
            total = np.logaddexp(won, lost)
            part = np.exp(won - total)
            time = time - (total - log_blocks) / (a_miner * part + a_others * (1 - part))
        miner = np.log(a_miner) + log_miner + a_miner * time
        others = np.log(a_others) + log_others + a_others * time
        return float(np.exp(miner - np.logaddexp(miner, others)).mean())
