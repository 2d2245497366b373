"""The world of words: nothing held out is learned from, and what is drawn is what is asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scoretune.core.errors import UserError
from scoretune.data import words
from scoretune.data.prompts import read_prompts
from scoretune.data.scenes.draw import BACKGROUND


def test_held_out_words_are_no_training_words():
    assert len(set(words.WORDS)) == len(words.WORDS)
    assert all(words.asked(words.prompt(word)) == word for word in words.WORDS)
    assert set(words.TRAINING) | set(words.HELD_OUT) == set(words.WORDS)
    assert not set(words.TRAINING) & set(words.HELD_OUT)
    assert len(words.HELD_OUT) == 50


def test_nothing_to_learn_from_is_a_held_out_word():
    rng, held = np.random.default_rng(0), set(words.HELD_OUT)
    drawn = [words.any_word(rng) for _ in range(5000)]
    assert not held & set(drawn)
    assert {letter for word in drawn for letter in word} == set(words.LETTERS)
    near = [w[:2] + "x" for w in words.HELD_OUT]  # a letter away from a held-out word
    wrong = [words.misspelt(word, rng) for word in near * 40]
    assert not held & set(wrong)
    apart = [sum(map(str.__ne__, a, b)) for a, b in zip(near * 40, wrong, strict=True)]
    assert set(apart) == {1}


def test_the_files_of_prompts_are_read_as_they_are_meant(tmp_path):
    words.write_prompts(tmp_path)
    read = read_prompts(str(tmp_path / "heldout.txt")).texts
    assert [words.asked(text) for text in read] == list(words.HELD_OUT)
    assert len(read_prompts(str(tmp_path / "words.txt"))) == len(words.TRAINING)


@pytest.mark.parametrize("text", ['"cats"', '"c t"', '"c4t"', ""])
def test_a_prompt_that_is_no_word_is_refused(text):
    with pytest.raises(UserError, match="no word of 3 letters"):
        words.asked(text)


def test_pictures_follow_from_words_and_seed():
    told = ["cat", "dog", "cat", "cat"] * 4
    some, same = (words.drawn(told, np.random.default_rng(3)) for _ in range(2))
    assert torch.equal(some, same)
    assert some.shape == (16, 3, 24, 48)
    assert 0 <= float(some.min()) < float(some.max()) <= 1
    shown = (some - torch.from_numpy(BACKGROUND)[:, None, None]).abs().amax(1) > 0.2
    cells = shown.unflatten(2, (3, 16)).float().mean((1, 3))
    assert bool(((cells > 0.02) & (cells < 0.6)).all())  # every cell has a letter in it
    assert len({picture.numpy().tobytes() for picture in some}) > 12


def test_every_letter_has_looks_of_its_own():
    looks = [(font, size) for font in words.FONTS for size in words.SIZES]
    for look in looks:
        assert len({words.glyph(letter, *look).tobytes() for letter in words.LETTERS}) == 26
    assert len({words.glyph("a", *look).tobytes() for look in looks}) == len(looks)
