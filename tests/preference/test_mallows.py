"""Mallows' pair laws, what is learned from them, and the Ψ-PO view: exact where a law is."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scoretune.commands.reproduce.arms import RANKS, learned_rewards, same, shares
from scoretune.commands.reproduce.mallows_bandit import recovered
from scoretune.preference import (
    expected_psi,
    mallows_probability,
    phi_of_scale,
    psi,
    regularised_optimum,
    scale_of_phi,
)
from scoretune.preference.mallows import log_probability, ranking_law

F64 = torch.float64
PHIS = (0.05, 0.2, 0.607, 0.9, 0.99)


def numbers(*values):
    return torch.tensor(values, dtype=F64)


def marginals(n, phi, kind):
    """P(item 0 before item j), j = 1 … n − 1, by enumeration: central ranks 0 and j."""
    ranks, law = ranking_law(n, phi, kind)
    return torch.stack([law @ (ranks[:, 0] < ranks[:, j]).double() for j in range(1, n)])


@pytest.mark.parametrize("phi", PHIS)
@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
def test_the_pair_law_of_kendall_is_exact_for_every_n(n, phi):
    ranks, law = ranking_law(n, phi)
    for i in range(n):
        for j in range(n):
            before = law @ (ranks[:, i] < ranks[:, j]).double()
            expected = mallows_probability(numbers(j - i), phi)
            assert float(before) == pytest.approx(0 if i == j else float(expected), abs=1e-12)


def test_the_pair_law_of_spearman_is_the_logistic_for_two_items_alone():
    gaps = {n: torch.arange(1, n, dtype=F64) for n in (2, 5)}
    for phi in (0.3, 0.607, 0.9):
        two = marginals(2, phi, "theta")
        torch.testing.assert_close(two, mallows_probability(gaps[2], phi, "theta"))
    five = marginals(5, 0.607, "theta")
    assert float((five - mallows_probability(gaps[5], 0.607, "theta")).abs().max()) > 0.03


def test_known_values():
    for phi in PHIS:
        assert float(mallows_probability(numbers(1), phi)) == pytest.approx(1 / (1 + phi))
        jump = 1 / (1 - phi) + 1 / math.log(phi)
        assert float(mallows_probability(numbers(1e-9), phi)) == pytest.approx(jump, abs=1e-7)
        assert float(mallows_probability(numbers(0), phi)) == 0.5
        at = float(mallows_probability(numbers(1.5), phi, "theta"))
        assert at == pytest.approx(1 / (1 + phi**3))
    jumps = mallows_probability(torch.full((3,), 1e-9, dtype=F64), numbers(0.607, 0.3, 0.1))
    torch.testing.assert_close(jumps, numbers(0.542, 0.598, 0.677), rtol=0, atol=6e-4)


def test_limits():
    gap = numbers(0.3, 1, 2.5, -4)
    assert torch.equal(mallows_probability(gap, 1e-30).round(), numbers(1, 1, 1, 0))
    torch.testing.assert_close(mallows_probability(gap, 1.0), numbers(0.5, 0.5, 0.5, 0.5))
    for rate in (1e-2, 1e-4, 1e-6):  # 1/2 + λ(2s + 1)/12 + O(λ³)
        expected = 0.5 + gap.sign() * rate * (2 * gap.abs() + 1) / 12
        measured = mallows_probability(gap, math.exp(-rate))
        torch.testing.assert_close(measured, expected, rtol=0, atol=rate**3 + 1e-13)
    phi, s = 0.7, numbers(40)
    tail = 1 - float(mallows_probability(s, phi))
    assert tail == pytest.approx(phi**40 * (40 * (1 - phi) - phi), rel=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 60), st.floats(1e-6, 0.9999), st.sampled_from(["phi", "theta"]))
def test_preferring_and_being_preferred_add_up_to_one(gap, phi, kind):
    both = mallows_probability(numbers(gap, -gap), phi, kind)
    assert float(both.sum()) == pytest.approx(1, abs=1e-14)
    assert 0.5 <= float(both[0]) <= 1


@settings(max_examples=60, deadline=None)
@given(st.floats(1e-9, 1.0))
def test_the_smoothed_link_is_a_law_of_preference(phi):
    """M8: monotone, g(−s) = 1 − g(s), and in value and slope continuous at ±0.1 and finite at 0."""
    s = torch.cat([torch.linspace(-1, 1, 401, dtype=F64), numbers(-30, 30)]).requires_grad_()
    log_g = log_probability(s, phi)
    (slope,) = torch.autograd.grad(log_g.sum(), s)
    assert bool(torch.isfinite(log_g).all()) and bool(torch.isfinite(slope).all())
    assert bool((slope >= 0).all()) and bool((slope[:400] > 0).all())
    g = log_g.detach().exp()
    torch.testing.assert_close(g + log_probability(-s.detach(), phi).exp(), torch.ones_like(g))
    step = 1e-12
    for seam in (-0.1, 0.1):
        at = numbers(seam - step, seam + step).requires_grad_()
        value = log_probability(at, phi)
        (slope,) = torch.autograd.grad(value.sum(), at)
        assert float((value[1] - value[0]).detach().abs()) < 1e-9
        assert float((slope[1] - slope[0]).abs()) < 1e-9 * (1 + float(slope[0]))


def test_outside_the_seam_the_link_is_the_law():
    s = torch.cat([torch.linspace(0.1, 30, 60, dtype=F64), -torch.linspace(0.1, 30, 60, dtype=F64)])
    for phi in PHIS:
        exact = torch.log(mallows_probability(s, phi))
        torch.testing.assert_close(log_probability(s, phi), exact, rtol=1e-9, atol=1e-12)


def test_the_slope_of_the_link_is_that_of_h():
    """g′(s) = h′(s+1) − h′(s), h′(k) = 1/(1 − φ^k) + kφ^k ln φ/(1 − φ^k)²."""
    phi = 0.6
    s = torch.linspace(0.2, 9, 40, dtype=F64).requires_grad_()
    (slope,) = torch.autograd.grad(log_probability(s, phi).sum(), s)

    def rise(k):
        q = phi**k
        return 1 / (1 - q) + k * q * math.log(phi) / (1 - q) ** 2

    at = s.detach()
    expected = (rise(at + 1) - rise(at)) / mallows_probability(at, phi)
    torch.testing.assert_close(slope, expected, rtol=1e-9, atol=1e-12)


def test_single_precision_keeps_five_digits():
    s = torch.tensor([-20.0, -3.0, -0.5, -0.05, 0.0, 0.05, 0.5, 3.0, 20.0])
    for phi in (1e-6, 0.05, 0.607, 0.99, 0.9999, 1.0):
        single, double = log_probability(s, phi), log_probability(s.double(), phi)
        torch.testing.assert_close(single.double(), double, rtol=2e-5, atol=2e-6)


def test_a_wrong_dispersion_is_refused():
    for phi in (0.0, -0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"a dispersion φ lies in \(0, 1\]"):
            mallows_probability(numbers(1), phi)
    with pytest.raises(ValueError, match="enumerated for 2 to 8 items"):
        ranking_law(9, 0.5)


# ---------------------------------------------------------------------------- learning from them


@pytest.mark.parametrize("phi", [0.2, 0.607, 0.9])
def test_each_law_is_recovered_by_its_own_loss(phi):
    """M2: r = −rank, exactly; DPO on θ-data learns −2 ln φ times that."""
    theta, kendall = (shares(phi, kind, None) for kind in ("theta", "phi"))
    for labels, preset, scale in (
        (theta, "mallows_theta", scale_of_phi(same(phi))),
        (kendall, "mallows_phi", same(phi)),
    ):
        rewards = learned_rewards(labels, preset, scale)
        torch.testing.assert_close(rewards, -RANKS, rtol=0, atol=1e-5)
    dpo = learned_rewards(theta, "dpo")
    torch.testing.assert_close(dpo, 2 * math.log(phi) * RANKS, rtol=0, atol=1e-5)


def test_votes_bring_mallows_nearer_and_leave_dpo_where_it_was():
    """M3: ten times the votes divide the error by more than 2.5 (five seeds; the page has 20)."""
    scale = scale_of_phi(same(0.9))
    errors = {"mallows_theta": [], "dpo": []}
    for votes in (500, 5000):
        drawn = [shares(0.9, "theta", votes, seed) for seed in range(5)]
        for name, used in (("mallows_theta", scale), ("dpo", None)):
            apart = [(learned_rewards(one, name, used) + RANKS).abs().mean() for one in drawn]
            errors[name].append(float(torch.stack(apart).mean()))
    assert errors["mallows_theta"][0] > 2.5 * errors["mallows_theta"][1]
    assert errors["dpo"][0] == pytest.approx(errors["dpo"][1], rel=0.05)


def test_two_prompts_that_differ_in_agreement():
    """M7, 5,000 votes: DPO's ranges of rewards differ by ln .2/ln .9, Mallows' do not."""
    agreed, disputed = (recovered(phi, 5000, 1) for phi in (0.2, 0.9))
    ratio = {name: agreed[name]["range"] / disputed[name]["range"] for name in agreed}
    assert ratio["DPO"] == pytest.approx(math.log(0.2) / math.log(0.9), rel=0.1)
    assert ratio["Mallows-θ"] == pytest.approx(1, abs=0.1)


def test_the_scale_and_the_dispersion_of_one_prompt():
    phi = numbers(*PHIS)
    torch.testing.assert_close(phi_of_scale(scale_of_phi(phi)), phi)
    assert float(phi_of_scale(numbers(1))) == pytest.approx(math.exp(-0.5))


@pytest.mark.parametrize("phi", [0.3, 0.8])
@pytest.mark.parametrize("kind", ["theta", "phi"])
def test_the_optimum_of_either_psi_does_not_depend_on_the_dispersion(kind, phi):
    """M6: π ∝ π_ref e^{−μ0/β} on data of its own law; DPO's Ψ is sharper by −2 ln φ."""
    beta, ranks = 0.7, torch.arange(5, dtype=F64)
    reference = numbers(0.1, 0.3, 0.2, 0.25, 0.15)
    opponents = numbers(0.3, 0.1, 0.2, 0.15, 0.25)
    preferred = mallows_probability(ranks[None] - ranks[:, None], phi, kind)
    values = expected_psi(preferred, opponents, f"mallows_{kind}", phi)
    expected = regularised_optimum(-ranks, reference, beta)
    measured = regularised_optimum(values, reference, beta)
    torch.testing.assert_close(measured, expected, rtol=1e-12, atol=1e-13)
    if kind == "theta":
        sharper = regularised_optimum(2 * math.log(phi) * ranks, reference, beta)
        dpo = regularised_optimum(expected_psi(preferred, opponents, "dpo"), reference, beta)
        torch.testing.assert_close(dpo, sharper, rtol=1e-12, atol=1e-13)
    # It solves what it says: no other law has more of E Ψ − β KL.
    law = measured
    value = expected_psi(preferred, opponents, f"mallows_{kind}", phi)

    def objective(p):
        return float(p @ value - beta * (p * torch.log(p / reference)).sum())

    for other in torch.eye(5, dtype=F64):
        assert objective(0.99 * law + 0.01 * other) < objective(law)


def test_psi_of_plain_methods():
    q = torch.linspace(0.05, 0.95, 19, dtype=F64)
    assert torch.equal(psi(q, "ipo"), q)
    torch.testing.assert_close(psi(q, "dpo"), torch.log(q / (1 - q)))
    neutral = psi(q, "mallows_theta", math.exp(-0.5))
    torch.testing.assert_close(neutral, torch.log(q / (1 - q)))
    s = torch.linspace(-25, 25, 101, dtype=F64)
    for phi in (0.2, 0.8, 0.99):
        there = psi(mallows_probability(s, phi)[30:71], "mallows_phi", phi)
        torch.testing.assert_close(there, s[30:71], rtol=1e-6, atol=1e-7)
    assert float(psi(numbers(0.51), "mallows_phi", 0.3)) == 0  # within the jump at 0
    for phi in (None, 0.0, 1.0):
        with pytest.raises(ValueError, match="needs a dispersion 0 < phi < 1"):
            psi(q, "mallows_phi", phi)
