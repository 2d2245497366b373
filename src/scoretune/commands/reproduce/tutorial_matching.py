"""Score matching: four losses with one minimiser, weights on time, and what a network learns.

arXiv 2402.07487 section 3. The losses' identities by simulation in ten dimensions; the spread of
the denoising loss by weight, exactly; then small networks trained on N(0, ¼) under VP.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from scoretune.commands.reproduce.base import Cell, Numbers, Page, by_arm, interval, shown
from scoretune.commands.reproduce.denoiser import Perceptron
from scoretune.commands.reproduce.drawing import COLOURS, subplots
from scoretune.diffusion.matching import score_matching, weightings
from scoretune.diffusion.processes import VP, expand
from scoretune.diffusion.theory import gaussian

PROCESS, VARIANCE = VP(), 0.25
ENDS = {1e-5: 0.1736, 1e-3: 0.1717, 1e-2: 0.1650}  # t_min: least loss with weight σ²
ARMS = {  # loss, weight on the error of ε̂, law of times
    "denoising": ("denoising", "noise", "uniform"),
    "sliced": ("sliced", "noise", "uniform"),
    "implicit": ("implicit", "noise", "uniform"),
    "likelihood": ("denoising", "likelihood", "uniform"),
    "likelihood, importance": ("denoising", "likelihood", "importance"),
}
SPREADS = {  # weight: of the denoising loss at its minimum, std/mean by t_min, as expected
    "σ²": (3.14, 3.14, 3.14),
    "g², uniform times": (45.7, 8.7, 5.4),
    "1": (81.0, 18.5, 9.4),
    "g², times ∝ g²/σ²": (2.08, 2.34, 2.65),
}


def cells(seeds: int, quick: bool) -> list[Cell]:
    """The identities, then every arm and seed."""
    points, updates = (2_000, 10) if quick else (400_000, 3000)
    return [
        Cell("identities", identities, {"points": points}),
        Cell("floors", floors, {}),
        *(
            Cell(f"{arm}-{seed}", learned, {"arm": arm, "seed": seed, "updates": updates})
            for seed in range(seeds)
            for arm in ARMS
        ),
    ]


def identities(points: int) -> Numbers:
    """Mean and variance of each loss of ŝ = −x/1.3 on N(0, diag(.5 … 2)), ten dimensions."""
    spread = torch.linspace(0.5, 2.0, 10, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(points, 10, generator=generator, dtype=torch.float64) * spread.sqrt()

    def score(at: Tensor) -> Tensor:
        return -at / 1.3

    information = (
        (x**2 / spread**2).sum(1).mean()
    )  # E‖∇ ln p‖², which explicit and implicit differ by
    losses = {
        "explicit − E‖∇ ln p‖²": score_matching.explicit(score(x), -x / spread) - information,
        "implicit": score_matching.implicit(score, x),
        "sliced": score_matching.sliced(
            score, x, directions="gaussian", reduced=False, generator=generator
        ),
        "sliced, reduced, Gaussian": score_matching.sliced(
            score, x, directions="gaussian", generator=generator
        ),
        "sliced, reduced, Rademacher": score_matching.sliced(score, x, generator=generator),
    }
    return {
        n: [float(each.detach().mean()), float(each.detach().var())] for n, each in losses.items()
    }


def floors() -> Numbers:
    """Least losses by t_min, and the loss's spread by weight, by quadrature."""
    numbers: Numbers = {"least": {}, "spread": {name: [] for name in SPREADS}}
    for start in ENDS:
        t, share = _quadrature(start)
        alpha, sigma = PROCESS.alpha(t), PROCESS.sigma(t)
        # σŝ + ε ~ N(0, α²s²/v) at the minimum: the square has mean a and second moment 3a².
        least = alpha**2 * VARIANCE / gaussian.state_variance(PROCESS, t, VARIANCE)
        numbers["least"][f"{start:g}"] = float((share * least).sum())
        g_sq = PROCESS.sde(t)[1]
        weights = {"σ²": torch.ones_like(t), "g², uniform times": g_sq / sigma**2}
        weights["1"] = 1 / sigma**2
        for name, weight in weights.items():
            numbers["spread"][name].append(_spread(share, weight * least))
        drawn = share * g_sq / sigma**2  # times in proportion to g²/σ² weigh alike
        numbers["spread"]["g², times ∝ g²/σ²"].append(_spread(drawn / drawn.sum(), least))
    return numbers


def _quadrature(start: float, points: int = 200_001) -> tuple[Tensor, Tensor]:
    """Times from `start` to 1, equal in ln t, and the share of uniform times near each."""
    t = torch.logspace(math.log10(start), 0, points, dtype=torch.float64)
    share = torch.zeros_like(t)
    share[:-1] += t.diff() / 2
    share[1:] += t.diff() / 2
    return t, share / share.sum()


def _spread(share: Tensor, scale: Tensor) -> float:
    """std/mean of scale·χ²₁."""
    mean, square = float((share * scale).sum()), float((3 * share * scale**2).sum())
    return math.sqrt(square - mean**2) / mean


def learned(arm: str, seed: int, updates: int, start: float = 1e-5) -> Numbers:
    """Train ŝ = −F(x, ln ρ)/σ; its loss with weight σ², and its slope at a few times."""
    loss, weight, times = ARMS[arm]
    torch.manual_seed(seed)
    network = Perceptron(1, 64)
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)
    for _ in range(updates):
        share = torch.rand(256, dtype=torch.float64)
        t, factor = weightings.TIMES[times](PROCESS, share, start)
        sigma = PROCESS.sigma(t)
        each = _loss(network, loss, t, sigma)
        emphasis = factor * weightings.WEIGHTS[weight](PROCESS, t) * sigma**2
        optimiser.zero_grad()
        (emphasis * each).mean().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        optimiser.step()
        schedule.step()
    return judged(network, start)


def _loss(network: Perceptron, loss: str, t: Tensor, sigma: Tensor) -> Tensor:
    """One loss of the score for each time, [B]."""
    eps = torch.randn(len(t), 1)
    x0 = math.sqrt(VARIANCE) * torch.randn(len(t), 1)
    x = expand(PROCESS.alpha(t), x0) * x0 + expand(sigma, x0) * eps

    def score(at: Tensor) -> Tensor:
        return noise_of(network, at, t) / -expand(sigma, at)

    if loss == "denoising":
        return score_matching.denoising(score(x), eps, sigma)
    form = score_matching.implicit if loss == "implicit" else score_matching.sliced
    return form(score, x)


def noise_of(network: Perceptron, x: Tensor, t: Tensor) -> Tensor:
    """ε̂ of the network at ¼ ln ρ."""
    ratio = PROCESS.sigma(t) / PROCESS.alpha(t)
    noise: Tensor = network(x, torch.log(ratio).float() / 4)
    return noise


@torch.no_grad()
def judged(network: Perceptron, start: float) -> Numbers:
    """The loss with weight σ², as its least value and what E‖ε̂ − E[ε|x]‖² adds, and slopes."""
    times, share = _quadrature(start, 2001)
    nodes = torch.linspace(-3, 3, 41)
    weight = torch.exp(-(nodes.double() ** 2) / 2)
    weight = weight / weight.sum()
    spread = gaussian.state_variance(PROCESS, times, VARIANCE).sqrt()
    x = (spread[:, None] * nodes).float().reshape(-1, 1)
    predicted = noise_of(network, x, times.repeat_interleave(41)).view(-1, 41).double()
    exact = (PROCESS.sigma(times) / spread)[:, None] * nodes
    least = PROCESS.alpha(times) ** 2 * VARIANCE / spread**2
    excess = float((share * ((predicted - exact) ** 2 * weight).sum(1)).sum())
    slopes = ((predicted * nodes * weight).sum(1) / (nodes**2 * weight).sum()) / spread
    picked = [int((times - t).abs().argmin()) for t in (0.03, 0.1, 0.3, 1.0)]
    true = PROCESS.sigma(times) / spread**2
    return {
        "least": float((share * least).sum()),
        "excess": excess,
        "slopes": [float(slopes[k] / true[k]) for k in picked],
    }


# ------------------------------------------------------------------------------------ the page


def present(results: dict[str, Numbers], page: Page) -> Numbers:
    """Identities, floors and spreads, what was learned."""
    page.text(IDENTITIES)
    rows = [[n, f"{m:.3f}", f"{v:.1f}"] for n, (m, v) in results["identities"].items()]
    page.table(["loss", "mean", "variance of one sample"], rows)
    page.text(SPREAD)
    least = results["floors"]["least"]
    columns = [f"t ≥ {start:g}" for start in ENDS]
    rows = [["least loss, σ²", *(f"{least[f'{s:g}']:.4f} ({e:.4f})" for s, e in ENDS.items())]]
    for name, expected in SPREADS.items():
        pairs = zip(results["floors"]["spread"][name], expected, strict=True)
        rows.append([f"std/mean, {name}", *(f"{a:.2f} ({b:g})" for a, b in pairs)])
    page.table(["", *columns], rows)
    page.text(LEARNED)
    arms, rows, numbers = by_arm(results), [], dict[str, Any]()
    for arm in ARMS:
        runs = arms[arm]
        loss = interval([run["least"] + run["excess"] for run in runs])
        excess = interval([run["excess"] / run["least"] for run in runs])
        slopes = [sum(c) / len(c) for c in zip(*(run["slopes"] for run in runs), strict=True)]
        numbers[arm] = {"loss": loss, "excess": excess, "slopes": slopes}
        texts = [f"{slope:.3f}" for slope in slopes]
        rows.append([arm, shown(loss, 4), shown(excess, 2, scale=100), *texts])
    heads = [f"slope at t = {t:g}" for t in (0.03, 0.1, 0.3, 1.0)]
    page.table(["trained with", "loss with weight σ²", "excess, %", *heads], rows)
    page.figure("matching", _draw(results["floors"]), "spread of the denoising loss by weight")
    return {"identities": results["identities"], "floors": results["floors"], "learned": numbers}


def _draw(exact: Numbers) -> Any:
    figure, axes = subplots(size=(7.2, 3.6), grid="y")
    for k, (name, values) in enumerate(exact["spread"].items()):
        places = [j + (k - 1.5) * 0.2 for j in range(len(values))]
        axes.bar(places, values, 0.18, color=COLOURS[k], label=f"weight {name}")
    axes.set_xticks(range(len(ENDS)), [f"t from {start:g}" for start in ENDS])
    axes.set(yscale="log", ylabel="std / mean of one sample's loss", ylim=(1, 100))
    axes.set_yticks((1, 2, 5, 10, 20, 50, 100), ("1", "2", "5", "10", "20", "50", "100"))
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize="small")
    return figure


IDENTITIES = """
## One minimiser

Data N(0, diag(0.5 … 2)) in ten dimensions, ŝ = −x/1.3. The means agree, as Thm 3.1 and the
definition of the sliced loss say; what differs is how noisy one sample is. The Jacobian is
isotropic here, so that Rademacher directions cost nothing.
"""
SPREAD = """
## Weights and floors

VP, data N(0, ¼). The least value of the denoising loss with weight σ², and std/mean of one sample's
loss at its minimum, both by quadrature; in brackets what an independent simulation found.
The likelihood weight g² needs times drawn in proportion to g²/σ².
"""
LEARNED = """
## Learned

A perceptron with 64 units in two layers, 3,000 updates in batches of 256, t from 1e-5. The loss
is its least value plus the exact excess of the learned score; mean and 95 % interval over seeds.
The slope of the learned score is given as a share of the exact −1/v.
"""
