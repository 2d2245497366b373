"""The dispersion of a prompt from an entropy, and whether learning with that estimate is enough.

After arXiv 2405.14953: −ln φ̂ = −φ*·ln H̄, H̄ the entropy of the answers over its largest value.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from scoretune.commands.reproduce.arms import ARMS, learned_rewards, same, shares
from scoretune.commands.reproduce.base import Cell, Numbers, Page, by_arm, interval, shown
from scoretune.commands.reproduce.drawing import COLOURS, subplots
from scoretune.preference import dispersion, phi_star, scale_of_phi, vote_agreement, vote_entropy
from scoretune.preference.mallows import ranking_law

F64 = torch.float64
PHIS = torch.linspace(0.05, 0.95, 19, dtype=F64)
PROMPTS = (0.2, 0.35, 0.5, 0.65, 0.8, 0.9)
SCALES = (
    "none (DPO)",
    "the true φ",
    "entropy of the top choice",
    "entropy of the votes",
    "log odds of the votes",
)


def cells(seeds: int, quick: bool) -> list[Cell]:
    """Entropies, exactly, and learning with what they say, from votes."""
    return [
        *(Cell(f"entropies-{n}", entropies, {"n": n}) for n in (4, 5, 6)),
        *(
            Cell(f"prompts-{seed}", prompts, {"votes": 100 if quick else 2000, "seed": seed})
            for seed in range(seeds)
        ),
    ]


def _entropy(phi: float, n: int, *, rankings: bool) -> float:
    """The entropy over its largest value of whole rankings, or of the top choice, ∝ φ^rank."""
    if rankings:
        law, most = ranking_law(n, phi)[1], math.lgamma(n + 1)
    else:
        law, most = torch.softmax(math.log(phi) * torch.arange(n, dtype=F64), 0), math.log(n)
    return float(torch.special.entr(law).sum()) / most


def entropies(n: int) -> Numbers:
    """−ln H̄ against −ln φ: their correlation, the slope φ* of least squares, and its errors."""
    kept: Numbers = {}
    target = -torch.log(PHIS)
    for name, rankings in (("rankings", True), ("top choice", False)):
        values = [_entropy(phi, n, rankings=rankings) for phi in PHIS.tolist()]
        x = -torch.log(torch.tensor(values, dtype=F64))
        slope = float(x @ target / (x @ x))
        ratio = slope * x / target
        kept[name] = {
            "x": x.tolist(),
            "correlation": float(torch.corrcoef(torch.stack([x, target]))[0, 1]),
            "monotone": bool((x.diff() < 0).all()),
            "phi_star": slope,
            "disordered": float(ratio[PHIS > 0.7].mean()),
        }
    return kept


def _scales(label: list[Tensor], votes: int) -> dict[str, Tensor]:
    """c(x) of every prompt by each estimate, with mean 1; DPO has 1 for all."""
    true = scale_of_phi(torch.tensor(PROMPTS, dtype=F64))
    top = torch.tensor([_entropy(phi, ARMS, rankings=False) for phi in PROMPTS], dtype=F64)
    counts = [(votes * one, votes * (1 - one)) for one in label]
    voted = torch.stack([vote_entropy(*count).mean() for count in counts])
    agreed = torch.stack([vote_agreement(*count).mean() for count in counts])
    return {
        SCALES[0]: torch.ones_like(true),
        SCALES[1]: true / true.mean(),
        SCALES[2]: dispersion(top, phi_star(top)),
        SCALES[3]: dispersion(voted, phi_star(voted)),
        SCALES[4]: agreed / agreed.mean(),
    }


def prompts(votes: int, seed: int) -> Numbers:
    """Six prompts with one order of arms and θ-votes of their own dispersion: ranges of rewards."""
    label = [shares(phi, "theta", votes, 100 * seed + k) for k, phi in enumerate(PROMPTS)]
    return {
        name: [
            float(-learned_rewards(one, "mallows_theta", same(float(scale)))[-1])
            for one, scale in zip(label, scales, strict=True)
        ]
        for name, scales in _scales(label, votes).items()
    }


def present(results: dict[str, Numbers], page: Page) -> Numbers:
    """How well entropy tells the dispersion, and what learning with it is worth."""
    page.text(ABOUT)
    rows, claims = [], []
    for n in (4, 5, 6):
        for name, kept in results[f"entropies-{n}"].items():
            holds = kept["correlation"] > 0.98 and kept["monotone"]
            claims.append({"of": f"{name}, n = {n}", "holds": holds} | kept)
            rows.append(
                [
                    f"{name}, n = {n}",
                    f"{kept['correlation']:.4f}",
                    "yes" if kept["monotone"] else "no",
                    f"{kept['phi_star']:.3f}",
                    f"{kept['disordered']:.3f}",
                    "yes" if holds else "no",
                ]
            )
    columns = ["entropy of", "correlation (> 0.98)", "monotone", "φ* (about 1.5 to 2)"]
    page.table([*columns, "estimate over truth, φ > 0.7 (below 1)", "holds"], rows)
    runs = by_arm(results)["prompts"]
    page.text(PROMPT.format(seeds=len(runs)))
    ranges = {
        name: [interval([run[name][k] for run in runs]) for k in range(len(PROMPTS))]
        for name in SCALES
    }
    ratios = {name: interval([max(run[name]) / min(run[name]) for run in runs]) for name in SCALES}
    page.table(
        ["scale c(x) from", *(f"φ = {phi}" for phi in PROMPTS), "largest over smallest"],
        [
            [name, *(f"{spread[0]:.2f}" for spread in ranges[name]), shown(ratios[name], 2)]
            for name in SCALES
        ],
    )
    page.figure("dispersion", _figure(results, ranges), "entropy against dispersion")
    return {"claims": claims, "ranges": ranges, "ratios": ratios}


def _figure(results: dict[str, Numbers], ranges: dict[str, Any]) -> Any:
    """Left −ln H̄ against −ln φ; right the range of rewards that each scale gives a prompt."""
    figure, (entropy, reward) = subplots(1, 2, size=(10, 4))
    target = (-torch.log(PHIS)).tolist()
    for colour, n in zip(COLOURS, (4, 5, 6), strict=False):
        for name, style in (("rankings", "-"), ("top choice", ":")):
            x = results[f"entropies-{n}"][name]["x"]
            entropy.plot(x, target, style, color=colour, label=f"{name}, n = {n}")
    entropy.set_xlabel("−ln H̄")
    entropy.set_ylabel("−ln φ")
    entropy.legend(frameon=False, fontsize=8)
    for colour, name in zip(COLOURS, SCALES, strict=False):
        means, low, high = zip(*ranges[name], strict=True)
        reward.plot(PROMPTS, means, "o-", color=colour, markersize=4, label=name)
        reward.fill_between(PROMPTS, low, high, color=colour, alpha=0.18, linewidth=0)
    reward.set_yscale("log")
    reward.set_xlabel("dispersion φ of the prompt")
    reward.set_title("reward of the best less that of the worst arm")
    reward.legend(frameon=False, fontsize=8)
    return figure


ABOUT = """
Entropies of Mallows-φ over their largest values, for nineteen dispersions from 0.05 to 0.95: of all
rankings of n items, and of which of them comes first. φ* is the slope of least squares of −ln φ on
−ln H̄ through 0.
"""

PROMPT = """
Six prompts with the same order of five arms, whose votes by Mallows-θ differ in dispersion. Learned
with Mallows-θ under five scales c(x), each with mean 1. The rewards of the best less the worst arm
should be alike on all prompts; means over {seeds} seeds, and the largest of a seed's six over its
smallest with its 95 % interval.
"""
