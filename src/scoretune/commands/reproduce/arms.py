"""A bandit of five arms in a known order, votes on its pairs, and what is learned from them.

A softmax policy over the arms, a uniform reference, all ten pairs alike: the least that learning
from preferences can be, and its losses' minima are known.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoretune.preference import mallows_probability, pairwise_loss
from scoretune.preference.mallows import Kind

ARMS, BETA = 5, 0.5
FIRST, SECOND = torch.triu_indices(ARMS, ARMS, 1)  # arm i is better than arm j > i
GAPS = (SECOND - FIRST).double()
RANKS = torch.arange(ARMS, dtype=torch.float64)


def shares(phi: float, kind: Kind, votes: int | None, seed: int = 0) -> Tensor:
    """How often the first of each pair is preferred, [10]: by law, or among `votes` raters."""
    law = mallows_probability(GAPS, phi, kind)
    if votes is None:
        return law
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(votes, len(law), generator=generator, dtype=torch.float64)
    return (drawn < law).double().mean(0)


def learned_rewards(label: Tensor, preset: str, scale: Tensor | None = None) -> Tensor:
    """r = β ln(π/π_ref) of the arms, less that of the best, [5], where a preset's loss is least.

    By L-BFGS, to its last digits.
    """
    reference = torch.full((ARMS,), -math.log(ARMS), dtype=torch.float64)
    logits = torch.zeros(ARMS, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [logits],
        lr=1,
        max_iter=500,
        tolerance_grad=1e-12,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        policy = logits.log_softmax(0)
        sides = (policy[FIRST], policy[SECOND], reference[FIRST], reference[SECOND])
        value = pairwise_loss(*sides, preset=preset, beta=BETA, scale=scale, label=label).mean()
        value.backward()
        return value

    optimiser.step(loss)
    rewards = BETA * (logits.detach().log_softmax(0) - reference)
    return rewards - rewards[0]


def same(value: float) -> Tensor:
    """A number for each of the ten pairs."""
    return torch.full_like(GAPS, value)


def policy_kl(rewards: Tensor) -> float:
    """KL(π ‖ uniform) of the policy with these rewards."""
    policy = torch.softmax(rewards / BETA, 0)
    return math.log(ARMS) - float(torch.special.entr(policy).sum())
