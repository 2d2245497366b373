"""Playing against oneself: policies whose opponents are policies, and preferences need no order."""

from __future__ import annotations

import torch
from torch import Tensor

from scoretune.shapes import check_same_shape, check_shape


def sppo(log_ratio: Tensor, win_rate: Tensor, eta: float) -> Tensor:
    """(ln(π/π_t) − η(P(y > π_t) − 1/2))², [B] (arXiv 2405.00675 eq. 4.7); its minimum over π is a
    step of multiplicative weights. At P in {0, 1} and η = 1/β it is the preset `sppo` over β²."""
    check_same_shape(log_ratio=log_ratio, win_rate=win_rate)
    return (log_ratio - eta * (win_rate - 0.5)) ** 2


def sppo_step(policy: Tensor, preferred: Tensor, eta: float) -> Tensor:
    """The exact minimum of `sppo` over n answers: π_{t+1} ∝ π_t e^{η P(y > π_t)}, [n].

    `policy` [n] are probabilities and `preferred` [n, n] is P(row > column).
    """
    _check_game(policy, preferred)
    return torch.softmax(torch.log(policy) + eta * (preferred @ policy), -1)


def nash_md_step(
    policy: Tensor, reference: Tensor, preferred: Tensor, *, eta: float, beta: float
) -> Tensor:
    """A step of Nash-MD over n answers (arXiv 2312.00886), [n]:

        ln π_{t+1} = (1 − ηβ) ln π_t + ηβ ln μ + η P(y > π_t^μ) + const

    against the mixture π_t^μ ∝ π_t^{1−ηβ} μ^{ηβ}. Converges to the Nash equilibrium of the game
    with a KL penalty β to μ; `preferred` [n, n] is P(row > column).
    """
    _check_game(policy, preferred)
    check_shape(policy.shape, reference=reference)
    if not 0 <= eta * beta <= 1:
        raise ValueError(f"eta·beta must lie in [0, 1], got {eta * beta}")
    mixed = (1 - eta * beta) * torch.log(policy) + eta * beta * torch.log(reference)
    opponent = torch.softmax(mixed, -1)
    return torch.softmax(mixed + eta * (preferred @ opponent), -1)


def _check_game(policy: Tensor, preferred: Tensor) -> None:
    check_shape((len(policy), len(policy)), preferred=preferred)
