"""Rewards that see the picture which a prompt edits."""

from __future__ import annotations

import math

import pytest
import torch

from scoretune.core.errors import UserError
from scoretune.data.prompts import Prompt, read_prompts
from scoretune.data.scenes import edit_lessons
from scoretune.data.scenes.edits import Edit
from scoretune.data.scenes.world import COLOURS, DIGITS, EMPTY, Item, Layout
from scoretune.rewards.base import checked
from scoretune.rewards.catalog import named_reward
from scoretune.rewards.scene_edit import Asked, carried_out
from scoretune.rewards.source_closeness import closeness
from scoretune.rewards.weighted import scored
from scoretune.training.sources.base import gathered

TWO = Layout((7, EMPTY, 3, EMPTY), (0, 0, 1, 0))
"""A red seven above a green three, and nothing on the right."""


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> tuple[Prompt, ...]:
    return read_prompts(str(edit_lessons.write(tmp_path_factory.mktemp("edits"), 20))).texts


def sure(layout: Layout, most: float = 30.0) -> torch.Tensor:
    """Logits [1, 4, 15] of a network that sees that layout."""
    logits = torch.zeros(1, 4, len(DIGITS) + 1 + len(COLOURS))
    for cell, (digit, colour) in enumerate(zip(layout.digits, layout.colours, strict=True)):
        logits[0, cell, digit] = most
        logits[0, cell, len(DIGITS) + 1 + colour] = most
    return logits


def test_closeness_is_one_of_the_source_alone():
    source = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(closeness(source, source), torch.ones(2))
    there = source.clone()
    there[1, 0, 0, 0] = (source[1, 0, 0, 0] + 0.5) % 1
    moved = float((there - source).abs().sum())
    assert closeness(there, source).tolist() == pytest.approx([1, 1 - moved / 48])
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    mixed = [x.flatten(2)[..., order].unflatten(2, (4, 4)) for x in (there, source)]
    torch.testing.assert_close(closeness(*mixed), closeness(there, source))


def test_the_source_reaches_a_reward_and_its_gradient_the_image(prompts):
    reward = named_reward("source_closeness")
    own = torch.stack([prompt.image for prompt in prompts[:3]])
    assert torch.equal(checked(reward, "own", own, prompts[:3]), torch.ones(3))
    small = torch.full((3, 3, 16, 16), 0.5, requires_grad=True)  # of another size: it is scaled
    checked(reward, "own", small, prompts[:3]).sum().backward()
    assert small.grad is not None and float(small.grad.abs().sum()) > 0
    with pytest.raises(UserError, match="compares with the picture that is edited, and the prom"):
        checked(reward, "own", own[:1], ["make the one blue"])


def test_a_users_reward_gets_the_pictures(prompts):
    def mine(images, texts):
        return torch.stack([text.image.mean() for text in texts])

    values = checked(mine, "mine", torch.zeros(2, 3, 32, 32), prompts[:2])
    assert values.tolist() == pytest.approx([float(p.image.mean()) for p in prompts[:2]])


def test_an_edit_is_carried_out_by_its_outcomes_alone():
    blue = Edit("recolour", Item(7, 2))
    after = Layout(TWO.digits, (2, 0, 1, 0))
    for seen, probability in (
        (after, 1.0),
        (TWO, 0.0),
        (Layout((7, 1, 3, EMPTY), (2, 0, 1, 0)), 0),
    ):
        assert float(carried_out(sure(seen), [Asked(blue, TWO)])) == pytest.approx(probability)
    impossible = Edit("recolour", Item(5, 2))  # there is no five
    assert float(carried_out(sure(TWO), [Asked(impossible, TWO)])) == 0


def test_an_edit_of_a_network_that_knows_nothing():
    """A nine of any colour in one of two cells: eight times p(4 cells) · p(3 colours)."""
    nine = Edit("add", Item(9))
    expected = 8 * (1 / 11) ** 4 * (1 / 4) ** 3
    value = float(carried_out(torch.zeros(1, 4, 15), [Asked(nine, TWO)]))
    assert value == pytest.approx(expected) == pytest.approx(8.5376e-06, rel=1e-4)
    both = [Asked(nine, TWO), Asked(Edit("recolour", Item(7, 2)), TWO)]  # one and eight outcomes
    alone = (1 / 11) ** 4 * (1 / 4) ** 2
    assert carried_out(torch.zeros(2, 4, 15), both).tolist() == pytest.approx([value, alone])


def test_scene_edit_reads_both_pictures(prompts):
    reward = named_reward("scene_edit")
    kept = torch.stack([prompt.image for prompt in prompts[:5]]).requires_grad_()
    values = checked(reward, "scene_edit", kept, prompts[:5])
    assert values.shape == (5,) and float(values.detach().max()) < 0.5  # nothing was carried out
    values.sum().backward()
    assert kept.grad is not None and math.isfinite(float(kept.grad.abs().sum()))
    with pytest.raises(UserError, match="reads the picture that is edited, and the prompt"):
        checked(reward, "scene_edit", torch.zeros(1, 3, 32, 32), ["make the one blue"])


def test_two_pictures_of_one_text_are_two_prompts_to_what_remembers_rewards(prompts):
    texts = [Prompt("one", picture=prompt.picture) for prompt in prompts[:2]]
    kept = gathered(scored(named_reward("brightness"), "b", torch.zeros(2, 3, 8, 8), texts))
    assert len(set(kept.prompts)) == 2 and all(type(each) is str for each in kept.prompts)
