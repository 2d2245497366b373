"""What a network says about a noisy state, whatever it was trained to predict.

A network outputs a·x0 + b·ε. With the process's own row (α, σ) that is a 2×2 system for (x0, ε),
solved once in `read`; there are no n² converters.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from scoretune.diffusion.processes import Process, expand, rates
from scoretune.shapes import check_batch, check_same_shape


@dataclass(frozen=True)
class Estimate:
    """E[x0 | x] and E[ε | x], both [B, *S]; x = α·data + σ·noise holds by construction."""

    data: Tensor
    noise: Tensor

    def __post_init__(self) -> None:
        check_same_shape(data=self.data, noise=self.noise)


Field: TypeAlias = Callable[[Tensor, Tensor], Estimate]
"""What a network says about x [B, *S] at the times t [B]."""


@dataclass(frozen=True)
class Prediction:
    """A parameterisation: the row (a, b), each [B], of the output a·x0 + b·ε at time t."""

    name: str
    row: Callable[[Process, Tensor], tuple[Tensor, Tensor]]


def _noise_row(process: Process, t: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(t), torch.ones_like(t)


def _data_row(process: Process, t: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ones_like(t), torch.zeros_like(t)


def _v_row(process: Process, t: Tensor) -> tuple[Tensor, Tensor]:
    return -process.sigma(t), process.alpha(t)


noise = Prediction("epsilon", _noise_row)
"""ε itself. Says nothing of x0 where α = 0."""
data = Prediction("sample", _data_row)
"""x0 itself. Says nothing of ε where σ = 0."""
v = Prediction("v_prediction", _v_row)
"""v = αε − σx0 (arXiv 2202.00512)."""
velocity = Prediction("velocity", rates)
"""u = α'x0 + σ'ε, the probability-flow velocity f x − ½g²s; ε − x0 for rectified flow."""

_NAMED = {prediction.name: prediction for prediction in (noise, data, v, velocity)}


def prediction_named(name: str) -> Prediction:
    """The prediction that diffusers calls epsilon, sample or v_prediction, or velocity."""
    if name not in _NAMED:
        raise ValueError(f"unknown prediction {name!r}: choose one of {', '.join(_NAMED)}")
    return _NAMED[name]


def read(
    process: Process, prediction: Prediction, t: Tensor, x: Tensor, output: Tensor
) -> Estimate:
    """Solve [α σ; a b] [x0; ε] = [x; output] for the estimate; t [B], x and output [B, *S].

    Finite, with finite gradients, at both ends of every process. What the two equations leave open
    there is 0, the mean of standardised data and of noise: x̂0 of a noise prediction where α = 0,
    ε̂ of a data prediction where σ = 0. Where σ' = ∞ at σ = 0, a velocity's x̂0 is x/α.
    """
    check_batch(x, t=t)
    check_same_shape(x=x, output=output)
    alpha, sigma = process.alpha(t), process.sigma(t)
    if prediction is noise:  # ε̂ is the output itself
        x0 = torch.addcmul(x, expand(-sigma, x), output) / expand(_no_zero(alpha), x)
        return Estimate(x0, output)
    if prediction is data:  # x̂0 is the output itself
        eps = torch.addcmul(x, expand(-alpha, x), output) / expand(_no_zero(sigma), x)
        return Estimate(output, eps)
    a, b = prediction.row(process, t)
    determinant = alpha * b - sigma * a
    kept = torch.where(torch.isinf(b), 1 / alpha, b / determinant)
    x0 = torch.addcmul(expand(kept, x) * x, expand(-sigma / determinant, x), output)
    eps = torch.addcmul(expand(alpha / determinant, x) * output, expand(-a / determinant, x), x)
    return Estimate(x0, eps)


def _no_zero(divisor: Tensor) -> Tensor:
    """∞ in place of 0, so that what is divided by it becomes 0."""
    return divisor.masked_fill(divisor == 0, math.inf)


def target(process: Process, prediction: Prediction, t: Tensor, x0: Tensor, eps: Tensor) -> Tensor:
    """What the network should output, a·x0 + b·ε: the target of the matching loss, [B, *S]."""
    check_same_shape(x0=x0, eps=eps)
    a, b = prediction.row(process, t)
    return expand(a, x0) * x0 + expand(b, x0) * eps


def perturb(process: Process, t: Tensor, x0: Tensor, eps: Tensor) -> Tensor:
    """The noisy state x_t = α x0 + σ ε, [B, *S]."""
    check_same_shape(x0=x0, eps=eps)
    return expand(process.alpha(t), x0) * x0 + expand(process.sigma(t), x0) * eps
