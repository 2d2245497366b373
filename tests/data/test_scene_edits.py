"""Edits of scenes in words: a sentence means one edit, and corrections mend a scene."""

from __future__ import annotations

import numpy as np
import pytest

from scoretune.data.scenes import edits, world
from scoretune.data.scenes.draw import draw_in_hands
from scoretune.data.scenes.edits import Edit
from scoretune.data.scenes.world import EMPTY, Item, Layout

RED, GREEN, BLUE = 0, 1, 2


def layout(**cells: tuple[int, int]) -> Layout:
    places = {"a": 0, "b": 1, "c": 2, "d": 3}
    digits, colours = [EMPTY] * 4, [0] * 4
    for name, (digit, colour) in cells.items():
        digits[places[name]], colours[places[name]] = digit, colour
    return Layout(tuple(digits), tuple(colours))


@pytest.mark.parametrize(
    ("edit", "instruction", "complaint"),
    [
        (Edit("recolour", Item(7, RED)), "make the seven red", "the seven is not red"),
        (Edit("add", Item(2), side=0), "add a two on the left", "a two is missing on the left"),
        (Edit("remove", Item(5)), "remove the five", "the five is one too many"),
        (
            Edit("replace", Item(9), old=5),
            "replace the five by a nine",
            "there is the five where a nine should be",
        ),
        (
            Edit("move", Item(3), old=6, side=2),
            "move the three above the six",
            "the three is not above the six",
        ),
    ],
)
def test_an_edit_in_words(edit, instruction, complaint):
    assert (edit.instruction, edit.complaint) == (instruction, complaint)
    assert edits.edits_by_instruction()[instruction] == edit
    assert edits.edits_by_complaint()[complaint] == edit


def test_every_sentence_is_unlike_every_other():
    count = len(edits.every_edit())
    assert len(edits.edits_by_instruction()) == len(edits.edits_by_complaint()) == count
    known = {*world.DIGITS, *world.COLOURS, "a", "an", *" ".join(world.RELATIONS).split()}
    spoken = {word for text in edits.edits_by_instruction() for word in text.split()}
    assert spoken <= known | set(edits.WORDS)
    assert max(len(text.split()) for text in edits.edits_by_instruction()) <= 8  # and two ends


def test_outcomes_change_one_thing_and_leave_the_rest():
    scene = layout(a=(3, RED), d=(6, BLUE))
    assert Edit("recolour", Item(3, GREEN)).outcomes(scene) == [layout(a=(3, GREEN), d=(6, BLUE))]
    assert Edit("recolour", Item(3, RED)).outcomes(scene) == []
    assert Edit("remove", Item(6)).outcomes(scene) == [layout(a=(3, RED))]
    ends = Edit("add", Item(1, RED), side=0).outcomes(scene)
    assert ends == [layout(a=(3, RED), d=(6, BLUE), c=(1, RED))]
    # both are in the upper row: the one that is named cannot do it, so the other moves
    moved = Edit("move", Item(6), old=3, side=2).outcomes(layout(a=(6, RED), b=(3, BLUE)))
    assert moved
    assert all(end.digits.index(6) == 0 and end.digits.index(3) >= 2 for end in moved)
    below = Edit("move", Item(3), old=6, side=3).outcomes(scene)
    assert below
    assert all(end.digits.index(3) >= 2 > end.digits.index(6) for end in below)


def test_corrections_mend_any_scene_if_each_is_carried_out_in_turn():
    rng = np.random.default_rng(0)
    asks = world.every_ask()
    mended = 0
    for _ in range(300):
        ask = asks[rng.integers(len(asks))]
        digits = [int(d) if rng.random() < 0.5 else EMPTY for d in rng.integers(10, size=4)]
        scene = Layout(tuple(digits), tuple(int(c) for c in rng.integers(4, size=4)))
        scenes = [scene]
        for edit in edits.corrections(scene, ask):
            scenes = [end for one in scenes for end in edit.outcomes(one)][:200]
        mended += any(end.fulfils(ask) for end in scenes)
    assert mended >= 295  # twins of which the wrong one was meant are the rest


def test_a_scene_that_is_right_needs_no_correction():
    rng = np.random.default_rng(1)
    for ask in world.balanced(world.training_asks(), 5, 0):
        assert edits.corrections(world.lay_out(ask, rng), ask) == []


def test_what_has_the_same_hand_looks_the_same():
    before, after = layout(a=(3, RED), d=(6, BLUE)), layout(a=(3, RED), d=(6, GREEN))
    one, other = draw_in_hands([before, after], "pictures", [(1, 2, 3, 4), (1, 2, 3, 4)])
    assert (one[:, :16, :16] == other[:, :16, :16]).all()
    assert not (one[:, 16:, 16:] == other[:, 16:, 16:]).all()
    strokes = [picture[:, 16:, 16:].max(0) > 0.3 for picture in (one, other)]
    assert (strokes[0] == strokes[1]).mean() > 0.95  # one stroke in two colours
