"""What a margin z costs: f(z) of a pair whose first side is preferred, elementwise.

Of each link f the value, slope and curvature at 0 (the loss near the reference, arXiv 2410.04203
and the survey 2409.11564 eq. 46):

    logistic       −ln σ(z)               ln 2   −1/2    1/4
    square         (z − 1/2)²             1/4    −1      2
    hinge          max(0, 1 − z)          1      −1      0
    squared_hinge  max(0, 1/2 − z)²       1/4    −1      2
    cauchy         −ln(1/2 + atan(z)/π)   ln 2   −2/π    4/π²
    sigmoid        1 − σ(z)               1/2    −1/4    0
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from scoretune.preference.mallows import log_probability
from scoretune.preference.presets import Link


def logistic(z: Tensor) -> Tensor:
    """−ln σ(z)."""
    return -logsigmoid(z)


def square(z: Tensor) -> Tensor:
    """(z − 1/2)²."""
    return (z - 0.5) ** 2


def hinge(z: Tensor) -> Tensor:
    """max(0, 1 − z)."""
    return torch.relu(1 - z)


def squared_hinge(z: Tensor) -> Tensor:
    """max(0, 1/2 − z)²."""
    return torch.relu(0.5 - z) ** 2


def cauchy(z: Tensor) -> Tensor:
    """−ln(1/2 + atan(z)/π): a link with heavy tails, −ln F(z) of Cauchy's law.

    For z < −1 the sum is atan(−1/z)/π, which does not cancel.
    """
    tail = torch.atan(-1 / z.clamp(max=-1.0)) / math.pi
    return -torch.log(torch.where(z < -1, tail, 0.5 + torch.atan(z.clamp(min=-1.0)) / math.pi))


def sigmoid(z: Tensor) -> Tensor:
    """1 − σ(z)."""
    return torch.sigmoid(-z)


def exo(z: Tensor, epsilon: float) -> Tensor:
    """KL(σ(z) ‖ 1 − ε) of two coins (EXO, arXiv 2402.00856 eq. 16)."""
    win, loss = torch.sigmoid(z), torch.sigmoid(-z)
    return win * (logsigmoid(z) - math.log1p(-epsilon)) + loss * (
        logsigmoid(-z) - math.log(epsilon)
    )


def discopop(z: Tensor, temperature: float) -> Tensor:
    """(1 − m)·(−ln σ(z)) + m·e^{−z}, m = σ(z/τ) (arXiv 2406.08414 eq. 5).

    m·e^{−z} is e^{ln σ(z/τ) − z}, which stays finite where e^{−z} does not.
    """
    share = torch.sigmoid(z / temperature)
    return -(1 - share) * logsigmoid(z) + torch.exp(logsigmoid(z / temperature) - z)


def mallows_phi(z: Tensor, phi: Tensor) -> Tensor:
    """−ln g_φ(z), smoothed near 0 (MallowsPO-φ, arXiv 2405.14953)."""
    return -log_probability(z, phi)


PLAIN: dict[Link, Callable[[Tensor], Tensor]] = {
    "logistic": logistic,
    "square": square,
    "hinge": hinge,
    "squared_hinge": squared_hinge,
    "cauchy": cauchy,
    "sigmoid": sigmoid,
}
WITH_NUMBER: dict[Link, Callable[[Tensor, float], Tensor]] = {"exo": exo, "discopop": discopop}
