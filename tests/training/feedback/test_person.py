"""A person as the critic: what they say becomes a critique, and instructions for an editor."""

from __future__ import annotations

import pytest

from scoretune.data.store import Reason
from scoretune.training.feedback import person
from scoretune.training.feedback.records import Shown
from studios import scene

UPPER_LEFT, LOWER_RIGHT = (0.1, 0.1, 0.4, 0.4), (0.6, 0.6, 0.9, 0.9)


def reason(text: str = "", *tags: str, box: person.Box | None = None) -> Reason:
    return Reason(1, "key", 2, 3, list(tags), text, box, 0.0)


def shown() -> Shown:
    """A picture that is to show a red seven, and shows a blue one and a green five."""
    return Shown("a red seven", scene("blue seven", "", "", "green five"))


@pytest.mark.parametrize(
    ("box", "words"),
    [
        (None, None),
        (UPPER_LEFT, "in the upper left"),
        (LOWER_RIGHT, "in the lower right"),
        ((0.4, 0.4, 0.6, 0.6), "in the middle"),
        ((0.4, 0.0, 0.6, 0.2), "in the upper part"),
        ((0.8, 0.4, 1.0, 0.6), "on the right"),
        ((0.05, 0.05, 0.95, 0.95), None),
    ],
)
def test_a_box_is_a_place(box: person.Box | None, words: str | None):
    assert person.place(box) == words


def test_a_critique_has_an_issue_of_each_tag_and_of_the_text():
    critique = person.critique_of(reason("make it red", "wrong colour", "mine", box=UPPER_LEFT))
    assert [(issue.what, issue.category) for issue in critique.issues] == [
        ("wrong colour", "attribute"),
        ("mine", "other"),
        ("make it red", "other"),
    ]
    assert {issue.where for issue in critique.issues} == {"in the upper left"}
    (_, text) = person.critique_of(reason("make it red", "wrong colour")).issues
    assert text.category == "attribute"


def test_elsewhere_the_words_are_the_instructions():
    seen = Shown("a {cat}", shown().pixels)
    said = reason("Remove the hat. Sharpen  it!", box=UPPER_LEFT)
    assert person.instructions_of(said, seen) == [
        "Remove the hat, in the upper left",
        "Sharpen it, in the upper left",
    ]
    tags = person.instructions_of(reason("", "wrong colour", "{prompt} off", "not sharp"), seen)
    assert "a {cat}" in tags[0] and tags[1:] == ["mend this: {prompt} off", "make it sharp"]
    assert len(person.instructions_of(reason("a. b. c. d. e."), seen)) == person.MOST


def test_scenes_are_spoken_of_in_their_own_sentences():
    def plan(text: str, *tags: str, box: person.Box | None = None) -> list[str]:
        return person.instructions_of(reason(text, *tags, box=box), shown())

    assert plan("Make the seven red.") == ["make the seven red"]
    assert plan("the seven is not red; the five is one too many") == [
        "make the seven red",
        "remove the five",
    ]
    assert plan("make it red", box=UPPER_LEFT) == ["make the seven red"]
    assert plan("remove it", box=LOWER_RIGHT) == ["remove the five"]
    assert (
        plan("remove it", box=(0.6, 0.1, 0.9, 0.4)) == plan("make it red") == plan("fix it") == []
    )
    assert plan("", "wrong colour") == ["make the seven red"]  # as the reader sees it
    assert plan("what a colour", "wrong count") == ["remove the five"]
    assert plan("", "artefacts") == []
