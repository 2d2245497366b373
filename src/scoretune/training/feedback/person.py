"""A person as the critic: what they say of a picture as a critique, and as instructions.

In the shipped world instructions are those of `data.scenes.edits`: a sentence of these is taken as
it is, a complaint is turned into what would mend it, "it" is the digit in the box, and a tag alone
is what the shipped reader finds wrong of that kind. Anywhere else they are the person's own words,
with the box as a place.
"""

from __future__ import annotations

import re

import torch

from scoretune.data.scenes import world
from scoretune.data.scenes.edits import edits_by_complaint, edits_by_instruction
from scoretune.data.store import Reason
from scoretune.rewards import reader
from scoretune.training.feedback import wording
from scoretune.training.feedback.records import Category, Critique, Issue, Shown
from scoretune.training.feedback.scene_reader import SceneCritic, SceneWriter

CATEGORIES: dict[str, Category] = {
    "wrong object": "object",
    "wrong colour": "attribute",
    "wrong count": "count",
    "wrong place": "relation",
    "not sharp": "other",
    "artefacts": "other",
}
"""What each tag of a page is about; a tag of a person's own is `other`."""
MOST = 3
"""Instructions of one reason."""
WHOLE = 0.6
"""Share of a picture from which on a box says nothing of a place."""
SCENE = (3, 32, 32)
ALIGNMENT = 5.0
"""Of a picture of which something is to be different: nobody asked for a grade."""

Box = tuple[float, float, float, float]


def critique_of(reason: Reason) -> Critique:
    """What a person said, as critics say it: an issue of each tag, and one of the text."""
    where = place(reason.box)
    tags = [(tag, CATEGORIES.get(tag, "other")) for tag in reason.tags]
    only = tags[0][1] if len(tags) == 1 else "other"
    said = [*tags, *([(reason.text, only)] if reason.text else [])]
    issues = [Issue(what=what[:500], where=where, category=about) for what, about in said]
    return Critique(alignment=ALIGNMENT, issues=issues)


def instructions_of(reason: Reason, shown: Shown) -> list[str]:
    """What an editor is to do, `MOST` sentences at most; none where nothing can be made of it."""
    if shown.prompt in world.asks_by_text() and shown.pixels.shape == SCENE:
        return _of_scenes(reason, shown)[:MOST]
    where = place(reason.box)
    said = sentences(reason.text) or [wording.for_tag(tag, shown.prompt) for tag in reason.tags]
    return [f"{text}, {where}" if where else text for text in said][:MOST]


def sentences(text: str) -> list[str]:
    """The sentences of a text without their full stops."""
    parts = re.split(r"[.;!\n]+", text)
    return [" ".join(part.split()) for part in parts if part.strip()]


def place(box: Box | None) -> str | None:
    """Where a box (left, top, right, bottom, as shares of the sides) is, by its middle, in words;
    None for no box, and for one that is most of the picture."""
    if box is None or (box[2] - box[0]) * (box[3] - box[1]) > WHOLE:
        return None
    across = ("left", "middle", "right")[min(2, int(3 * (box[0] + box[2]) / 2))]
    down = ("upper", "middle", "lower")[min(2, int(3 * (box[1] + box[3]) / 2))]
    if across == down:
        return "in the middle"
    if across == "middle":
        return f"in the {down} part"
    return f"on the {across}" if down == "middle" else f"in the {down} {across}"


@torch.no_grad()
def _of_scenes(reason: Reason, shown: Shown) -> list[str]:
    known, complaints = edits_by_instruction(), edits_by_complaint()
    plan = []
    for sentence in sentences(reason.text.lower()):
        text = _named(sentence, reason.box, shown)
        if text in complaints:
            text = complaints[text].instruction
        if text in known:
            plan.append(text)
    if plan or not reason.tags:
        return plan
    (seen,) = SceneCritic()([shown])
    about = {CATEGORIES.get(tag, "other") for tag in reason.tags}
    assert seen.content is not None, "the reader's critiques are always read"
    issues = [issue for issue in seen.content.issues if issue.category in about]
    meant = seen.content.model_copy(update={"issues": issues})
    (answer,) = SceneWriter(MOST)([shown], [meant])
    return [] if answer.content is None else list(answer.content.instructions)


def _named(sentence: str, box: Box | None, shown: Shown) -> str:
    """A sentence with the digit in the box, as the reader sees it, in the place of "it"."""
    if box is None or not re.search(r"\bit\b", sentence):
        return sentence
    network = reader.load(world.shipped(), "reader").to(shown.pixels.device)
    (layout,) = reader.layouts(network(shown.pixels[None]))
    row, column = int(box[1] + box[3] > 1), int(box[0] + box[2] > 1)
    digit = layout.digits[2 * row + column]
    if digit == world.EMPTY:
        return sentence
    return re.sub(r"\bit\b", f"the {world.DIGITS[digit]}", sentence)
