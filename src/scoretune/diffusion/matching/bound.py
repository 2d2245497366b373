"""The bound of a sample's log-likelihood as one noisy state of it sees it.

    ln p(x0) ≥ −½ ∫ E‖ε̂(x_t, t) − ε‖² |dℓ| + a constant of the process,   ℓ = ln(α²/σ²)

(arXiv 2107.00630, the loss of continuous time; |dℓ| = g²/σ² dt). One time, drawn by a law of
`weightings`, gives an unbiased estimate −½·w·‖output − target‖², in nats, whatever the network
predicts and whatever the law. Between two models the constant cancels: their difference is the
implicit reward of Diffusion-DPO (arXiv 2311.12908 eq. 13) before its weight is made constant.

Diffusion-DPO's code drops the weight: it takes −½ times the *mean* squared error of an element, at
all times alike. Its B and a β of nats weigh the errors equally in total if B = β·D·W, with D
elements and W = ∫ (g²/σ²)/κ² dt the total weight on the network's own error. Where the weight is
constant, as for predicted noise with times uniform in ℓ, the two are one loss.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoretune.diffusion.estimates import Prediction
from scoretune.diffusion.matching import weightings
from scoretune.diffusion.processes import Process

NODES = 4097
"""Of the quadrature: in ln t the weights are smooth, and it is right to seven digits."""


def weight_of_nats(process: Process, prediction: Prediction, t: Tensor, t_min: float) -> Tensor:
    """w [B] for a time that was drawn uniformly from [t_min, horizon]: (horizon − t_min)·(g²/σ²)/κ²
    on the squared error of the output, a sum over elements."""
    on_output = weightings.on_output(weightings.likelihood, process, prediction, t)
    return (process.horizon - t_min) * on_output


def total_weight(process: Process, prediction: Prediction, t_min: float) -> float:
    """W = ∫ (g²/σ²)/κ² dt over [t_min, horizon], by the trapezoidal rule in ln t: for predicted
    noise the span of the log-SNR."""
    ends = math.log(t_min), math.log(process.horizon)
    nodes = torch.linspace(*ends, NODES, dtype=torch.float64)
    t = nodes.exp().clamp(t_min, process.horizon)
    weight = weightings.on_output(weightings.likelihood, process, prediction, t)
    return float(torch.trapezoid(weight * t, nodes))


def mean_from_nats(beta: float, elements: int, total: float) -> float:
    """B of the mean squared error from a β of nats, for `elements` D and `total_weight` W: β·D·W.

    With w = W/T a step constant this is B/2 = β·T·(w/2)·D, the relation of the discrete bound.
    """
    return beta * elements * total


def nats_from_mean(beta: float, elements: int, total: float) -> float:
    """The inverse of `mean_from_nats`."""
    return beta / (elements * total)
