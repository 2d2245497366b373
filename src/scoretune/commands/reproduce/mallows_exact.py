"""MallowsPO where nothing is random: pair laws, what each loss learns from them, and optima.

After arXiv 2405.14953. Everything is enumerated or solved; seeds make no difference.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from scoretune.commands.reproduce.arms import (
    GAPS,
    RANKS,
    learned_rewards,
    policy_kl,
    same,
    shares,
)
from scoretune.commands.reproduce.base import Cell, Numbers, Page, claim_row
from scoretune.commands.reproduce.drawing import COLOURS, subplots
from scoretune.preference import (
    expected_psi,
    mallows_probability,
    regularised_optimum,
    scale_of_phi,
)
from scoretune.preference.mallows import Kind, log_probability, ranking_law
from scoretune.preference.psi_po import Transform

F64 = torch.float64
PHIS = (0.2, 0.607, 0.9)
RANGE = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.607, 0.7, 0.8, 0.9, 0.95)


def cells(seeds: int, quick: bool) -> list[Cell]:
    """Few, since nothing is random."""
    return [
        Cell("pair-laws", pair_laws, {"most": 4 if quick else 6}),
        Cell("smoothed", smoothed, {}),
        *(Cell(f"learned-{phi}", learned, {"phi": phi}) for phi in (PHIS if quick else RANGE)),
        *(Cell(f"optimum-{phi}", optima, {"phi": phi}) for phi in (0.3, 0.8)),
    ]


def _marginals(n: int, phi: float, kind: Kind) -> torch.Tensor:
    """P(item 0 before item j), j = 1 … n − 1, over all rankings."""
    orders, law = ranking_law(n, phi, kind)
    return torch.stack([law @ (orders[:, 0] < orders[:, j]).double() for j in range(1, n)])


def pair_laws(most: int) -> Numbers:
    """The largest distances of pairs' marginals from the two laws, over all rankings."""
    phis = (0.05, 0.2, 0.607, 0.9, 0.99)
    apart = {}
    for kind in ("phi", "theta"):
        for n in range(2, most + 1):
            law = [mallows_probability(GAPS.new_tensor(range(1, n)), p, kind) for p in phis]
            exact = [_marginals(n, p, kind) for p in phis]
            errors = [float((a - b).abs().max()) for a, b in zip(law, exact, strict=True)]
            apart[f"{kind}, n = {n}"] = max(errors)
    points = {str(p): _marginals(most, p, "phi").tolist() for p in (0.1, 0.3, 0.607, 0.9)}
    return {"apart": apart, "points": points}


def smoothed() -> Numbers:
    """The link near its jump: steps of value and slope at ±0.1, and whether it rises everywhere."""
    step, value_step, slope_step, rises = 1e-12, 0.0, 0.0, True
    for phi in (1e-6, 0.05, 0.2, 0.607, 0.9, 0.999, 1.0):
        for seam in (-0.1, 0.1):
            s = torch.tensor([seam - step, seam + step], dtype=F64, requires_grad=True)
            value = log_probability(s, phi).exp()
            (slope,) = torch.autograd.grad(value.sum(), s)
            value_step = max(value_step, float((value[1] - value[0]).detach().abs()))
            slope_step = max(slope_step, float((slope[1] - slope[0]).abs()))
        line = torch.linspace(-2, 2, 401, dtype=F64)
        rises = rises and bool((log_probability(line, phi).diff() > 0).all())
    far = log_probability(torch.tensor([-30.0, 0.0, 30.0], dtype=F64), 0.2)
    finite = bool(torch.isfinite(far).all())
    return {"value": value_step, "slope": slope_step, "rises": rises, "finite": finite}


def learned(phi: float) -> Numbers:
    """The rewards that each loss learns from the laws themselves, and its policy's KL."""
    theta, kendall = (shares(phi, kind, None) for kind in ("theta", "phi"))
    rewards = {
        "Mallows-θ on θ-data": learned_rewards(theta, "mallows_theta", scale_of_phi(same(phi))),
        "Mallows-φ on φ-data": learned_rewards(kendall, "mallows_phi", same(phi)),
        "DPO on θ-data": learned_rewards(theta, "dpo"),
        "DPO on φ-data": learned_rewards(kendall, "dpo"),
    }
    return {
        name: {"rewards": values.tolist(), "kl": policy_kl(values)}
        for name, values in rewards.items()
    }


def optima(phi: float) -> Numbers:
    """How far the optima of both Ψ are from π_ref e^{−μ0/β}, each on its own law."""
    reference = torch.tensor([0.1, 0.3, 0.2, 0.25, 0.15], dtype=F64)
    expected = regularised_optimum(-RANKS, reference, 0.7)
    apart = {}
    laws: tuple[tuple[str, Kind, Transform], ...] = (
        ("Mallows-θ", "theta", "mallows_theta"),
        ("Mallows-φ", "phi", "mallows_phi"),
    )
    for name, kind, transform in laws:
        preferred = mallows_probability(RANKS[None] - RANKS[:, None], phi, kind)
        values = expected_psi(preferred, reference, transform, phi)
        best = regularised_optimum(values, reference, 0.7)
        apart[name] = float((best - expected).abs().max())
    return {"apart": apart}


def present(results: dict[str, Numbers], page: Page) -> Numbers:
    """One table of what the theory says and what was measured, and two panels."""
    page.text(ABOUT)
    claims = _claims(results)
    page.claims(claims)
    page.text(COLLAPSE)
    rows, phis = [], _phis(results)
    for phi in phis:
        kept = results[f"learned-{phi}"]
        ranges = [-kept[name]["rewards"][-1] for name in kept]
        kls = [kept[name]["kl"] for name in ("Mallows-φ on φ-data", "DPO on φ-data")]
        rows.append([phi, *(f"{r:.3f}" for r in ranges), *(f"{kl:.4f}" for kl in kls)])
    names = [*results[f"learned-{phis[0]}"], "KL, Mallows-φ", "KL, DPO on φ-data"]
    page.table(["φ", *names], rows)
    page.figure("laws", _figure(results), "pair laws of Mallows' models, and rewards learned")
    return {"claims": claims, "learned": {str(p): results[f"learned-{p}"] for p in phis}}


def _phis(results: dict[str, Numbers]) -> list[float]:
    return [phi for phi in RANGE if f"learned-{phi}" in results]


def _claims(results: dict[str, Numbers]) -> list[Numbers]:
    apart = results["pair-laws"]["apart"]
    kendall = max(value for name, value in apart.items() if name.startswith("phi"))
    spearman = {name: value for name, value in apart.items() if name.startswith("theta")}
    last = list(spearman)[-1]
    claims = [
        ("g_φ is the pair marginal of Kendall's model for every n", "< 1e-12", kendall, 1e-12),
        ("σ(−2 ln φ·s) is Spearman's for n = 2", "< 1e-12", spearman["theta, n = 2"], 1e-12),
    ]
    rows = [_row(claim, said, value, value < most) for claim, said, value, most in claims]
    far = spearman[last]
    rows.append(_row(f"… and is not for {last[7:]}", "> 0.03", far, far > 0.03))
    for phi in PHIS:
        kept = results[f"learned-{phi}"]
        for name, factor in (
            ("Mallows-θ on θ-data", 1.0),
            ("Mallows-φ on φ-data", 1.0),
            ("DPO on θ-data", -2 * math.log(phi)),
        ):
            rewards = torch.tensor(kept[name]["rewards"], dtype=F64)
            error = float((rewards + factor * RANKS).abs().max())
            said = f"{-factor:.4g} a rank, within 1e-3"
            shown = f"{float(rewards[1]):.6f}, largest error {error:.1e}"
            rows.append(_row(f"{name}, φ = {phi}: rewards", said, shown, error < 1e-3))
    for phi in (0.3, 0.8):
        for name, error in results[f"optimum-{phi}"]["apart"].items():
            claim = f"optimum of Ψ of {name}, φ = {phi}, is π_ref e^(−μ0/β)"
            rows.append(_row(claim, "< 1e-12", error, error < 1e-12))
    near = results["smoothed"]
    for what in ("value", "slope"):
        claim = f"step of the smoothed link's {what} at ±0.1"
        rows.append(_row(claim, "< 1e-9", near[what], near[what] < 1e-9))
    sound = near["rises"] and near["finite"]
    rows.append(
        _row("the link rises, and is finite at ±30", "yes", "yes" if sound else "no", sound)
    )
    return rows


def _row(claim: str, expected: str, measured: float | str, holds: bool) -> Numbers:
    return claim_row(claim, expected, measured, holds, digits=2)


def _figure(results: dict[str, Numbers]) -> Any:
    """Left both pair laws, with enumerated marginals as dots; right the range of rewards."""
    figure, (laws, ranges) = subplots(1, 2, size=(10, 4))
    line = torch.linspace(0.001, 5, 200, dtype=F64)
    for colour, (phi, points) in zip(COLOURS, results["pair-laws"]["points"].items(), strict=False):
        law = mallows_probability(line, float(phi))
        laws.plot(line, law, color=colour, label=f"φ = {phi}")
        logistic = mallows_probability(line, float(phi), "theta")
        laws.plot(line, logistic, color=colour, linestyle=":")
        laws.plot(range(1, len(points) + 1), points, "o", color=colour, markersize=4)
    laws.set_xlabel("ranks apart")
    laws.set_ylabel("P(the better is preferred)")
    laws.set_title("Mallows-φ (lines, dots enumerated), Mallows-θ (dotted)")
    laws.legend(frameon=False, fontsize=8, loc="lower right")
    phis = _phis(results)
    for colour, name in zip(COLOURS, results[f"learned-{phis[0]}"], strict=False):
        spread = [-results[f"learned-{phi}"][name]["rewards"][-1] for phi in phis]
        ranges.plot(phis, spread, "o-", color=colour, markersize=4, label=name)
    ranges.set_yscale("log")
    ranges.set_xlabel("dispersion φ")
    ranges.set_title("reward of the best less that of the worst arm")
    ranges.legend(frameon=False, fontsize=8)
    return figure


ABOUT = """
Rankings of Mallows' two models (φ counts inversions, θ compares pairs by the logistic law), a
bandit of five arms 0 … 4 in that order, a uniform reference and β = ½. Rewards are β ln(π/π_ref)
where a loss is least on the law of the pairs itself, less that of the best arm; a loss that suits
the data gives 0, −1, −2, −3, −4.
"""

COLLAPSE = """
Rewards of the best less the worst arm, by dispersion. DPO's grow without bound as people agree
(φ → 0): on a prompt that all rank alike it leaves the reference behind. Mallows' losses learn the
same ranking at any dispersion, and the same KL to the reference.
"""
