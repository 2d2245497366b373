"""Preferences about steps: D3PO's and SPO's losses against densities, and the pairs they are of."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal
from torch.nn.functional import logsigmoid

from scoretune import recipes
from scoretune.core.conditions import Condition
from scoretune.core.config import Ranking
from scoretune.core.errors import UserError
from scoretune.core.records import StepPairs, Steps
from scoretune.data.prompts import Prompts
from scoretune.diffusion import grids
from scoretune.diffusion.kernels import GDDIM
from scoretune.diffusion.processes import VP
from scoretune.models import toy
from scoretune.policy import Policy
from scoretune.preference import PRESETS, pairwise_loss
from scoretune.training import build, overrides
from scoretune.training.credit.outcome import GroupCredit
from scoretune.training.objectives.step_preference import StepPreferenceLoss
from scoretune.training.sources.on_policy import OnPolicy, Sizes
from scoretune.training.sources.ranking import labels, ranked_pairs
from scoretune.training.sources.step_choice import any_steps
from scoretune.training.sources.step_pairs import Candidates, PathSteps

D, M = 6, 5


def policy_at(theta: float) -> Policy:
    """The exact scores of N(1, ¼) in D dimensions, and a control of size θ beside them."""
    control = toy.HatControl(D).double()
    with torch.no_grad():
        control.table.copy_(
            theta * torch.sin(torch.arange(control.table.numel()).double()).view_as(control.table)
        )
    return Policy(toy.Controlled(toy.Gaussian(VP(), 1.0, 0.25, D), control), GDDIM(1.0))


def side(policy: Policy, seed: int) -> Steps:
    """Steps from random states, drawn by the pretrained policy in float64."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(M, D, generator=draw, dtype=torch.float64)
    t = torch.rand(M, generator=draw, dtype=torch.float64) * 0.5 + 0.4
    with torch.no_grad(), policy.reference():
        data = policy.estimate(x, t, Condition.none(M)).data
        x_next = policy.transition(x, t, t - 0.1, Condition.none(M)).draw(draw)
    weight = torch.ones(M, dtype=torch.float64)
    return Steps(x, t, t - 0.1, Condition.none(M), data, weight, x_next=x_next)


def pairs_of(policy: Policy, label: Tensor | None = None) -> StepPairs:
    label = torch.ones(M, dtype=torch.float64) if label is None else label
    return StepPairs(label, torch.ones_like(label), side(policy, 1), side(policy, 2))


def log_ratio(policy: Policy, steps: Steps) -> Tensor:
    """log π_θ − log π_ref from the densities themselves, [M, D]."""
    step = policy.transition(steps.x, steps.t, steps.t_next, steps.condition)
    own = Normal(step.mean, step.std).log_prob(steps.x_next)
    with torch.no_grad(), policy.reference():
        step = policy.transition(steps.x, steps.t, steps.t_next, steps.condition)
        reference = Normal(step.mean, step.std).log_prob(steps.x_next)
    return own - reference


def gradient(policy: Policy, loss: Tensor) -> Tensor:
    return torch.autograd.grad(loss, policy.backbone.control.table)[0]


def assert_same_gradient(policy: Policy, loss: Tensor, expected: Tensor) -> None:
    ours, theirs = gradient(policy, loss), gradient(policy, expected)
    assert float(theirs.abs().max()) > 1e-6
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_without_a_clip_it_is_dpo_on_the_log_ratios_of_steps():
    policy = policy_at(0.3)
    pairs = pairs_of(policy)
    loss = StepPreferenceLoss(policy, PRESETS["dpo"], beta=0.7)(pairs).value
    first, second = (log_ratio(policy, s).sum(1) for s in (pairs.first, pairs.second))
    expected = -logsigmoid(0.7 * (first - second)).mean()
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
    assert_same_gradient(policy, loss, expected)


def test_the_published_loss_of_means_is_temperature_d_or_a_smaller_beta():
    """D3PO's code: log-probabilities are means over the elements, and ratios are clamped."""
    policy, beta, eps = policy_at(0.3), 0.1, 0.1
    pairs = pairs_of(policy)
    first, second = (log_ratio(policy, s).mean(1) for s in (pairs.first, pairs.second))
    held = [torch.clamp(r.exp(), 1 - eps, 1 + eps).log() for r in (first, second)]
    expected = -logsigmoid(beta * held[0] - beta * held[1]).mean()
    ours = StepPreferenceLoss(policy, PRESETS["dpo"], beta, eps, temperature=D)(pairs).value
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    unclamped = -logsigmoid(beta * (first - second)).mean()
    for loss in (
        StepPreferenceLoss(policy, PRESETS["dpo"], beta, temperature=D),
        StepPreferenceLoss(policy, PRESETS["dpo"], beta / D),
    ):
        torch.testing.assert_close(loss(pairs).value, unclamped, rtol=0, atol=1e-12)


def test_beyond_the_clip_a_step_has_no_gradient():
    policy, eps = policy_at(4.0), 0.05
    pairs = pairs_of(policy)
    ratios = torch.stack([log_ratio(policy, s).sum(1) for s in (pairs.first, pairs.second)])
    inside = (ratios.exp() - 1).abs() <= eps
    assert not inside.any()  # every ratio has left the band
    loss = StepPreferenceLoss(policy, PRESETS["dpo"], 1.0, eps)(pairs)
    assert not gradient(policy, loss.value).any()
    assert float(loss.metrics["clip_fraction"]) == 1.0
    near = policy_at(1e-4)
    pairs = pairs_of(near)
    free = StepPreferenceLoss(near, PRESETS["dpo"], 1.0)(pairs).value
    held = StepPreferenceLoss(near, PRESETS["dpo"], 1.0, eps)(pairs)
    assert_same_gradient(near, held.value, free)
    assert float(held.metrics["clip_fraction"]) == 0.0


@pytest.mark.parametrize("preset", ["ipo", "simpo", "slic", "cpo", "dpop", "nca"])
def test_presets_see_likelihoods_less_their_share_of_the_reference(preset):
    """u = log π_θ − α log π_ref of any preset, from the densities; a label mixes both sides."""
    policy, law = policy_at(0.2), PRESETS[preset]
    label = torch.tensor([1.0, 0.5, 0.7, 0.0, 1.0], dtype=torch.float64)
    pairs = pairs_of(policy, label)

    def densities(steps: Steps) -> Tensor:
        step = policy.transition(steps.x, steps.t, steps.t_next, steps.condition)
        return Normal(step.mean, step.std).log_prob(steps.x_next).sum(1)

    sides = [densities(s) for s in (pairs.first, pairs.second)]
    with torch.no_grad(), policy.reference():
        references = [densities(s) for s in (pairs.first, pairs.second)]
    size = torch.full_like(label, D)
    expected = pairwise_loss(
        *sides, *references, preset=law, beta=0.5, lengths=(size, size), label=label
    ).mean()
    ours = StepPreferenceLoss(policy, law, 0.5)(pairs).value
    assert_same_gradient(policy, ours, expected)


def test_steps_from_one_state_ask_the_network_once():
    policy = policy_at(0.3)
    pairs = pairs_of(policy)
    other = replace(pairs.first, x_next=pairs.second.x_next)
    one = replace(pairs, second=other, one_state=True)
    loss = StepPreferenceLoss(policy, PRESETS["dpo"], 0.5)
    policy.calls = 0
    value = loss(one).value
    assert policy.calls == M
    torch.testing.assert_close(value, loss(replace(one, one_state=False)).value)
    assert policy.calls == 3 * M


# -------------------------------------------------------------------------------- who is paired


def test_pairs_are_the_extremes_of_a_group_or_every_two():
    rewards = torch.tensor([1.0, 3.0, 2.0, 5.0, 5.0, 5.0])
    draw = torch.Generator()
    ends = ranked_pairs(rewards, 3, Ranking(), draw)
    assert (ends.first[0], ends.second[0]) == (1, 0)
    assert ends.first[1] != ends.second[1]  # a tie is a pair of two samples all the same
    assert ends.label.tolist() == [1.0, 0.5]
    assert ends.weight.tolist() == [1.0, 0.0]
    every = ranked_pairs(rewards, 3, Ranking(pairing="all", ties="keep"), draw)
    found = set(zip(every.first.tolist()[::2], every.second.tolist()[::2], strict=True))
    assert found == {(1, 0), (1, 2), (2, 0)}
    assert every.gap.tolist() == [1.0, 0.0, 2.0, 0.0, 1.0, 0.0]
    assert every.weight.tolist() == [1.0] * 6
    assert every.prompt.tolist() == [0, 1] * 3


def test_soft_labels_are_bradley_terry_and_votes_are_drawn_from_it():
    gap = torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64)
    draw = torch.Generator().manual_seed(1)
    soft, _ = labels(gap[None], Ranking(label="soft", temperature=0.5), draw)
    soft = soft[0]
    assert soft.tolist() == pytest.approx([1 / (1 + math.exp(-g / 0.5)) for g in gap.tolist()])
    many = gap[:, None].expand(3, 4000)
    votes, weight = labels(many, Ranking(label="votes", temperature=0.5, raters=2), draw)
    assert set(votes.flatten().tolist()) == {0.0, 0.5, 1.0}
    assert ((votes == 0.5) == (weight == 0)).all()
    for found, wanted in zip(votes.mean(1), soft, strict=True):
        spread = float((wanted * (1 - wanted) / 8000) ** 0.5)
        assert abs(float(found - wanted)) < 4 * spread + 1e-9


def on_policy(policy: Policy, sizes: Sizes, steps: int = 4) -> OnPolicy:
    return OnPolicy(
        policy=policy,
        prompts=Prompts(("a", "b", "c"), ("all",) * 3),
        reward=lambda images, prompts: images.flatten(1).sum(1),
        reward_name="sum",
        credit=GroupCredit(sizes.group),
        times=grids.uniform(policy.backbone.process, steps),
        sizes=sizes,
        seed=3,
        choose=any_steps(1.0),
    )


def test_d3po_pairs_the_same_steps_of_the_better_and_the_worse_path():
    policy = policy_at(0.1)
    sizes = Sizes(prompts=2, group=3, minibatch=5)
    batches = PathSteps(on_policy(policy, sizes), Ranking())(0)
    pairs = batches.minibatches.whole
    assert len(pairs) == 2 * 4 and batches.counts == (5, 3)
    assert torch.equal(pairs.first.t, pairs.second.t)
    assert not torch.equal(pairs.first.x, pairs.second.x)
    last = pairs.first.t_next == pairs.first.t_next.min()
    better, worse = (s.x_next[last].sum(1) for s in (pairs.first, pairs.second))
    assert (better > worse).all()
    with policy.reference():
        pretrained = policy.estimate(pairs.first.x, pairs.first.t, pairs.first.condition).data
    assert torch.equal(pairs.first.data, pretrained)
    acting = PathSteps(on_policy(policy, sizes), Ranking(), pretrained=False)(0)
    own = policy.estimate(pairs.first.x, pairs.first.t, pairs.first.condition).data
    assert torch.allclose(acting.minibatches.whole.first.data, own)
    every = PathSteps(on_policy(policy, Sizes(prompts=2, group=3, share=0.5)), Ranking())(0)
    assert len(every.minibatches.whole) == 2 * 2


def test_spo_goes_on_from_a_random_candidate_and_pairs_best_and_worst():
    policy = policy_at(0.1)
    paths = on_policy(policy, Sizes(prompts=3, group=1))
    source = Candidates(paths, Ranking(), count=4, threshold=0.0, skip=1)
    draw = paths.generator(0)
    condition, x = policy.encode(["a", "b", "c"]), paths.noise(["a", "b", "c"], draw)
    nodes = paths.times[:, None].expand(-1, 3)
    policy.calls = 0
    found = source.branch(condition, nodes, x, ["a", "b", "c"], draw)
    assert policy.calls == 3 * (1 + 1 + 2 * 4)  # at noise, after the skipped step, of candidates
    assert found.steps.tolist() == [1, 2, 3]
    following = torch.cat([found.states[1:], found.final[None]])
    picked = (found.candidates - following[:, :, None]).abs().amax(3) == 0
    assert (picked.sum(2) == 1).all()
    picks = picked.float().argmax(2)
    assert len(picks.unique()) > 1
    assert not torch.equal(picks, found.rewards.argmax(2))  # it is not the best that goes on
    ends = found.candidates[-1].sum(2)
    torch.testing.assert_close(found.rewards[-1], ends)  # an end is scored as it is
    assert found.scores is not None  # ... and not once more
    torch.testing.assert_close(found.scores.total, found.final.sum(1))
    t = nodes[2, 0].expand(12)
    expected = policy.estimate(found.candidates[0].flatten(0, 1), t, Condition.none(12)).data
    torch.testing.assert_close(found.rewards[0].flatten(), expected.sum(1))
    pairs = source(0).minibatches.whole
    assert pairs.one_state and torch.equal(pairs.first.x, pairs.second.x)
    assert len(pairs) == 9 and not torch.equal(pairs.first.x_next, pairs.second.x_next)


def test_spo_learns_only_from_candidates_that_are_apart():
    paths = on_policy(policy_at(0.1), Sizes(prompts=3, group=1))
    some = Candidates(paths, Ranking(temperature=4.0), count=4, threshold=0.4)
    paths.cursor = 0
    kept = some(0).minibatches.whole
    assert 0 < len(kept) < 12
    none = Candidates(paths, Ranking(temperature=1e6), count=4, threshold=0.4)(0)
    assert len(none.minibatches.whole) == 1
    assert none.minibatches.whole.weight.tolist() == [0.0]  # a round is never empty


@pytest.mark.parametrize(
    ("recipe", "changes", "said"),
    [
        ("d3po", ["sizes.group=1"], "sizes.group=1 leaves nothing to compare"),
        ("spo", ["objective.candidates=1"], "objective.candidates=1 leaves nothing"),
        ("spo", ["objective.skip=10"], "objective.skip=10 leaves none of the 10 steps"),
        ("d3po", ["objective.preset=mallows_phi"], "wants more than a pair of steps has"),
        ("d3po", ["objective.preset=dpoo"], "did you mean|nearest|dpo"),
        ("d3po", ["sampling.eta=0"], "sampling.eta=0 has no noise"),
        ("d3po", ["objective.skip=1"], "objective.skip=1 is of no use here"),
        ("spo", ["objective.ranking.pairing=all"], "pairing=all is of no use here"),
        ("d3po", ["objective.ranking.raters=5"], "raters=5 is of no use here"),
    ],
)
def test_what_cannot_be_compared_is_refused(recipe, changes, said):
    with pytest.raises(UserError, match=said):
        build.check_settings(overrides.changed(recipes.named(recipe), changes))
