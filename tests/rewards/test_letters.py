"""The judge of words: reads what is drawn, through noise and ink, and nothing else for it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scoretune.core.errors import UserError
from scoretune.data import words
from scoretune.data.scenes.draw import BACKGROUND
from scoretune.rewards.base import checked
from scoretune.rewards.catalog import named_reward
from scoretune.rewards.letters import read


def test_it_reads_every_letter_of_every_look():
    rng = np.random.default_rng(0)
    told = [words.any_word(rng) for _ in range(200)]
    pictures = words.drawn(told, rng)
    seen = ["".join(words.LETTERS[n] for n in row) for row in read(pictures)]
    assert seen == told
    noisy = (pictures + 0.05 * torch.randn(pictures.shape)).clamp(0, 1)
    seen = ["".join(words.LETTERS[n] for n in row) for row in read(noisy)]
    assert sum(map(str.__eq__, seen, told)) >= 190


def test_the_reward_is_the_share_of_letters_or_whether_all_are_right():
    picture = words.drawn(["cat"] * 3, np.random.default_rng(1))
    asked = ['"cat"', '"car"', '"dog"']
    values = checked(named_reward("letters"), "letters", picture, asked)
    assert values.tolist() == pytest.approx([1, 2 / 3, 0])
    whole = checked(named_reward("letters(whole=true)"), "letters", picture, asked)
    assert whole.tolist() == [1, 0, 0]


def test_its_likeness_is_the_correlation_with_a_template():
    """A picture at half the contrast is read alike; a blank one breaks nothing."""
    picture = words.drawn(["fox"], np.random.default_rng(2))
    paper = torch.from_numpy(BACKGROUND)[:, None, None]
    assert torch.equal(read(paper + (picture - paper) / 2), read(picture))
    assert read(paper.expand(1, 3, 24, 48)).shape == (1, 3)


def test_other_pictures_and_prompts_are_refused():
    reward = named_reward("letters")
    with pytest.raises(UserError, match="24x48"):
        checked(reward, "letters", torch.rand(1, 3, 32, 32), ['"cat"'])
    with pytest.raises(UserError, match="no word of 3 letters"):
        checked(reward, "letters", torch.rand(1, 3, 24, 48), ["a red seven"])
