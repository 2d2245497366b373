"""Laws of learning from preferences: the general loss, Mallows' models, and what follows."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from scoretune.commands.doctor.laws.base import Law, measurement
from scoretune.preference import (
    PRESETS,
    dispersion,
    expected_calibration_error,
    expected_psi,
    fit_scores,
    fit_votes,
    mallows_probability,
    outcome_log_probs,
    pair_information,
    pairwise_loss,
    phi_star,
    regularised_optimum,
    rejection_sample,
    scale_of_phi,
    single_loss,
)
from scoretune.preference.links import cauchy
from scoretune.preference.listwise import tied_plackett_luce
from scoretune.preference.mallows import Kind, ranking_law
from scoretune.preference.psi_po import Transform
from scoretune.preference.ties import TieModel

F64 = torch.float64
PHI, ITEMS, BETA = 0.607, 5, 0.5


def _sides(device: torch.device) -> tuple[Tensor, ...]:
    """Log-likelihoods of six pairs under policy and reference, all below 0."""
    wave = torch.sin(torch.arange(1, 25, dtype=F64, device=device) ** 2)
    return tuple((3 * wave - 6).view(4, 6))


def _lengths(device: torch.device) -> tuple[Tensor, Tensor]:
    count = torch.arange(1, 7, dtype=F64, device=device)
    return count + 2, 9 - count


# ---------------------------------------------------------------------------- the general loss


def at_the_reference(device: torch.device) -> float:
    """DPO's loss where the policy is its reference."""
    _, _, first, second = _sides(device)
    return float(pairwise_loss(first, second, first, second, beta=BETA).mean())


def slope_at_the_reference(device: torch.device) -> float:
    """dL/d ln π(y_w) there, for β = ½."""
    _, _, first, second = _sides(device)
    with torch.enable_grad():
        moved = first.clone().requires_grad_()
        loss = pairwise_loss(moved, second, first, second, beta=BETA)
        (slope,) = torch.autograd.grad(loss.sum(), moved)
    return float(slope.mean())


@measurement
def equal_presets(device: torch.device, changes: dict[str, float], name: str) -> float:
    """Largest difference of RainbowPO with its switches set from another preset."""
    changed = replace(PRESETS["rainbow"], **changes)  # type: ignore[arg-type]
    sides, lengths = _sides(device), _lengths(device)
    ones = torch.ones_like(sides[0])
    rainbow = pairwise_loss(*sides, preset=changed, beta=BETA, lengths=lengths, scale=ones)
    other = pairwise_loss(*sides, preset=name, beta=BETA, lengths=lengths)
    return float((rainbow - other).abs().max())


def exchanged(device: torch.device) -> float:
    """Largest change of any preset's loss when sides, label and margin change places."""
    w, l, rw, rl = _sides(device)
    up, down = _lengths(device)
    label = torch.linspace(0, 1, 6, dtype=F64, device=device)
    scale, weight = 0.3 + label / 2, 1 + label
    worst = 0.0
    for preset in PRESETS.values():
        if preset.kind == "pair":
            loss = partial(pairwise_loss, preset=preset, scale=scale, weight=weight)
            one = loss(w, l, rw, rl, lengths=(up, down), margin=w, label=label)
            other = loss(l, w, rl, rw, lengths=(down, up), margin=-w, label=1 - label)
            size = one.abs().clamp(min=1)  # exponentials of f-DPO are large
            worst = max(worst, float(((one - other) / size).abs().max()))
    return worst


def robust_on_average(device: torch.device) -> float:
    """Largest difference of robust DPO from DPO, on average over labels that flip with its ε."""
    sides = _sides(device)
    one, zero = torch.ones_like(sides[0]), torch.zeros_like(sides[0])
    right, wrong = (pairwise_loss(*sides, preset="robust", label=label) for label in (one, zero))
    return float((0.9 * right + 0.1 * wrong - pairwise_loss(*sides)).abs().max())


def couple(device: torch.device) -> float:
    """Largest difference of KTO without a baseline, on a liked and a disliked, from APO-zero."""
    w, l, rw, rl = _sides(device)
    ones, none = torch.ones_like(w), torch.zeros((), dtype=F64, device=device)
    both = single_loss(w, rw, ones, baseline=none) + single_loss(l, rl, 0 * ones, baseline=none)
    return float((both - pairwise_loss(w, l, rw, rl, preset="apo_zero")).abs().max())


def curvature_of_cauchy(device: torch.device) -> float:
    """f''(0) of −ln(½ + atan(z)/π)."""
    with torch.enable_grad():
        z = torch.zeros((), dtype=F64, device=device, requires_grad=True)
        (slope,) = torch.autograd.grad(cauchy(z), z, create_graph=True)
        (curvature,) = torch.autograd.grad(slope, z)
    return float(curvature)


# ---------------------------------------------------------------------------- Mallows' models


def _ranks(device: torch.device) -> Tensor:
    return torch.arange(ITEMS, dtype=F64, device=device)


def pair_law(device: torch.device) -> float:
    """Largest difference of g_φ from the marginals of the Kendall model of five items."""
    orders, law = (tensor.to(device) for tensor in ranking_law(ITEMS, PHI))
    first = torch.stack([law @ (orders[:, 0] < orders[:, j]).to(law) for j in range(1, ITEMS)])
    return float((first - mallows_probability(_ranks(device)[1:], PHI)).abs().max())


@measurement
def probability(device: torch.device, gap: float, kind: Kind) -> float:
    """P(y1 > y2) of two items so many ranks apart, φ = 0.607."""
    return float(mallows_probability(torch.tensor(gap, dtype=F64, device=device), PHI, kind))


@measurement
def slope_at_the_truth(device: torch.device, kind: Kind) -> float:
    """The largest slope of Mallows' loss over all pairs of its own law, at r = −rank."""
    ranks = _ranks(device)
    i, j = torch.triu_indices(ITEMS, ITEMS, 1, device=device)
    label = mallows_probability(ranks[j] - ranks[i], PHI, kind)
    phi = torch.full_like(label, PHI)
    scale = phi if kind == "phi" else scale_of_phi(phi)
    with torch.enable_grad():
        policy = (-ranks / BETA).requires_grad_()
        none = torch.zeros_like(label)
        loss = pairwise_loss(
            policy[i], policy[j], none, none, preset=f"mallows_{kind}", beta=BETA, scale=scale,
            label=label,
        )  # fmt: skip
        (slope,) = torch.autograd.grad(loss.sum(), policy)
    return float(slope.abs().max())


@measurement
def optimum_of_psi(device: torch.device, kind: Kind) -> float:
    """Largest difference of the KL-regularised optimum from π_ref e^{−μ0/β} on its own law."""
    ranks = _ranks(device)
    reference = torch.softmax(torch.sin(ranks), 0)
    preferred = mallows_probability(ranks[None] - ranks[:, None], PHI, kind)
    transform: Transform = "mallows_phi" if kind == "phi" else "mallows_theta"
    values = expected_psi(preferred, reference, transform, PHI)
    best = regularised_optimum(values, reference, BETA)
    return float((best - regularised_optimum(-ranks, reference, BETA)).abs().max())


def mean_scale(device: torch.device) -> float:
    """The mean of c(x) over the entropies that gave φ*."""
    entropies = torch.linspace(0.02, 0.9, 50, dtype=F64, device=device)
    return float(dispersion(entropies, phi_star(entropies)).mean())


def first_accepted(device: torch.device) -> float:
    """How often the worse of two candidates is accepted first, Δ = 0.4 and τ = 0.5."""
    pools = torch.tensor([0.0, 0.4], dtype=F64).expand(100_000, 2)
    drawn = rejection_sample(pools, 1, 0.5, torch.Generator().manual_seed(0))
    return float((drawn == 0).double().mean())


# ---------------------------------------------------------------------------- votes


@measurement
def tie_probability(device: torch.device, model: TieModel, tie: float) -> float:
    """P(tie) of two things whose worths are 3 and 1."""
    gap = torch.tensor(math.log(3), dtype=F64, device=device)
    return float(outcome_log_probs(gap, model, tie)[1].exp())


def fitted_error(device: torch.device) -> float:
    """The standard error of a score gap that won three votes of four."""
    fit = fit_votes(torch.ones(1, 1), torch.tensor([[3, 0, 1]]), model="bradley_terry")
    return float(fit.errors)


def recovered_scores(device: torch.device) -> float:
    """Largest error of scores that are fitted to the exact shares of Davidson's law."""
    truth = torch.linspace(-1, 1, 5, dtype=F64)
    pairs = torch.combinations(torch.arange(5))
    shares = outcome_log_probs(truth[pairs[:, 0]] - truth[pairs[:, 1]], "davidson", 0.5).exp()
    return float((fit_scores(pairs, shares, 5, ridge=1e-7).estimates - truth).abs().max())


def tied_ranking(device: torch.device) -> float:
    """−ln P of four things of one score, all tied."""
    scores = torch.zeros(1, 4, dtype=F64, device=device)
    return float(tied_plackett_luce(scores, torch.zeros_like(scores)))


def sure_opposites(device: torch.device) -> float:
    """What the answer tells where two members are sure of opposites, in nats."""
    return float(pair_information(torch.tensor([[60.0], [-60.0]], device=device)))


def calibrated(device: torch.device) -> float:
    """The calibration error of true probabilities against themselves."""
    p = torch.linspace(0.01, 0.99, 99, dtype=F64)
    return expected_calibration_error(p, p)


_RAINBOW = "arXiv 2410.04203"
_MALLOWS = "arXiv 2405.14953"
_OFF = {"length_normalised": False, "reference_weight": 1.0}
_NO_REFERENCE = {"reference_weight": 0.0, "home_advantage": 0.5 / BETA}

LAWS = (
    Law("DPO at the reference", math.log(2), at_the_reference, 1e-12, "closed form"),
    Law("slope of DPO at the reference", -BETA / 2, slope_at_the_reference, 1e-12, "closed form"),
    Law("RainbowPO with all switches off − DPO", 0, equal_presets(_OFF, "dpo"), 1e-12, _RAINBOW),
    Law(
        "RainbowPO without reference − SimPO",
        0,
        equal_presets(_NO_REFERENCE, "simpo"),
        1e-12,
        _RAINBOW,
    ),
    Law("losses of exchanged pairs", 0, exchanged, 1e-12, "symmetry"),
    Law("robust DPO on average − DPO", 0, robust_on_average, 1e-12, "arXiv 2403.00409"),
    Law("KTO of a couple − APO-zero", 0, couple, 1e-12, "arXiv 2408.06266"),
    Law("curvature of the Cauchy link", 4 / math.pi**2, curvature_of_cauchy, 1e-12, "closed form"),
    Law("pair law of Mallows-φ, enumerated", 0, pair_law, 1e-12, _MALLOWS),
    Law("Mallows-φ of neighbours", 1 / (1 + PHI), probability(1.0, "phi"), 1e-12, _MALLOWS),
    Law(
        "Mallows-θ three ranks apart",
        1 / (1 + PHI**6),
        probability(3.0, "theta"),
        1e-12,
        _MALLOWS,
    ),
    Law("slope of Mallows-φ at the truth", 0, slope_at_the_truth("phi"), 1e-12, _MALLOWS),
    Law("slope of Mallows-θ at the truth", 0, slope_at_the_truth("theta"), 1e-12, _MALLOWS),
    Law("optimum of Ψ of Mallows-φ", 0, optimum_of_psi("phi"), 1e-12, _MALLOWS),
    Law("optimum of Ψ of Mallows-θ", 0, optimum_of_psi("theta"), 1e-12, _MALLOWS),
    Law("mean of the dispersion's scale", 1, mean_scale, 1e-12, _RAINBOW),
    Law(
        "worse of two accepted first",
        1 / (1 + math.exp(0.8)),
        first_accepted,
        0.006,
        "arXiv 2309.06657",
    ),
    Law(
        "ties of Rao–Kupper, θ = 2",
        9 / 35,
        tie_probability("rao_kupper", math.log(2)),
        1e-12,
        "JASA 62, 1967",
    ),
    Law(
        "ties of Davidson, ν = 1",
        3**0.5 / (4 + 3**0.5),
        tie_probability("davidson", 1.0),
        1e-12,
        "JASA 65, 1970",
    ),
    Law("error of a fitted gap, 3 votes of 4", (4 / 3) ** 0.5, fitted_error, 1e-9, "closed form"),
    Law("scores from exact shares", 0, recovered_scores, 1e-6, "closed form"),
    Law("four things tied, ln 4!", math.log(24), tied_ranking, 1e-12, "JASA 72, 1977"),
    Law("information between sure opposites", math.log(2), sure_opposites, 1e-9, "arXiv 1112.5745"),
    Law("calibration error of the truth", 0, calibrated, 1e-12, "arXiv 1706.04599"),
)
