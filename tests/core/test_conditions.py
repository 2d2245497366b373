"""Conditions: one tensor or several by name, of texts of one length or several."""

from __future__ import annotations

import pytest
import torch

from scoretune.core.conditions import Condition, Named, joined
from scoretune.diffusion import estimates
from scoretune.diffusion.kernels import GDDIM
from scoretune.diffusion.processes import RectifiedFlow
from scoretune.policy import Policy, guided_by_picture


def texts(*lengths: int, longest: int = 0, masked: bool = True) -> Named:
    """Texts of ones, a row each, with a mask and a number of its own."""
    longest = longest or max(lengths)
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    rows = {"states": mask[..., None] * torch.ones(2), "size": torch.tensor(lengths).float()}
    return Named({**rows, **({"mask": mask} if masked else {})}, {"places": 7}, "states", masked)


def test_shorter_texts_are_filled_up_in_their_masks_too():
    both = joined([texts(2), texts(3, 1)])
    assert both.rows["mask"].tolist() == [[1, 1, 0], [1, 1, 1], [1, 0, 0]]
    assert both.rows["states"][..., 0].tolist() == both.rows["mask"].tolist()
    assert both.rows["size"].tolist() == [2, 3, 1]
    assert both.shared == {"places": 7} and len(both) == 3


def test_texts_of_several_lengths_need_a_mask():
    with pytest.raises(ValueError, match="need a mask"):
        joined([texts(2, masked=False), texts(3, masked=False)])


def test_rows_are_taken_and_the_rest_is_shared():
    condition = Condition(texts(3, 1, 2), texts(1))
    taken = condition.take(torch.tensor([2, 0]))
    assert taken.tokens.rows["size"].tolist() == [2, 3]
    assert taken.tokens.shared == {"places": 7} and taken.null is condition.null
    assert condition.of_one(4).tokens.rows["size"].tolist() == [3] * 4
    assert torch.equal(condition.summary, condition.tokens.rows["states"])
    moved = condition.to(torch.device("meta"))
    assert moved.device.type == "meta" and moved.null.device.type == "meta"


@pytest.mark.parametrize("named", [True, False])
def test_dropped_prompts_are_the_empty_one(named):
    if named:
        dropped = Condition(texts(3, 1), texts(2)).dropped(torch.tensor([False, True]))
        assert dropped.rows["size"].tolist() == [3, 2]
        assert dropped.rows["mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    else:
        tokens, null = torch.ones(2, 3, 1), torch.zeros(3, 1)
        dropped = Condition(tokens, null).dropped(torch.tensor([False, True]))
        assert dropped[:, 0, 0].tolist() == [1, 0]


class Reader:
    """Its output is the mean of a text, in however many calls; scaled guidance as it is asked."""

    process, prediction, shape = RectifiedFlow(), estimates.velocity, (1,)
    network = torch.nn.Linear(1, 1)

    def __init__(self) -> None:
        self.asked: list[int] = []

    def encode(self, prompts): ...

    def decode(self, x0): ...

    def embed(self, images): ...

    def predict(self, x, t, tokens):
        self.asked.append(len(x))
        states = tokens.rows["states"]
        return states.flatten(1).sum(1, keepdim=True) + 0 * x


@pytest.mark.parametrize(("masked", "asked"), [(True, [4]), (False, [2, 2])])
def test_guidance_asks_once_or_twice(masked, asked):
    """Texts that no mask tells apart cannot share a batch with a shorter empty one."""
    backbone = Reader()
    policy = Policy(backbone, GDDIM(0.0), guidance=3.0)
    condition = Condition(texts(3, 3, masked=masked), texts(1, masked=masked))
    x, t = torch.zeros(2, 1), torch.full((2,), 0.5)
    data = policy.estimate(x, t, condition).data
    assert backbone.asked == asked
    assert data.flatten().tolist() == [-0.5 * (2 + 3 * (6 - 2))] * 2  # x0 = x − t u


class Guider(Reader):
    def guided(self, free, bound, scale):
        return bound + scale


def test_a_backbone_may_have_a_guidance_of_its_own():
    policy = Policy(Guider(), GDDIM(0.0), guidance=3.0)
    condition = Condition(texts(3), texts(1))
    data = policy.estimate(torch.zeros(1, 1), torch.full((1,), 0.5), condition).data
    assert data.item() == -0.5 * (6 + 3)


def test_what_a_prompt_leaves_behind_may_differ_by_its_picture():
    condition = Condition(texts(3, 1, 2), texts(2, 2, 1), own_nulls=True, blind=texts(1))
    taken = condition.take(torch.tensor([2, 0]))
    assert taken.null.rows["size"].tolist() == [1, 2]
    assert [twin.rows["size"].tolist() for twin in taken.twins] == [[1, 1], [1, 2]]
    both = Condition.joined([taken, condition])
    assert both.null.rows["size"].tolist() == [1, 2, 2, 2, 1] and both.own_nulls
    dropped = condition.dropped(torch.tensor([False, True, True]))
    assert dropped.rows["size"].tolist() == [3, 2, 1]


def test_guidance_by_the_picture_is_that_of_instruct_pix2pix():
    """e(∅,∅) + s_I (e(c_I,∅) − e(∅,∅)) + s_T (e(c_I,c_T) − e(c_I,∅)): 1 + 1.5·1 + 3·2 = 8.5."""
    blind, free, bound = (torch.tensor([value]) for value in (1.0, 2.0, 4.0))
    guided = free + 3.0 * (bound - free)
    assert float(guided_by_picture(guided, free, blind, 1.5)) == 8.5
    assert float(guided_by_picture(guided, free, blind, 1.0)) == float(guided)  # not by it
