"""Lessons in editing the shipped world: a scene, an instruction, and the same scene with that one
change, every other stroke in its place; and as a prompt file, the scenes in its column `image`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from scoretune.data.scenes import edits, world
from scoretune.data.scenes.draw import draw_in_hands
from scoretune.data.scenes.edits import Edit
from scoretune.data.scenes.world import CELLS, EMPTY, Item, Layout


class Lesson(NamedTuple):
    """A scene and what it is after an edit, with the numbers that their hands follow from."""

    edit: Edit
    before: Layout
    after: Layout
    hands: tuple[int, ...]
    hands_after: tuple[int, ...]


def lesson(kind: str, rng: np.random.Generator) -> Lesson:
    """A random lesson of a kind of edit, before and after it without held-out combinations."""
    while True:
        before = _any_layout(rng)
        edit = _any_edit(kind, before, rng)
        ends = edits.trained_outcomes(edit, before) if edit is not None else []
        if edit is None or not ends or world.is_held_out_layout(before):
            continue
        after = ends[rng.integers(len(ends))]
        hands = tuple(int(n) for n in rng.integers(2**31, size=CELLS))
        return Lesson(edit, before, after, hands, _hands_after(before, after, hands, edit))


def _any_layout(rng: np.random.Generator) -> Layout:
    """One to four digits, in three of ten scenes with one of them twice."""
    cells = rng.permutation(CELLS)[: rng.choice([1, 2, 3, 4], p=[0.25, 0.4, 0.25, 0.1])]
    shown = rng.permutation(len(world.DIGITS))[: len(cells)]
    if len(cells) > 1 and rng.random() < 0.3:
        shown[1] = shown[0]
    digits, colours = [EMPTY] * CELLS, [0] * CELLS
    for cell, digit in zip(cells, shown, strict=True):
        digits[cell], colours[cell] = int(digit), int(rng.integers(len(world.COLOURS)))
    return Layout(tuple(digits), tuple(colours))


def _any_edit(kind: str, layout: Layout, rng: np.random.Generator) -> Edit | None:
    there = [digit for digit in layout.digits if digit != EMPTY]
    old = there[rng.integers(len(there))]
    new = int(rng.integers(len(world.DIGITS)))
    colour = int(rng.integers(len(world.COLOURS)))
    any_colour = None if rng.random() < 0.5 else colour
    if kind == "recolour":
        return Edit(kind, Item(old, colour))
    if kind == "remove":
        return Edit(kind, Item(old)) if len(there) > 1 else None
    if kind == "replace":
        return Edit(kind, Item(new, any_colour), old=old) if new != old else None
    if kind == "move":
        other = there[rng.integers(len(there))]
        if there.count(old) > 1 or there.count(other) > 1 or old == other:
            return None
        return Edit(kind, Item(old), old=other, side=int(rng.integers(len(world.RELATIONS))))
    side = None if rng.random() < 0.5 else int(rng.integers(len(edits.SIDES)))
    return Edit(kind, Item(new, any_colour), side=side)


def _hands_after(
    before: Layout, after: Layout, hands: tuple[int, ...], edit: Edit
) -> tuple[int, ...]:
    """What stays keeps its hand, what moves takes it along, what is new gets another."""
    numbers = []
    for cell, digit in enumerate(after.digits):
        if digit == before.digits[cell]:
            numbers.append(hands[cell])
        elif edit.kind == "move" and digit != EMPTY:
            numbers.append(hands[before.digits.index(digit)])
        else:
            numbers.append(hands[cell] ^ 1)
    return tuple(numbers)


def drawn(lessons: Sequence[Lesson], part: str) -> tuple[Tensor, Tensor]:
    """Pictures [B, 3, 32, 32] in [0, 1] before and after."""
    before = draw_in_hands([l.before for l in lessons], part, [l.hands for l in lessons])
    after = draw_in_hands([l.after for l in lessons], part, [l.hands_after for l in lessons])
    return torch.from_numpy(before), torch.from_numpy(after)


def write(folder: Path, count: int, seed: int = 0, part: str = "pictures") -> Path:
    """A file of `count` instructions, of each kind as many, with PNGs of the scenes that they are
    about beside it, in one `part` of the handwriting; its path. The column `task` has the kind."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    rng, rows = np.random.default_rng((seed, 9)), []
    lessons = [lesson(edits.KINDS[i % len(edits.KINDS)], rng) for i in range(count)]
    before, _ = drawn(lessons, part)
    for number, (one, picture) in enumerate(zip(lessons, before, strict=True)):
        array = (picture * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(array).save(folder / f"{number}.png")
        row = {"prompt": one.edit.instruction, "image": f"{number}.png", "task": one.edit.kind}
        rows.append(json.dumps(row))
    file = folder / "edits.jsonl"
    file.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return file
