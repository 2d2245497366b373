"""Online DPO: the policy's own samples as pairs, learned from by the losses of pairs of data."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import small_model
from scoretune import recipes
from scoretune.core.errors import UserError
from scoretune.core.records import PairExamples
from scoretune.preference import dispersion, phi_star, vote_agreement
from scoretune.training import build, overrides
from scoretune.training.objectives.preference_losses import loss_of
from scoretune.training.sources.ranking import (
    RankedPairs,
    kept,
    reward_entropies,
    reward_scales,
    vote_scales,
)

SMALL = [
    *("sizes.prompts=2", "sizes.group=3", "sizes.minibatch=2", "sampling.steps=4"),
    *("model.rank=2", "reward=small_model:bright", "guard.action=off"),
]


EVERY = ["objective.ranking.pairing=all", "sizes.epochs=1"]
PROMPTS = ("cat", "horse", "owls", "ox")


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """What a small run of online DPO with changes is made of, its adapter moved a little."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))

    def of(*changes: str) -> build.Parts:
        first = ["model.source=small_model:noising", "prompts=prompts.txt", *SMALL]
        run = overrides.changed(recipes.online_dpo(), [*first, *changes])
        torch.manual_seed(3)
        made = build.build(run, build.check(run))
        with torch.no_grad():
            for parameter in made.policy.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        return made

    return of


def gap_of(made: build.Parts, pairs: PairExamples) -> Tensor:
    """By how much the first side's reward is the higher, [B]."""
    by_length = {len(prompt): prompt for prompt in PROMPTS}
    lengths = (10 * pairs.condition.tokens.flatten()).round().int().tolist()
    texts = [by_length[length] for length in lengths]
    first, second = (made.policy.decode(side) for side in (pairs.first, pairs.second))
    return small_model.bright(first, texts) - small_model.bright(second, texts)


def test_the_better_sample_of_a_prompt_comes_first(parts):
    made = parts("sizes.epochs=2")
    batches = made.method.source(0)
    pairs = batches.minibatches.whole
    assert len(pairs) == 2 * 2 and batches.epochs == 2 and batches.counts == (2, 2)
    assert (gap_of(made, pairs) > 0).all()
    assert pairs.label.tolist() == [1.0] * 4
    # Each epoch sees the same samples at other times and with other noise.
    assert torch.equal(pairs.first[:2], pairs.first[2:])
    assert (pairs.share[:2] != pairs.share[2:]).all()
    assert not torch.equal(pairs.noise[:2], pairs.noise[2:])
    rows = [part.tolist() for part in batches.minibatches.rows]
    assert sorted(rows[0]) == [0, 1] and sorted(rows[1]) == [2, 3]


def test_the_loss_is_that_of_pairs_of_data(parts):
    made = parts("objective.beta=30", "objective.preset=ipo")
    like = recipes.dpo().objective.model_copy(update={"preset": "ipo", "beta": 30.0})
    pairs = made.method.source(0).minibatches[0]
    assert torch.equal(made.method.objective(pairs).value, loss_of(like, made.policy)(pairs).value)


def test_the_acting_policy_as_the_reference(parts):
    """Before the first step the policy is its own reference: log 2; later as an exact copy says."""
    made = parts("objective.reference=acting", "objective.beta=50")
    pairs = made.method.source(0).minibatches.whole
    loss = made.method.objective
    assert float(loss(pairs).value) == pytest.approx(math.log(2), abs=1e-6)
    assert float(loss(replace(pairs, reference=None)).value) != pytest.approx(math.log(2), abs=1e-3)
    with made.policy.reference():
        pretrained = loss.likelihood.outputs((pairs.first, pairs.second), pairs)
    torch.testing.assert_close(
        loss(replace(pairs, reference=pretrained)).value,
        loss(replace(pairs, reference=None)).value,
    )


def test_the_margin_of_odpo_is_the_difference_of_rewards(parts):
    made = parts("objective.preset=odpo", "objective.margin=2", *EVERY)
    pairs = made.method.source(0).minibatches.whole
    assert len(pairs) == 2 * 3
    torch.testing.assert_close(pairs.margin, 2 * gap_of(made, pairs), rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------- how disputed


def test_scales_follow_the_agreement_of_votes_or_of_rewards():
    label = torch.tensor([1.0, 2 / 3, 1.0, 2 / 3])
    ones = torch.ones(4)
    whose, row = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1])
    pairs = RankedPairs(row, row, ones, label, ones, whose, row)
    agreed = vote_agreement(3 * label[:2].double(), 3 - 3 * label[:2].double())
    scales = vote_scales(pairs, raters=3)
    torch.testing.assert_close(scales, agreed / agreed.mean())
    assert scales[0] > scales[1]  # pushed harder where the raters agree
    assert vote_scales(pairs._replace(label=0.5 * ones), raters=2).tolist() == [1.0, 1.0]
    rewards = torch.tensor([0.0, 0.0, 0.0, 10.0, 0.0, 0.0])
    equal, apart = reward_entropies(rewards, 3, temperature=1.0).tolist()
    assert equal == pytest.approx(1.0) and apart < 0.01
    rewards[1] = 0.5
    entropies = reward_entropies(rewards, 3, temperature=1.0)
    scales = reward_scales(rewards, 3, temperature=1.0)
    torch.testing.assert_close(scales, dispersion(entropies, phi_star(entropies)))
    assert float(scales.mean()) == pytest.approx(1.0)
    assert reward_scales(torch.zeros(6), 3, temperature=1.0).tolist() == [1.0, 1.0]


def test_a_round_of_ties_is_one_pair_that_counts_for_nothing():
    ones = torch.ones(3)
    pairs = RankedPairs(ones, ones, 0 * ones, 0.5 * ones, 0 * ones, ones, ones)
    assert kept(pairs).tolist() == [0]
    assert kept(pairs._replace(weight=torch.tensor([0.0, 1.0, 1.0]))).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["sizes.group=1"], "sizes.group=1 leaves nothing to compare"),
        (["hardware.device_batch=1"], "device_batch=1 holds no pair"),
        (["objective.preset=simpo", "objective.reference=acting"], "acting is of no use in preset"),
        (["objective.preset=rainbow"], "set objective.dispersion=votes .*or samples"),
        (["objective.preset=rainbow", "objective.dispersion=votes"], "counts raters: set"),
        (["objective.likes=true"], "likes=true is of no use here: it is for recipes on pairs"),
        (["sizes.share=0.5"], "sizes.share=0.5 is of no use here"),
        (["objective.preset=dpoo"], "unknown preset|did you mean"),
        (["objective.beta=0"], "greater than|objective.beta"),
    ],
)
def test_what_cannot_be_ranked_is_refused(changes, said):
    with pytest.raises(UserError, match=said):
        build.check_settings(overrides.changed(recipes.online_dpo(), changes))
