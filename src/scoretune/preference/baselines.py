"""What a sample's reward is compared with: baselines of REINFORCE that need no value network.

The gradient of E R is E[(R − b)·∇ln π], for any b that does not depend on the sample.
"""

from __future__ import annotations

from torch import Tensor

from scoretune.shapes import check_rank, check_shape


def leave_one_out(rewards: Tensor) -> Tensor:
    """R_i − mean_{j≠i} R_j, [..., k], of k samples of a prompt (RLOO, arXiv 2402.14740)."""
    check_rank(1, rewards=rewards)
    k = rewards.shape[-1]
    if k < 2:
        raise ValueError("leaving one out needs two or more samples of a prompt")
    return (rewards - rewards.mean(-1, keepdim=True)) * (k / (k - 1))


def less_greedy(rewards: Tensor, greedy: Tensor) -> Tensor:
    """R − R(greedy answer), [B] (ReMax, arXiv 2310.10505)."""
    check_shape(rewards.shape, greedy=greedy)
    return rewards - greedy
