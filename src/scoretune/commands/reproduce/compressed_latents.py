"""Spaces in which a score network may live: states themselves, measurements, and what is learned.

`encode` takes states [n, *S] to [n, k], `decode` takes those back to states as rows [n, d].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from scoretune.commands.reproduce.compressed_sets import States
from scoretune.compressed import BASES, Gaussian, decoder_flops, fista, in_basis, proximal
from scoretune.compressed.linear import linear_decoder

TOLERANCE, ITERATIONS = 0.3, 500
"""Of the decoder: the largest violation of optimality as a share of its weight, and its end."""
SPREAD = 0.05
"""The decoder's weight as a share of the measurements' standard deviation."""


@dataclass(frozen=True)
class Latent:
    """A space of vectors [n, dimension] for states; `operations` that decoding one state took."""

    dimension: int
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], tuple[Tensor, float]]


def ambient(states: States) -> Latent:
    """Nothing is compressed."""
    return Latent(states.dimension, lambda x: x.flatten(1), lambda z: (clipped(states, z), 0.0))


def measured(states: States, m: int, seed: int) -> Latent:
    """m Gaussian measurements, and sparse recovery in the basis and the box of the data, which
    begins at the linear guess and leaves what is below its weight at 0."""
    operator, basis = Gaussian(m, states.dimension, seed), BASES[states.basis](states.shape)
    sparse = in_basis(operator, basis)
    y = operator.forward(states.learned.flatten(1))
    guess, weight = linear_decoder(y, basis.analysis(states.learned)), SPREAD * float(y.std())
    box = states.box if states.basis == "identity" else None

    def decode(z: Tensor) -> tuple[Tensor, float]:
        begin = proximal(guess(z), weight, box)
        recovery = fista(
            sparse, z, weight, box=box, iterations=ITERATIONS, tolerance=TOLERANCE, start=begin
        )
        steps = float(recovery.iterations.double().mean())
        x = basis.synthesis(recovery.x).flatten(1)
        linear = 2 * m * states.dimension
        return clipped(states, x), linear + decoder_flops(m, states.dimension, steps)

    sparse.norm()  # once, for all that is decoded
    return Latent(m, lambda x: operator.forward(x.flatten(1)), decode)


def unrecovered(states: States, m: int, seed: int) -> Latent:
    """The same measurements and the best linear decoder of the data: no recovery."""
    operator = Gaussian(m, states.dimension, seed)
    flat = states.learned.flatten(1)
    guess = linear_decoder(operator.forward(flat), flat)

    def decode(z: Tensor) -> tuple[Tensor, float]:
        return clipped(states, guess(z)), 2.0 * m * states.dimension

    return Latent(m, lambda x: operator.forward(x.flatten(1)), decode)


def principal(states: States, k: int) -> Latent:
    """The k first principal components of the data that are learned from."""
    flat = states.learned.flatten(1)
    mean = flat.mean(0)
    axes = torch.linalg.svd(flat - mean, full_matrices=False).Vh[:k]

    def decode(z: Tensor) -> tuple[Tensor, float]:
        return clipped(states, z @ axes + mean), 2.0 * k * states.dimension

    return Latent(k, lambda x: (x.flatten(1) - mean) @ axes.T, decode)


class Autoencoder(nn.Module):
    """A variational autoencoder of one hidden layer on either side."""

    def __init__(self, dimension: int, latent: int, width: int) -> None:
        super().__init__()
        self.inward = nn.Sequential(
            nn.Linear(dimension, width), nn.SiLU(), nn.Linear(width, 2 * latent)
        )
        self.outward = nn.Sequential(
            nn.Linear(latent, width), nn.SiLU(), nn.Linear(width, dimension)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log deviations of the latents, [B, k] each."""
        mean, log_std = self.inward(x).chunk(2, 1)
        return mean, log_std.clamp(-6, 3)


def variational(states: States, k: int, *, width: int, updates: int, seed: int) -> Latent:
    """A small VAE (arXiv 1312.6114) trained here, with a hundredth of the KL: most of the
    reconstruction is kept, and latents keep a scale."""
    torch.manual_seed(seed)
    flat = states.learned.flatten(1)
    model = Autoencoder(states.dimension, k, width)
    optimiser = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    for _ in range(updates):
        x = flat[torch.randint(len(flat), (128,))]
        mean, log_std = model(x)
        missed = model.outward(mean + log_std.exp() * torch.randn_like(mean)) - x
        kl = (mean.square() + (2 * log_std).exp() - 1 - 2 * log_std).sum(1) / 2
        loss = (missed.square().sum(1) + 0.01 * kl).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.eval().requires_grad_(False)

    def decode(z: Tensor) -> tuple[Tensor, float]:
        x = clipped(states, cast(Tensor, model.outward(z)))
        return x, 2.0 * width * (k + states.dimension)

    return Latent(k, lambda x: model(x.flatten(1))[0], decode)


def clipped(states: States, x: Tensor) -> Tensor:
    """In the box of the data, if they have one."""
    return x if states.box is None else x.clamp(*states.box)
