"""The survey's other losses with a closed form: limits, optima, and estimators without bias."""

from __future__ import annotations

import math

import pytest
import torch

from scoretune.diffusion.transitions import Transition
from scoretune.preference import (
    adaptive_scale,
    clamped_log_ratio,
    on_policy_weight,
    pairwise_loss,
    score_offset,
    typical_pairs,
)
from scoretune.preference.baselines import leave_one_out, less_greedy
from scoretune.preference.corrupted import povid
from scoretune.preference.extrapolation import extrapolated
from scoretune.preference.listwise import (
    best_of,
    bradley_terry,
    exponential_weights,
    plackett_luce,
    rrhf,
)
from scoretune.preference.proximal import prdp
from scoretune.preference.self_play import nash_md_step, sppo, sppo_step

F64 = torch.float64
CYCLE = torch.tensor([[0.5, 0.8, 0.1], [0.2, 0.5, 0.9], [0.9, 0.1, 0.5]], dtype=F64)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


ONE = torch.ones(4, dtype=F64)
FORMULAS = {  # S1: of log-likelihoods [4, 3], far apart on either side
    "bradley_terry": lambda v: bradley_terry(v[:, 0], v[:, 1], 0.3 * ONE),
    "best_of": lambda v: best_of(v, torch.zeros(4, dtype=int)),
    "plackett_luce": plackett_luce,
    "rrhf": lambda v: rrhf(v, 0 * v + 3, v.detach().flip(-1)),
    "exponential_weights": lambda v: exponential_weights(v[:, 0], 2.0),
    "sppo": lambda v: sppo(v[:, 0], 0.7 * ONE, 2.0),
    "prdp": lambda v: prdp((v[:, 0], v[:, 1]), (ONE, 0 * ONE), 0.1),
    "povid": lambda v: povid(v[:, 0], v[:, 1], v[:, 2], alpha=0.3, betas=(0.1, 0.2)),
    "clamped_log_ratio": lambda v: clamped_log_ratio(v, 0.1),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_values_and_slopes_are_finite(name):
    values = torch.tensor([[-3.0, -400.0, -9.0], [-400.0, -3.0, -9.0], [-1e-3] * 3, [-900.0] * 3])
    values = values.double().requires_grad_()
    result = FORMULAS[name](values)
    (slope,) = torch.autograd.grad(result.sum(), values)
    assert bool(torch.isfinite(result).all()) and bool(torch.isfinite(slope).all())


# ---------------------------------------------------------------------------- rankings


def test_learning_a_ranking():
    scores = draw(5, 3)
    one, other = scores[:, 0], scores[:, 1]
    torch.testing.assert_close(plackett_luce(scores[:, :2]), bradley_terry(one, other))
    torch.testing.assert_close(best_of(scores[:, :2], torch.zeros(5, dtype=int)),
                               bradley_terry(one, other))  # fmt: skip
    expected = best_of(scores, torch.zeros(5, dtype=int)) + bradley_terry(other, scores[:, 2])
    torch.testing.assert_close(plackett_luce(scores), expected)
    label = torch.rand(5, dtype=F64)
    mixed = label * bradley_terry(one, other) + (1 - label) * bradley_terry(other, one)
    torch.testing.assert_close(bradley_terry(one, other, label), mixed)
    pairwise = pairwise_loss(one, other, 0 * one, 0 * one, beta=1.0, label=label)
    torch.testing.assert_close(pairwise, mixed)


def test_probabilities_of_all_rankings_add_up_to_one():
    from itertools import permutations

    scores = draw(4)
    total = sum(math.exp(-float(plackett_luce(scores[list(p)]))) for p in permutations(range(4)))
    assert total == pytest.approx(1)


def test_rrhf_by_hand():
    log_probs = torch.tensor([[-4.0, -9.0, -2.0]])
    lengths = torch.tensor([[4.0, 3.0, 4.0]])  # per token: −1, −3, −0.5
    rewards = torch.tensor([[0.2, 0.9, 0.9]])
    # 0 is worse than 1 and 2: max(0, −1 + 3) + max(0, −1 + 0.5); the best is the first of equals.
    assert float(rrhf(log_probs, lengths, rewards)) == pytest.approx(2 + 9)
    assert float(rrhf(log_probs, lengths, rewards, sft_weight=0.0)) == pytest.approx(2)
    agreed = torch.tensor([[0.5, 0.1, 0.9]])
    assert float(rrhf(log_probs, lengths, agreed, sft_weight=0.0)) == 0


def test_exponential_weights_are_the_tilt():
    rewards = draw(6)
    weights = exponential_weights(rewards, 0.5)
    assert float(weights.mean()) == pytest.approx(1)
    torch.testing.assert_close(weights / weights[0], torch.exp((rewards - rewards[0]) / 0.5))


# ---------------------------------------------------------------------------- games


def test_sppo_is_a_step_of_multiplicative_weights():
    """The regression's minimum, over all policies, is its exact step up to the constant."""
    policy = torch.tensor([0.2, 0.5, 0.3], dtype=F64)
    eta = 0.7
    step = sppo_step(policy, CYCLE, eta)
    gain = torch.log(step / policy) - eta * (CYCLE @ policy - 0.5)
    torch.testing.assert_close(gain, gain[:1].expand(3))
    win = CYCLE @ policy
    assert float(sppo(eta * (win - 0.5), win, eta).abs().max()) == 0
    w, l = draw(2, 5)
    zero, beta = torch.zeros(5, dtype=F64), 0.3
    hard = sppo(w, zero + 1, 1 / beta) + sppo(l, zero, 1 / beta)
    preset = pairwise_loss(w, l, zero, zero, preset="sppo", beta=beta)
    torch.testing.assert_close(hard * beta**2, preset)


def test_sppo_on_average_and_nash_md_find_the_equilibrium():
    """S5: a symmetric cycle is played uniformly."""
    cycle = torch.tensor([[0.5, 0.9, 0.1], [0.1, 0.5, 0.9], [0.9, 0.1, 0.5]], dtype=F64)
    uniform = torch.full((3,), 1 / 3, dtype=F64)
    start = torch.tensor([0.7, 0.2, 0.1], dtype=F64)
    policy, total, steps = start, torch.zeros(3, dtype=F64), 4000
    for _ in range(steps):
        total += policy / steps
        policy = sppo_step(policy, cycle, 0.02)
    # No answer beats the average play by more than the regret, ln(1/p)/(ηT) + η/8.
    regret = math.log(1 / 0.1) / (0.02 * steps) + 0.02 / 8
    assert float((cycle @ total).max()) - 0.5 < regret < 0.032
    torch.testing.assert_close(total, uniform, rtol=0, atol=0.05)
    assert float((policy - uniform).abs().max()) > 0.1  # the last one goes round
    policy = start
    for _ in range(3000):
        policy = nash_md_step(policy, uniform, cycle, eta=0.1, beta=0.2)
    torch.testing.assert_close(policy, uniform, rtol=0, atol=1e-6)


def test_nash_md_stops_at_the_regularised_equilibrium():
    """π(y) ∝ μ(y) e^{P(y > π)/β}: the best answer to itself under the KL penalty."""
    reference = torch.tensor([0.2, 0.5, 0.3], dtype=F64)
    policy, beta = reference, 0.4
    for _ in range(3000):
        policy = nash_md_step(policy, reference, CYCLE, eta=0.05, beta=beta)
    # A fixed point of the step: ηβ ln π = ηβ ln μ + η P(y > π^μ) + const.
    mixed = torch.softmax((1 - 0.02) * policy.log() + 0.02 * reference.log(), 0)
    answer = torch.softmax(reference.log() + CYCLE @ mixed / beta, 0)
    torch.testing.assert_close(policy, answer, rtol=1e-8, atol=1e-10)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got 2"):
        nash_md_step(policy, reference, CYCLE, eta=10.0, beta=0.2)


# ---------------------------------------------------------------------------- chains


def test_the_kl_of_dpok():
    """S2: ‖μ − μ′‖²/(2σ²) summed over a state, as torch.distributions has it."""
    mean, other = draw(2, 4, 3, 5)
    std = torch.rand(4, 1, 1, dtype=F64) + 0.2
    measured = Transition(mean, std).kl(Transition(other, std))
    laws = [torch.distributions.Normal(m, std) for m in (mean, other)]
    expected = torch.distributions.kl_divergence(*laws).sum((1, 2))
    torch.testing.assert_close(measured, expected, rtol=1e-12, atol=1e-12)
    closed = ((mean - other) ** 2).sum((1, 2)) / (2 * std[:, 0, 0] ** 2)
    torch.testing.assert_close(measured, closed, rtol=1e-12, atol=1e-12)


def test_d3po_is_dpo_of_clamped_ratios():
    w, l = (0.02 * draw(2, 6)).requires_grad_().unbind()
    zero = torch.zeros(6, dtype=F64)
    plain = pairwise_loss(w, l, zero, zero, beta=10.0)
    never = pairwise_loss(*(clamped_log_ratio(r, math.inf) for r in (w, l)), zero, zero, beta=10.0)
    torch.testing.assert_close(plain, never)
    torch.testing.assert_close(plain, -torch.log(torch.sigmoid(10 * (w - l))))
    inside = pairwise_loss(*(clamped_log_ratio(r, 0.1) for r in (w, l)), zero, zero, beta=10.0)
    torch.testing.assert_close(plain, inside)
    far = torch.tensor([1.0, -2.0], dtype=F64, requires_grad=True)
    clamped = clamped_log_ratio(far, 0.1)
    torch.testing.assert_close(clamped, torch.tensor([1.1, 0.9], dtype=F64).log())
    loss = pairwise_loss(clamped[:1], clamped[1:], zero[:1], zero[:1])
    assert not torch.autograd.grad(loss.sum(), far)[0].any()
    with pytest.raises(ValueError, match="clip must be > 0"):
        clamped_log_ratio(far, 0)


def test_prdp_is_solved_by_the_tilt():
    """Chains of two Gaussian steps on the line: its loss is 0 at π ∝ π_ref e^{r/β}, r = a·x₂.

    The tilt of x₁ ~ N(0, 1), x₂ ~ N(x₁, 1) by e^{a x₂/β} moves the mean of each step by a/β.
    """
    slope, beta = 0.8, 0.5
    first, second = draw(2, 2, 64)
    x1 = first
    x2 = x1 + second

    def ratio(side, moved=1.0):
        shift = torch.tensor(moved * slope / beta, dtype=F64)
        one = torch.distributions.Normal(shift, 1.0).log_prob(x1[side])
        one = one - torch.distributions.Normal(0 * shift, 1.0).log_prob(x1[side])
        two = torch.distributions.Normal(x1[side] + shift, 1.0).log_prob(x2[side])
        return one + two - torch.distributions.Normal(x1[side], 1.0).log_prob(x2[side])

    rewards = (slope * x2[0], slope * x2[1])
    assert float(prdp((ratio(0), ratio(1)), rewards, beta).abs().max()) < 1e-24
    assert float(prdp((ratio(0, 0.9), ratio(1, 0.9)), rewards, beta).mean()) > 1e-4


def test_prdp_stays_near_the_last_round():
    zero = torch.zeros(1, dtype=F64)
    new = torch.tensor([0.5], dtype=F64, requires_grad=True)
    given = {"old_log_ratios": (zero, zero), "clip": 0.1}
    rewards = (torch.ones(1, dtype=F64), zero)
    far = prdp((new, zero), rewards, 1.0, **given)
    assert far.item() == pytest.approx(0.9**2)  # that of the clipped ratio, the larger one
    assert torch.autograd.grad(far.sum(), new)[0].item() == 0
    wrong = prdp((-new, zero), rewards, 1.0, **given)
    assert torch.autograd.grad(wrong.sum(), new)[0].item() != 0


# ---------------------------------------------------------------------------- others


def test_povid_with_one_way_to_be_worse_is_dpo():
    w, l, noisy = draw(3, 6)
    zero = torch.zeros_like(w)
    one = povid(w, l, noisy, alpha=0.3, betas=(0.3, 0.0))
    torch.testing.assert_close(one, pairwise_loss(w, l, zero, zero, beta=0.3))
    both = povid(w, l, noisy, alpha=1.0, betas=(0.5, 0.5))
    torch.testing.assert_close(both, -torch.log(torch.sigmoid(w - l / 2 - noisy / 2)))


def test_expo():
    aligned, base = ({"a": draw(2, 3, seed=s), "b": draw(4, seed=s)} for s in (1, 2))
    assert all(torch.equal(extrapolated(aligned, base, 0.0)[k], aligned[k]) for k in aligned)
    for k in aligned:
        torch.testing.assert_close(extrapolated(aligned, base, -1.0)[k], base[k])
        expected = 1.5 * aligned[k] - 0.5 * base[k]
        torch.testing.assert_close(extrapolated(aligned, base, 0.5)[k], expected)
    with pytest.raises(ValueError, match=r"the same names; only one has \['b'\]"):
        extrapolated(aligned, {"a": base["a"]}, 0.5)


def test_offsets_of_scores():
    one, other = torch.tensor([3.0, 1.0, 2.0]), torch.tensor([1.0, 3.0, 2.0])
    assert score_offset(one, other, 0.5).tolist() == [1.0, -1.0, 0.0]
    logs = score_offset(one, other, 0.5, log=True)
    torch.testing.assert_close(logs, torch.tensor([1.0, -1.0, 0.0]) * 0.5 * math.log(3))


def test_the_scale_of_a_batch():
    gaps = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    scale = adaptive_scale(gaps, 1.5, sensitivity=0.6)
    torch.testing.assert_close(scale, torch.full((3,), 1.3))
    assert not scale.requires_grad
    assert float(adaptive_scale(gaps, 100.0).max()) == pytest.approx(1e-3)


def test_typical_pairs_are_kept():
    gaps = torch.tensor([0.0, 0.1, -0.1, 50.0, 0.2])
    generator = torch.Generator().manual_seed(0)
    assert typical_pairs(gaps, 0.0, 1.0, 4, generator).tolist() == [0, 1, 2, 4]
    draws = [typical_pairs(torch.tensor([0.0, 1.5]), 0.0, 1.0, 1, generator) for _ in range(4000)]
    share = float(torch.cat(draws).double().mean())
    expected = math.exp(-1.125) / (1 + math.exp(-1.125))
    assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / 4000)
    with pytest.raises(ValueError, match="keep must be from 1"):
        typical_pairs(gaps, 0.0, 1.0, 6)


def test_the_weight_of_what_the_policy_would_say():
    log_probs = torch.tensor([-2.0, -6.0], requires_grad=True)
    lengths = torch.tensor([2.0, 3.0])
    plain = on_policy_weight(log_probs, lengths)
    torch.testing.assert_close(plain, torch.exp(torch.tensor([-1.0, -2.0])))
    assert not plain.requires_grad
    # Where every token has the likelihood Σ_v π(v)² the weight is 1.
    torch.testing.assert_close(on_policy_weight(log_probs, lengths, log_probs), torch.ones(2))


def test_baselines_are_unbiased_and_quieter():
    """S4: on a bandit of 3 arms, against the exact gradient of E R in the logits."""
    logits = torch.tensor([0.2, -0.3, 0.5], dtype=F64)
    reward = torch.tensor([1.0, 2.0, 4.0], dtype=F64)
    policy = logits.softmax(0)
    exact = policy * (reward - policy @ reward)
    rounds, k = 20_000, 4
    generator = torch.Generator().manual_seed(0)
    arms = torch.multinomial(policy.expand(rounds, 3), k, replacement=True, generator=generator)
    slopes = torch.nn.functional.one_hot(arms, 3).double() - policy  # ∇ ln π of each draw
    rewards = reward[arms]
    greedy = reward[policy.argmax()].expand(rounds, k)
    variances = {}
    for name, advantage in {
        "reinforce": rewards,
        "rloo": leave_one_out(rewards),
        "remax": less_greedy(rewards, greedy),
    }.items():
        estimates = (advantage[..., None] * slopes).mean(1)
        error = estimates.std(0) / math.sqrt(rounds)
        assert bool(((estimates.mean(0) - exact).abs() < 3 * error).all()), name
        variances[name] = float(estimates.var(0).sum())
    assert variances["rloo"] < variances["reinforce"]
    assert variances["remax"] < variances["reinforce"]
    with pytest.raises(ValueError, match="two or more samples"):
        leave_one_out(rewards[:, :1])
