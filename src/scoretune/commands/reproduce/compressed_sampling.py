"""Compressed-sensing diffusion with an exact score: a mixture of sparse Gaussians is sampled in its
own space and from measurements, which are decoded (arXiv 2509.03898's pipeline).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoretune.commands.reproduce.base import (
    Cell,
    Numbers,
    Page,
    by_arm,
    claim_row,
    interval,
    shown,
)
from scoretune.commands.reproduce.drawing import COLOURS, subplots
from scoretune.compressed import Gaussian, fista, statistical_dimension
from scoretune.diffusion import grids
from scoretune.diffusion.estimates import Estimate
from scoretune.diffusion.processes import VP, expand
from scoretune.diffusion.solvers import euler_maruyama

F64 = torch.float64
DIMENSION, SPARSITY, COMPONENTS, SPREAD = 128, 5, 20, 0.3
SIZES = (20, 32, 48, 64)
STEPS, END, WEIGHT = 100, 0.01, 0.01


@dataclass(frozen=True)
class Mixture:
    """Components N(mean_i, U_i diag(l_i) U_iᵀ) of equal weight: means [K, n], directions U
    [K, n, s] with orthonormal columns, and variances l [K, s]."""

    means: Tensor
    directions: Tensor
    variances: Tensor

    def measured(self, matrix: Tensor) -> Mixture:
        """The law of A x."""
        half = torch.einsum("mn,kns->kms", matrix, self.directions) * self.variances.sqrt()[:, None]
        left, singular, _ = torch.linalg.svd(half, full_matrices=False)
        return Mixture(self.means @ matrix.T, left, singular.square())

    def estimate(self, x: Tensor, t: Tensor) -> Estimate:
        """E[x0 | x_t = x] and its noise under VP, exactly."""
        process = VP()
        alpha, sigma = process.alpha(t.double())[0], process.sigma(t.double())[0]
        centred = x[:, None] - alpha * self.means
        along = torch.einsum("bkn,kns->bks", centred, self.directions)
        lifted = alpha**2 * self.variances
        share = lifted / (lifted + sigma**2)
        square = centred.square().sum(2) - (share * along.square()).sum(2)
        logs = -square / (2 * sigma**2) - (1 + lifted / sigma**2).log().sum(1) / 2
        belief = logs.softmax(1)
        inner = self.means + torch.einsum("bks,kns->bkn", along * share / alpha, self.directions)
        data = (belief[:, :, None] * inner).sum(1)
        return Estimate(data, (x - expand(alpha[None].expand(len(x)), x) * data) / sigma)


def sparse_mixture(seed: int) -> tuple[Mixture, Tensor]:
    """Means of size U(1, 3) on 5 of 128 places, deviation 0.3 there; and the places [K, d]."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.rand(COMPONENTS, DIMENSION, generator=generator).argsort(1)[:, :SPARSITY]
    sizes = 1 + 2 * torch.rand(COMPONENTS, SPARSITY, generator=generator, dtype=F64)
    signs = 2.0 * torch.randint(0, 2, sizes.shape, generator=generator) - 1
    means = torch.zeros(COMPONENTS, DIMENSION, dtype=F64).scatter(1, places, sizes * signs)
    directions = torch.zeros(COMPONENTS, DIMENSION, SPARSITY, dtype=F64)
    directions.scatter_(1, places[:, None], 1.0)
    support = torch.zeros(COMPONENTS, DIMENSION, dtype=torch.bool).scatter(1, places, True)
    return Mixture(means, directions, torch.full((COMPONENTS, SPARSITY), SPREAD**2)), support


def cells(seeds: int, quick: bool) -> list[Cell]:
    """An arm a number of measurements, the ambient sampler, and both without the last denoising."""
    count = 50 if quick else 500
    arms = [("ambient", 0, True), *((f"m={m}", m, True) for m in SIZES)]
    arms += [("ambient, noisy", 0, False), ("m=48, noisy", 48, False)]
    return [
        Cell(f"{name}-{seed}", sampled, {"m": m, "denoise": denoise, "count": count, "seed": seed})
        for name, m, denoise in arms
        for seed in range(seeds)
    ]


def sampled(m: int, denoise: bool, count: int, seed: int) -> Numbers:
    """Euler–Maruyama from the prior to t = 0.01, one denoising (Tweedie) or none, decoding; m = 0
    samples in the space itself, where nothing is decoded."""
    mixture, support = sparse_mixture(seed)
    operator = Gaussian(m, DIMENSION, seed) if m else None
    law = mixture if operator is None else mixture.measured(operator.dense.matrix)
    generator, process = torch.Generator().manual_seed(seed), VP()
    x = torch.randn(count, m or DIMENSION, generator=generator, dtype=F64)
    times = grids.uniform(process, STEPS, END, dtype=F64)
    x = euler_maruyama(process, law.estimate, x, times, generator=generator)
    sigma = float(process.sigma(times[-1:])[0])
    if denoise:
        x = law.estimate(x, times[-1:].expand(count)).data
    if operator is not None:
        weight = WEIGHT if denoise else 1.5 * sigma
        x = fista(operator, x, weight, iterations=2000, tolerance=0.01).x
    return _statistics(x, mixture, support)


def _statistics(x: Tensor, mixture: Mixture, support: Tensor) -> Numbers:
    """How samples compare with the component that they are nearest to."""
    nearest = torch.cdist(x, mixture.means).argmin(1)
    inside = support[nearest]
    largest = x.abs().topk(SPARSITY, 1).indices
    match = inside.gather(1, largest).all(1).double().mean()
    off = (x.square() * ~inside).sum(1).mean().sqrt()
    within = (x - mixture.means[nearest])[inside].square().mean()
    shares = torch.bincount(nearest, minlength=COMPONENTS) / len(x)
    return {
        "match": float(match),
        "off_support": float(off),
        "variance": float(within),
        "total_variation": float((shares - 1 / COMPONENTS).abs().sum() / 2),
    }


def present(results: dict[str, Numbers], page: Page) -> Numbers:
    """A row an arm, the claims, and a figure."""
    arms = by_arm(results)
    page.text(ABOUT.format(delta=statistical_dimension(SPARSITY, DIMENSION)))
    names = ("match", "off_support", "variance", "total_variation")
    spreads = {
        arm: {n: interval([run[n] for run in runs]) for n in names} for arm, runs in arms.items()
    }
    page.table(
        ["sampler", "support found", "off-support RMS", "variance (0.09)", "weights' TV"],
        [[arm, *(shown(spread[n]) for n in names)] for arm, spread in spreads.items()],
    )
    claims = _claims(spreads)
    page.claims(claims)
    page.text(LAST)
    page.figure("support", _figure(spreads), "support found and energy off it, by measurements")
    return {"arms": spreads, "claims": claims}


def _claims(spreads: dict[str, Numbers]) -> list[Numbers]:
    claims = []
    for m in SIZES[1:]:
        means = {name: spread[0] for name, spread in spreads[f"m={m}"].items()}
        for name, said, holds in (
            ("match", "≥ 0.99", means["match"] >= 0.99),
            ("off_support", "≤ 0.02", means["off_support"] <= 0.02),
            ("variance", "0.09 ± 0.008", abs(means["variance"] - 0.09) <= 0.008),
            ("total_variation", "≤ 0.09", means["total_variation"] <= 0.09),
        ):
            claims.append(claim_row(f"{name}, m = {m}", said, means[name], holds))
    below = spreads["m=20"]
    match, off = below["match"][0], below["off_support"][0]
    claims.append(claim_row("match below δ, m = 20", "≤ 0.4", match, match <= 0.4))
    claims.append(claim_row("off_support below δ, m = 20", "> 1", off, off > 1))
    noisy, decoded = (spreads[arm]["off_support"][0] for arm in ("ambient, noisy", "m=48, noisy"))
    claims.append(
        claim_row(
            "noise left, ambient over decoded (m = 48)",
            "≥ 2",
            noisy / decoded,
            noisy >= 2 * decoded,
        )
    )
    return claims


def _figure(spreads: dict[str, Numbers]) -> Any:
    figure, (left, right) = subplots(1, 2, size=(9, 3.6))
    for axes, name, title in (
        (left, "match", "support found"),
        (right, "off_support", "off-support RMS"),
    ):
        values = [spreads[f"m={m}"][name][0] for m in SIZES]
        axes.plot(SIZES, values, "o-", color=COLOURS[0])
        axes.axhline(spreads["ambient"][name][0], color=COLOURS[1], linestyle=":", label="ambient")
        axes.axvline(statistical_dimension(SPARSITY, DIMENSION), color=COLOURS[5], label="δ")
        axes.set_xlabel("measurements m")
        axes.set_title(title)
        axes.legend(frameon=False, fontsize=8)
    right.set_yscale("log")
    return figure


ABOUT = """
Twenty components with 5 of 128 places each, means of size U(1, 3) and deviation 0.3 there. VP from
its prior, 100 steps of Euler–Maruyama to t = 0.01 with the exact score, one denoising by Tweedie's
formula, decoding with weight 0.01. δ(5, 128) = {delta:.1f}. A support is found if the five largest
numbers of a sample are those of its nearest component.
"""
LAST = """
The two noisy samplers leave the last denoising out: what remains is noise of σ(0.01) a number, and
the decoder, with a weight of 1.5 times that, takes a good part of it away.
"""
