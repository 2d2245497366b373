"""Every preset against its published formula, written out in plain Python, one pair at a time."""

from __future__ import annotations

import inspect
import math
from dataclasses import replace

import pytest
import torch

from scoretune.preference import (
    PRESETS,
    Preset,
    implicit_margin,
    kl_baseline,
    pairwise_loss,
    preset_named,
    single_loss,
)
from scoretune.preference.links import PLAIN

F64 = torch.float64
B = 0.3  # beta


def nls(z):
    """−ln σ(z)."""
    return math.log1p(math.exp(-z))


def sig(z):
    return 1 / (1 + math.exp(-z))


def odds(q):
    return math.log(math.exp(q) / (1 - math.exp(q)))


def discopop(z):
    share = sig(z / 0.05)
    return (1 - share) * nls(z) + share * math.exp(-z)


def exo(z):
    win = sig(z)
    return win * math.log(win / (1 - 1e-3)) + (1 - win) * math.log((1 - win) / 1e-3)


def g(s, phi):
    """P(y1 > y2) of Mallows-φ, smoothed within 0.1 of 0."""
    if s < 0:
        return 1 - g(-s, phi)
    if s >= 0.1:
        return (s + 1) / (1 - phi ** (s + 1)) - s / (1 - phi**s)
    at, h = g(0.1, phi), 1e-5
    slope = (g(0.1 + 2 * h, phi) * -1 + 4 * g(0.1 + h, phi) - 3 * at) / (2 * h)
    a = (slope * 0.1 - (at - 0.5)) / (2 * 0.1**3)
    return 0.5 + (3 * (at - 0.5) - slope * 0.1) / 0.2 * s + a * s**3


def jensen_shannon(q):
    return math.log(2) + math.log(sig(q))


def rho(p):
    return (p.w - p.rw) - (p.l - p.rl)


def per_token(p):
    return (p.w - p.rw) / p.nw - (p.l - p.rl) / p.nl


# Of a pair p whose first side is preferred: log-likelihoods w and l, the reference's rw and rl,
# numbers of tokens nw and nl, margin m, scale c.
FORMULAS = {
    "dpo": lambda p: nls(B * rho(p)),
    "ln_dpo": lambda p: nls(B * per_token(p)),
    "ipo": lambda p: B**2 * (rho(p) - 1 / (2 * B)) ** 2,
    "ln_ipo": lambda p: B**2 * (per_token(p) - 1 / (2 * B)) ** 2,
    "slic": lambda p: B * max(0, 1 / B - p.w + p.l) - 0.1 * p.w,
    "rso": lambda p: max(0, 1 - B * rho(p)),
    "squared_hinge": lambda p: max(0, 0.5 - B * rho(p)) ** 2,
    "cauchy": lambda p: -math.log(0.5 + math.atan(B * rho(p)) / math.pi),
    "fdpo": lambda p: nls(B * (jensen_shannon(p.w - p.rw) - jensen_shannon(p.l - p.rl))),
    "fdpo_forward_kl": lambda p: nls(B * (math.exp(p.rl - p.l) - math.exp(p.rw - p.w))),
    "fdpo_alpha": lambda p: nls(
        B * 2 * (math.exp(-(p.l - p.rl) / 2) - math.exp(-(p.w - p.rw) / 2))
    ),
    "odpo": lambda p: nls(B * rho(p) - p.m),
    "rdpo": lambda p: nls(B * rho(p) + 0.05 * (p.nw - p.nl)),
    "cpo": lambda p: nls(B * (p.w - p.l)) - p.w,
    "orpo": lambda p: B * nls(odds(p.w / p.nw) - odds(p.l / p.nl)) - p.w / p.nw,
    "simpo": lambda p: nls(B * (p.w / p.nw - p.l / p.nl) - 0.5),
    "alphapo": lambda p: nls(
        B / 0.25 * (math.exp(-p.l / p.nl / 4) - math.exp(-p.w / p.nw / 4)) - 0.5
    ),
    "rpo_alpha": lambda p: nls(B * rho(p)) - p.w / p.nw,
    "dpop": lambda p: nls(B * (rho(p) - 50 * max(0, p.rw - p.w))),
    "trdpo": lambda p: nls(B * rho(p)),
    "sdpo": lambda p: nls(B * rho(p)),
    "cdpo": lambda p: 0.9 * nls(B * rho(p)) + 0.1 * nls(-B * rho(p)),
    "robust": lambda p: (0.9 * nls(B * rho(p)) - 0.1 * nls(-B * rho(p))) / 0.8,
    "exo": lambda p: exo(B * rho(p)),
    "discopop": lambda p: discopop(B * rho(p)),
    "beta_dpo": lambda p: nls(p.c * B * rho(p)),
    "wpo": lambda p: p.weight * nls(B * rho(p)),
    "nca": lambda p: (
        nls(B * (p.w - p.rw)) + nls(-B * (p.w - p.rw)) / 2 + nls(-B * (p.l - p.rl)) / 2
    ),
    "bco": lambda p: nls(B * (p.w - p.rw)) + nls(-B * (p.l - p.rl)),
    "sppo": lambda p: B**2 * ((p.w - p.rw - 0.5 / B) ** 2 + (p.l - p.rl + 0.5 / B) ** 2),
    "apo_zero": lambda p: 1 - sig(B * (p.w - p.rw)) + sig(B * (p.l - p.rl)),
    "apo_down": lambda p: sig(B * (p.w - p.rw)) + 1 - sig(B * rho(p)),
    "mallows_theta": lambda p: nls(p.c * B * rho(p)),
    "mallows_phi": lambda p: -math.log(g(B * rho(p), p.c)),
    "mallows_ipo": lambda p: B**2 * (p.c * rho(p) - 1 / (2 * B)) ** 2,
    "rainbow": lambda p: nls(
        p.c
        * B
        * ((p.w - 0.25 * p.rw) / p.nw - (p.l - 0.25 * p.rl) / p.nl - 0.75 * 0.1)
    ),
}  # fmt: skip


class Side:
    """One preferred side, in plain numbers."""

    def __init__(self, w, l, rw, rl, nw, nl, m, c, weight):
        self.w, self.l, self.rw, self.rl, self.nw, self.nl = w, l, rw, rl, nw, nl
        self.m, self.c, self.weight = m, c, weight

    def exchanged(self):
        return Side(
            self.l, self.w, self.rl, self.rw, self.nl, self.nw, -self.m, self.c, self.weight
        )


def batch(n=40, seed=0, spread=4.0):
    """Tensors of n pairs in float64, and the same as plain numbers."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 12, (2, n), generator=generator).to(F64)
    reference = -3 * torch.rand(2, n, generator=generator, dtype=F64) * lengths - 0.1
    policy = reference - spread * torch.rand(2, n, generator=generator, dtype=F64)
    policy = policy + torch.minimum(torch.tensor(spread / 2), -policy / 2)  # below 0, both ways
    margin = torch.randn(n, generator=generator, dtype=F64)
    scale = 0.05 + 0.9 * torch.rand(n, generator=generator, dtype=F64)
    weight = torch.rand(n, generator=generator, dtype=F64)
    label = torch.rand(n, generator=generator, dtype=F64)
    label[:6] = torch.tensor([0.0, 0.5, 1.0, 0.5, 1.0, 0.0])
    tensors = {
        "sides": (policy[0], policy[1], reference[0], reference[1]),
        "lengths": (lengths[0], lengths[1]),
        "margin": margin,
        "scale": scale,
        "weight": weight,
        "label": label,
    }
    columns = zip(*policy, *reference, *lengths, margin, scale, weight, strict=True)
    return tensors, [Side(*map(float, row)) for row in columns]


def arguments(tensors, preset):
    """What a preset reads, of a batch's tensors."""
    return {
        "lengths": tensors["lengths"],
        "margin": tensors["margin"] if preset.offset else None,
        "scale": tensors["scale"] if preset.needs_scale else None,
    }


PAIRWISE = [name for name, preset in PRESETS.items() if preset.kind == "pair"]


def test_every_preset_of_pairs_has_its_formula():
    assert sorted(FORMULAS) == sorted(PAIRWISE)


@pytest.mark.parametrize("name", PAIRWISE)
def test_presets_equal_their_formulas(name):
    tensors, sides = batch()
    preset = PRESETS[name]
    given = arguments(tensors, preset) | {"weight": tensors["weight"] if preset.weighted else None}
    hard = pairwise_loss(*tensors["sides"], preset=name, beta=B, **given)
    soft = pairwise_loss(*tensors["sides"], preset=name, beta=B, label=tensors["label"], **given)
    formula = FORMULAS[name]
    tolerance = 1e-9 if name == "mallows_phi" else 1e-12  # its slope is by differences above
    for k, side in enumerate(sides):
        expected = formula(side)
        assert float(hard[k]) == pytest.approx(expected, rel=tolerance, abs=tolerance)
        label = float(tensors["label"][k])
        expected = label * expected + (1 - label) * formula(side.exchanged())
        assert float(soft[k]) == pytest.approx(expected, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("name", PAIRWISE)
def test_exchanging_the_sides_changes_nothing(name):
    tensors, _ = batch(seed=1)
    w, l, rw, rl = tensors["sides"]
    preset = replace(PRESETS[name], home_advantage=0.2, target_margin=0.1)
    first, second = tensors["lengths"]
    given = {"preset": preset, "scale": tensors["scale"] if preset.needs_scale else None,
             "weight": tensors["weight"]}  # fmt: skip
    margin, label = tensors["margin"], tensors["label"]
    one = pairwise_loss(w, l, rw, rl, lengths=(first, second), margin=margin, label=label, **given)
    other = pairwise_loss(
        l, w, rl, rw, lengths=(second, first), margin=-margin, label=1 - label, **given
    )
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", PAIRWISE)
def test_a_tie_of_equal_sides_moves_nothing(name):
    """With label ½ and both sides alike, the gradients of the sides are equal."""
    tensors, _ = batch(seed=2)
    w, _, rw, _ = tensors["sides"]
    one, other = w.clone().requires_grad_(), w.clone().requires_grad_()
    n = tensors["lengths"][0]
    preset = PRESETS[name]
    loss = pairwise_loss(
        one, other, rw, rw, preset=name, lengths=(n, n), label=torch.full_like(w, 0.5),
        margin=torch.zeros_like(w) if preset.offset else None,
        scale=tensors["scale"] if preset.needs_scale else None,
        weight=tensors["weight"] if preset.weighted else None,
    )  # fmt: skip
    up, down = torch.autograd.grad(loss.sum(), (one, other))
    torch.testing.assert_close(up, down, rtol=1e-12, atol=1e-12)


SWITCHED = [
    Preset(
        source="", link=link, length_normalised=tokens, reference_weight=alpha, mixing=mixing,
        home_advantage=0.3, target_margin=0.2, sft_weight=sft,
    )
    for link in PLAIN
    for tokens, alpha, mixing, sft in (
        (False, 1.0, False, 0.0), (True, 0.25, True, 0.1), (True, 0.0, False, 0.0),
        (False, 0.5, True, 0.0), (True, 0.7, False, 2.0),
    )
]  # fmt: skip
SLOPES = {
    "logistic": lambda z: -sig(-z),
    "square": lambda z: 2 * (z - 0.5),
    "hinge": lambda z: -1.0 if z < 1 else 0.0,
    "squared_hinge": lambda z: -2 * max(0, 0.5 - z),
    "cauchy": lambda z: -1 / (math.pi * (1 + z * z)) / (0.5 + math.atan(z) / math.pi),
    "sigmoid": lambda z: -sig(z) * sig(-z),
}


@pytest.mark.parametrize("preset", SWITCHED, ids=range(len(SWITCHED)))
def test_r1_r2_and_the_gradient_for_every_combination_of_switches(preset):
    """R1 and R2 of the general loss, and dL/dlp = f'(z)·c·β/|y|^η − λ/|y|^η, −f'(z)·c·β/|y|^η."""
    tensors, sides = batch(n=12, seed=3)
    w, l = (side.clone().requires_grad_() for side in tensors["sides"][:2])
    loss = pairwise_loss(
        w, l, *tensors["sides"][2:], preset=preset, beta=B, lengths=tensors["lengths"],
        margin=tensors["margin"], scale=tensors["scale"],
    )  # fmt: skip
    up, down = torch.autograd.grad(loss.sum(), (w, l))
    alpha = preset.reference_weight
    for k, p in enumerate(sides):
        nw, nl = (p.nw, p.nl) if preset.length_normalised else (1, 1)
        margin = B * 0.3 + 0.2 + p.m
        z = B * ((p.w - alpha * p.rw) / nw - (p.l - alpha * p.rl) / nl)
        z = p.c * (z - (1 - alpha if preset.mixing else 1) * margin)
        expected = float(PLAIN[preset.link](torch.tensor(z, dtype=F64)))
        expected -= preset.sft_weight * p.w / nw
        assert loss[k].item() == pytest.approx(expected, rel=1e-12, abs=1e-12)
        slope = SLOPES[preset.link](z) * p.c * B
        assert float(up[k]) == pytest.approx(slope / nw - preset.sft_weight / nw, abs=1e-12)
        assert float(down[k]) == pytest.approx(-slope / nl, abs=1e-12)


def test_limits_and_identities():
    """R2 and the limits of S1, in float64."""
    tensors, _ = batch(seed=4)
    sides, lengths, scale = tensors["sides"], tensors["lengths"], tensors["scale"]

    def loss(preset, *, beta=B, **given):
        return pairwise_loss(*sides, preset=preset, beta=beta, lengths=lengths, **given)

    def same(one, other):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)

    dpo, rainbow = PRESETS["dpo"], PRESETS["rainbow"]
    ones = torch.ones_like(scale)
    # rainbow with everything switched off is DPO; its two ends are DPO per token and SimPO.
    off = replace(rainbow, length_normalised=False, reference_weight=1.0, home_advantage=0.0)
    same(loss(off, scale=ones), loss("dpo"))
    same(loss(replace(rainbow, reference_weight=1.0), scale=ones), loss("ln_dpo"))
    end = replace(rainbow, reference_weight=0.0, home_advantage=0.5 / B)
    same(loss(end, scale=ones), loss("simpo"))
    # a constant scale k is β → kβ and m → km; the two units of the margin.
    margins = replace(dpo, home_advantage=0.3, target_margin=0.2)
    grown = replace(margins, target_margin=1.7 * 0.2)
    same(loss(margins, scale=1.7 * ones), loss(grown, beta=1.7 * B))
    same(loss(replace(dpo, home_advantage=0.3)), loss(replace(dpo, target_margin=0.3 * B)))
    # both forms of Mallows-IPO, and its neutral scale; φ = e^{−1/2} is DPO.
    ratio = sides[0] - sides[2] - sides[1] + sides[3]
    same(loss("mallows_ipo", scale=scale), B**2 * (scale * ratio - 1 / (2 * B)) ** 2)
    same(loss("mallows_theta", scale=ones), loss("dpo"))
    same(loss("odpo", margin=0 * ones), loss("dpo"))
    same(loss(replace(PRESETS["fdpo"], divergence="reverse_kl")), loss("dpo"))
    near = replace(PRESETS["fdpo_alpha"], divergence_parameter=1 + 1e-5)
    torch.testing.assert_close(loss(near), loss("dpo"), rtol=0, atol=1e-4)
    same(loss(replace(PRESETS["fdpo_alpha"], divergence_parameter=1.0)), loss("dpo"))
    same(loss(replace(PRESETS["fdpo_alpha"], divergence_parameter=0.0)), loss("fdpo_forward_kl"))
    # robust DPO over labels that flip with its ε is DPO, on average.
    flipped = loss("robust", label=0 * ones)
    same(0.9 * loss("robust") + 0.1 * flipped, loss("dpo"))
    # a label is affine: conservative DPO is DPO with the label 0.9.
    same(loss("cdpo"), loss("dpo", label=0.9 * ones))


def test_at_the_reference_the_slope_is_half():
    """θ = θ_ref: z = 0, loss ln 2, weight c·β/2."""
    tensors, _ = batch(seed=5)
    _, _, rw, rl = tensors["sides"]
    w, l = rw.clone().requires_grad_(), rl.clone().requires_grad_()
    scale = tensors["scale"]
    loss = pairwise_loss(w, l, rw, rl, preset="mallows_theta", beta=B, scale=scale)
    torch.testing.assert_close(loss, torch.full_like(loss, math.log(2)), rtol=0, atol=1e-12)
    up, down = torch.autograd.grad(loss.sum(), (w, l))
    torch.testing.assert_close(up, -scale * B / 2, rtol=1e-12, atol=0)
    torch.testing.assert_close(down, -up, rtol=1e-12, atol=0)


def test_at_the_reference_of_a_mixture():
    """θ = θ_ref and α < 1: the weight is σ(−c(1 − α)(β·dref_n − m)); dz/dα = −c(β·dref_n − m)."""
    tensors, _ = batch(seed=11)
    _, _, rw, rl = tensors["sides"]
    up, down = tensors["lengths"]
    scale, alpha, margin = tensors["scale"], 0.3, B * 0.2
    w, l = rw.clone().requires_grad_(), rl.clone()
    given = {"beta": B, "lengths": (up, down), "scale": scale}
    mixed = [
        replace(PRESETS["rainbow"], reference_weight=weight, home_advantage=0.2)
        for weight in (alpha, alpha + 1e-6)
    ]
    loss = pairwise_loss(w, l, rw, rl, preset=mixed[0], **given)
    (slope,) = torch.autograd.grad(loss.sum(), w)
    gap = B * (rw / up - rl / down) - margin
    expected = -torch.sigmoid(-scale * (1 - alpha) * gap) * scale * B / up
    torch.testing.assert_close(slope, expected, rtol=1e-12, atol=1e-14)
    one, other = (implicit_margin(w.detach(), l, rw, rl, preset=p, **given) for p in mixed)
    torch.testing.assert_close((other - one) / 1e-6, -scale * gap, rtol=1e-6, atol=1e-8)


def test_more_tokens_at_the_same_mean_change_nothing_per_token():
    tensors, _ = batch(seed=6)
    times = torch.tensor([2.0, 3.0, 5.0, 7.0], dtype=F64).repeat(10)
    stretched = [side * times for side in tensors["sides"]]
    lengths = tuple(length * times for length in tensors["lengths"])
    for name in ("ln_dpo", "simpo", "rainbow", "orpo"):
        given = arguments(tensors, PRESETS[name])
        one = pairwise_loss(*tensors["sides"], preset=name, **given)
        other = pairwise_loss(*stretched, preset=name, **given | {"lengths": lengths})
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_a_scale_of_nothing_leaves_nothing_to_learn():
    tensors, _ = batch(seed=7)
    w = tensors["sides"][0].clone().requires_grad_()
    loss = pairwise_loss(
        w, *tensors["sides"][1:], preset="mallows_theta", scale=torch.zeros_like(w)
    )
    assert bool((loss - math.log(2)).abs().max() < 1e-12)
    assert not torch.autograd.grad(loss.sum(), w)[0].any()


LINKS_AT_ZERO = {  # value, slope, curvature
    "logistic": (math.log(2), -1 / 2, 1 / 4),
    "square": (1 / 4, -1, 2),
    "hinge": (1, -1, 0),
    "squared_hinge": (1 / 4, -1, 2),
    "cauchy": (math.log(2), -2 / math.pi, 4 / math.pi**2),
    "sigmoid": (1 / 2, -1 / 4, 0),
}


@pytest.mark.parametrize("link", PLAIN)
def test_taylor_coefficients_of_links(link):
    z = torch.zeros((), dtype=F64, requires_grad=True)
    value = PLAIN[link](z)
    (slope,) = torch.autograd.grad(value, z, create_graph=True)
    curvature = torch.autograd.grad(slope, z)[0] if slope.requires_grad else torch.zeros(())
    measured = (value, slope, curvature)
    for number, expected in zip(measured, LINKS_AT_ZERO[link], strict=True):
        assert number.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", PAIRWISE)
def test_far_margins_stay_finite_in_single_precision(name):
    """A policy 300 nats from its reference: value and slope are numbers."""
    preset = PRESETS[name]
    w = torch.tensor([-400.0, -200.0, -400.0, -1e-3], requires_grad=True)
    l = torch.tensor([-200.0, -400.0, -1e-3, -400.0], requires_grad=True)
    reference = torch.full((4,), -300.0)
    ones = torch.ones(4)
    loss = pairwise_loss(
        w, l, reference, reference, preset=name, beta=1.0, lengths=(20 * ones, 30 * ones),
        margin=ones if preset.offset else None, scale=0.5 * ones if preset.needs_scale else None,
        weight=ones if preset.weighted else None, label=torch.tensor([1.0, 0.0, 0.5, 0.3]),
    )  # fmt: skip
    slopes = torch.autograd.grad(loss.sum(), (w, l))
    assert all(bool(torch.isfinite(tensor).all()) for tensor in (loss, *slopes))


@pytest.mark.parametrize("name", PAIRWISE)
def test_the_margin_is_the_one_that_the_loss_takes(name):
    tensors, _ = batch(seed=8)
    preset = PRESETS[name]
    given = arguments(tensors, preset)
    plain = replace(preset, link="hinge", link_parameter=0.0, terms=(), sft_weight=0.0,
                    label_smoothing=0.0, weighted=False, beta_outside=False)  # fmt: skip
    if preset.beta_outside:
        plain = replace(preset, link="hinge", sft_weight=0.0)
    z = implicit_margin(*tensors["sides"], preset=name, beta=B, **given)
    expected = pairwise_loss(*tensors["sides"], preset=plain, beta=B, **given)
    factor = B if preset.beta_outside else 1
    torch.testing.assert_close(factor * torch.relu(1 - z), expected)


# ---------------------------------------------------------------------------- single samples


@pytest.mark.parametrize("name", ["kto", "apo_zero_single"])
def test_single_samples(name):
    tensors, sides = batch(seed=9)
    kl = torch.tensor(0.7, dtype=F64)
    baseline = 0.7 if name == "kto" else 0.0
    loss = single_loss(
        tensors["sides"][0], tensors["sides"][2], tensors["label"], preset=name, beta=B,
        baseline=kl, weights=(1.5, 0.5),
    )  # fmt: skip
    for k, p in enumerate(sides):
        reward = B * (p.w - p.rw - baseline)
        liked = float(tensors["label"][k])
        expected = 1.5 * liked * (1 - sig(reward)) + 0.5 * (1 - liked) * (1 - sig(-reward))
        assert float(loss[k]) == pytest.approx(expected, rel=1e-12)


def test_kto_without_baseline_is_apo_zero_of_the_couple():
    tensors, _ = batch(seed=10)
    w, l, rw, rl = tensors["sides"]
    none = torch.zeros((), dtype=F64)
    liked, disliked = torch.ones_like(w), torch.zeros_like(w)
    both = single_loss(w, rw, liked, baseline=none) + single_loss(l, rl, disliked, baseline=none)
    torch.testing.assert_close(both, pairwise_loss(w, l, rw, rl, preset="apo_zero"))


def test_no_gradient_through_the_baseline():
    w = torch.tensor([1.0, -0.5], requires_grad=True)
    reference = torch.zeros(2)
    assert float(kl_baseline(w)) == 0.25 and not kl_baseline(w).requires_grad
    assert float(kl_baseline(-w)) == 0
    loss = single_loss(w, reference, torch.ones(2), beta=1.0, baseline=w.mean())
    (slope,) = torch.autograd.grad(loss.sum(), w)
    reward = w.detach() - 0.25
    torch.testing.assert_close(slope, -torch.sigmoid(reward) * torch.sigmoid(-reward))


# ---------------------------------------------------------------------------- what is refused


FOUR = [torch.full((3,), -1.0)] * 4
BAD = [
    ("beta must be > 0, got 0", {"beta": 0}),
    ("beta must be > 0, got nan", {"beta": math.nan}),
    (r"label must lie in \[0, 1\]", {"label": torch.tensor([0.0, 1.0, 1.5])}),
    (r"label must lie in \[0, 1\]", {"label": torch.tensor([0.0, 1.0, math.nan])}),
    (r"label \[2\] must be \[3\]", {"label": torch.ones(2)}),
    (r"margin \[1\] must be \[3\]", {"margin": torch.ones(1)}),
    (r"lengths_rejected \[4\]", {"lengths": (torch.ones(3), torch.ones(4)), "preset": "ln_dpo"}),
    ("'ln_dpo' needs lengths", {"preset": "ln_dpo"}),
    ("lengths must be > 0", {"preset": "ln_dpo", "lengths": (torch.ones(3), torch.zeros(3))}),
    ("'rpo_alpha' needs lengths", {"preset": "rpo_alpha"}),
    ("'odpo' needs margin", {"preset": "odpo"}),
    ("'mallows_theta' needs scale", {"preset": "mallows_theta"}),
    ("'mallows_phi' needs scale, the dispersion φ", {"preset": "mallows_phi"}),
    ("'beta_dpo' needs scale, c of the batch", {"preset": "beta_dpo"}),
    ("'wpo' needs weight", {"preset": "wpo"}),
    (r"φ lies in \(0, 1\]", {"preset": "mallows_phi", "scale": torch.tensor([0.5, 0.0, 1.0])}),
    (r"φ lies in \(0, 1\]", {"preset": "mallows_phi", "scale": torch.tensor([0.5, 1.5, 1.0])}),
    ("'kto' is for single samples: use single_loss", {"preset": "kto"}),
    ("no preset is called 'simmpo'; did you mean 'simpo'", {"preset": "simmpo"}),
    ("no preset is called 'zzz': one of dpo, ", {"preset": "zzz"}),
]


@pytest.mark.parametrize(("message", "changes"), BAD)
def test_bad_input_is_refused_in_one_line(message, changes):
    with pytest.raises(ValueError, match=message) as error:
        pairwise_loss(*FOUR, **changes)
    assert "\n" not in str(error.value) and len(str(error.value)) <= 500


@pytest.mark.parametrize("name", [n for n in PAIRWISE if PRESETS[n].needs_reference])
def test_a_missing_reference_is_refused_by_name(name):
    with pytest.raises(ValueError, match=f"'{name}' needs reference_chosen and reference_rejected"):
        pairwise_loss(*FOUR[:2], preset=name)


def test_what_is_missing_elsewhere():
    value, liked = FOUR[0], torch.ones(3)
    with pytest.raises(ValueError, match="'kto' needs a baseline"):
        single_loss(value, value, liked)
    with pytest.raises(ValueError, match="'kto' compares with a reference"):
        single_loss(value, None, liked, baseline=torch.zeros(()))
    with pytest.raises(ValueError, match=r"liked must lie in \[0, 1\]"):
        single_loss(value, value, -liked, baseline=torch.zeros(()))
    with pytest.raises(ValueError, match="'dpo' is for pair samples: use pairwise_loss"):
        single_loss(value, value, liked, preset="dpo")
    with pytest.raises(ValueError, match="probabilities below 1"):
        pairwise_loss(-value, value, preset="orpo", lengths=(liked, liked))
    refused = ({"reference_weight": 1.5}, {"label_smoothing": 0.5}, {"link": "exo"})
    for changes in (*refused, {"link": "discopop"}):
        with pytest.raises(ValueError, match=r"must (lie in|be > 0).*, got (1.5|0.5|0.0)$"):
            replace(PRESETS["dpo"], **changes)


def test_the_interface_that_outside_checks_rely_on():
    names = list(inspect.signature(pairwise_loss).parameters)
    assert names[:4] == ["chosen", "rejected", "reference_chosen", "reference_rejected"]
    assert {"preset", "beta", "lengths", "margin", "scale", "label"} <= set(names)
    assert preset_named("dpo") is PRESETS["dpo"]
