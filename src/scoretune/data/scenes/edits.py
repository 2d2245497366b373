"""Changes of a scene in words: what is wrong with a picture, and what an editor is told to do.

An edit has two sentences, `complaint` ("the seven is not red") and `instruction` ("make the seven
red"), and the layouts that carry it out. `corrections` says which edits make a layout fulfil a
prompt.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache

from scoretune.data.scenes.world import (
    CELLS,
    COLOURS,
    DIGITS,
    EMPTY,
    RELATIONS,
    Ask,
    Item,
    Layout,
    is_held_out_layout,
    noun,
    stands,
)

KINDS = ("recolour", "add", "remove", "replace", "move")
SIDES = ("on the left", "on the right", "at the top", "at the bottom")
_ON_SIDE = ((0, 2), (1, 3), (0, 1), (2, 3))
WORDS = ("make", "the", "add", "remove", "replace", "by", "move", "on", "at", "top", "bottom")
"""What instructions are made of beside the words of prompts."""


@dataclass(frozen=True)
class Edit:
    """One change. `item` is what is made, coloured, added, removed or moved; `old` the digit that
    gives way, or by which the item is moved; `side` of the canvas, or the relation to `old`."""

    kind: str
    item: Item
    old: int | None = None
    side: int | None = None

    @property
    def instruction(self) -> str:
        digit, what = DIGITS[self.item.digit], noun(self.item)
        if self.kind == "recolour":
            return f"make the {digit} {_colour(self.item)}"
        if self.kind == "remove":
            return f"remove the {digit}"
        if self.kind == "replace":
            return f"replace the {_old(self)} by {what}"
        if self.kind == "move":
            return f"move the {digit} {_relation(self)} the {_old(self)}"
        return f"add {what}" if self.side is None else f"add {what} {SIDES[self.side]}"

    @property
    def complaint(self) -> str:
        digit, what = DIGITS[self.item.digit], noun(self.item)
        if self.kind == "recolour":
            return f"the {digit} is not {_colour(self.item)}"
        if self.kind == "remove":
            return f"the {digit} is one too many"
        if self.kind == "replace":
            return f"there is the {_old(self)} where {what} should be"
        if self.kind == "move":
            return f"the {digit} is not {_relation(self)} the {_old(self)}"
        return f"{what} is missing" + ("" if self.side is None else f" {SIDES[self.side]}")

    def outcomes(self, layout: Layout) -> list[Layout]:
        """The layouts that carry it out and leave the rest alone; none where it cannot be done."""
        if self.kind == "move":
            return _moved(self, layout)
        digits, item = layout.digits, self.item
        colours = range(len(COLOURS)) if item.colour is None else (item.colour,)
        if self.kind == "add":
            side = range(CELLS) if self.side is None else _ON_SIDE[self.side]
            free = [cell for cell in side if digits[cell] == EMPTY]
            return [_with(layout, cell, item.digit, colour) for cell in free for colour in colours]
        old = self.old if self.kind == "replace" else item.digit
        cells = [cell for cell in range(CELLS) if digits[cell] == old]
        if self.kind == "remove":
            return [_with(layout, cell, EMPTY, 0) for cell in cells]
        if self.kind == "recolour":
            cells = [cell for cell in cells if layout.colours[cell] != item.colour]
        return [_with(layout, cell, item.digit, colour) for cell in cells for colour in colours]


def _colour(item: Item) -> str:
    assert item.colour is not None, "recolouring needs a colour"
    return COLOURS[item.colour]


def _old(edit: Edit) -> str:
    assert edit.old is not None, f"{edit.kind} needs another digit"
    return DIGITS[edit.old]


def _relation(edit: Edit) -> str:
    assert edit.side is not None, "moving needs a relation"
    return RELATIONS[edit.side]


def _with(layout: Layout, cell: int, digit: int, colour: int) -> Layout:
    digits, colours = list(layout.digits), list(layout.colours)
    digits[cell], colours[cell] = digit, colour
    return Layout(tuple(digits), tuple(colours))


def _moved(edit: Edit, layout: Layout) -> list[Layout]:
    """Both digits stand as told, with the fewest of them moved; all else is where it was."""
    first = [cell for cell in range(CELLS) if layout.digits[cell] == edit.item.digit]
    second = [cell for cell in range(CELLS) if layout.digits[cell] == edit.old]
    if not first or not second or edit.side is None:
        return []
    one, other = first[0], second[0]
    free = {cell for cell in range(CELLS) if layout.digits[cell] == EMPTY} | {one, other}
    by_cost: dict[tuple[int, bool], list[Layout]] = {}
    for a, b in itertools.permutations(sorted(free), 2):
        if stands(edit.side, a, b):
            bare = _with(_with(layout, one, EMPTY, 0), other, EMPTY, 0)
            put = _with(bare, a, layout.digits[one], layout.colours[one])
            put = _with(put, b, layout.digits[other], layout.colours[other])
            # of two that move one, the digit that was named moves
            by_cost.setdefault(((a != one) + (b != other), b != other), []).append(put)
    return by_cost[min(by_cost)] if by_cost else []


# ------------------------------------------------------------------------------- the language


def every_edit() -> list[Edit]:
    """All edits that can be said, in a fixed order."""
    numbers, colours = range(len(DIGITS)), range(len(COLOURS))
    items = [Item(d, c) for d in numbers for c in (None, *colours)]
    edits = [Edit("recolour", Item(d, c)) for d in numbers for c in colours]
    edits += [Edit("add", item, side=s) for item in items for s in (None, *range(len(SIDES)))]
    edits += [Edit("remove", Item(d)) for d in numbers]
    edits += [Edit("replace", item, old=d) for item in items for d in numbers if d != item.digit]
    edits += [
        Edit("move", Item(a), old=b, side=relation)
        for a, b in itertools.permutations(numbers, 2)
        for relation in range(len(RELATIONS))
    ]
    return edits


@lru_cache
def edits_by_instruction() -> dict[str, Edit]:
    """What each instruction means."""
    return {edit.instruction: edit for edit in every_edit()}


@lru_cache
def edits_by_complaint() -> dict[str, Edit]:
    """What would mend each complaint."""
    return {edit.complaint: edit for edit in every_edit()}


@lru_cache
def edits_by_kind() -> dict[str, list[Edit]]:
    """The edits of each kind."""
    return {kind: [edit for edit in every_edit() if edit.kind == kind] for kind in KINDS}


def trained_outcomes(edit: Edit, layout: Layout) -> list[Layout]:
    """The outcomes without a held-out combination."""
    return [end for end in edit.outcomes(layout) if not is_held_out_layout(end)]


# ----------------------------------------------------------------------------------- mending


def corrections(layout: Layout, ask: Ask) -> list[Edit]:
    """Edits which, one after the other, make the layout fulfil the prompt; none if it does.

    Each item of the prompt is matched with a cell or with none, so that the fewest edits are left.
    """
    if layout.fulfils(ask):
        return []
    present = [cell for cell in range(CELLS) if layout.digits[cell] != EMPTY]
    places = [*present, *[None] * len(ask.items)]
    matches = set(itertools.permutations(places, len(ask.items)))
    options = [_mending(layout, ask, match) for match in sorted(matches, key=str)]
    return min(options, key=lambda edits: (len(edits), [KINDS.index(e.kind) for e in edits]))


def _mending(layout: Layout, ask: Ask, match: tuple[int | None, ...]) -> list[Edit]:
    """The edits that are left once each item stands in its cell, or in none yet."""
    edits: list[Edit] = []
    for cell, item in zip(match, ask.items, strict=True):
        if cell is not None and layout.digits[cell] != item.digit:
            edits.append(Edit("replace", item, old=layout.digits[cell]))
        elif cell is not None and item.colour not in (None, layout.colours[cell]):
            edits.append(Edit("recolour", item))
    spare = [c for c in range(CELLS) if layout.digits[c] != EMPTY and c not in match]
    edits += [Edit("remove", Item(layout.digits[cell])) for cell in spare]
    edits += [
        Edit("add", item) for cell, item in zip(match, ask.items, strict=True) if cell is None
    ]
    if ask.relation is not None:
        one, other = match
        if one is None or other is None or not stands(ask.relation, one, other):
            edits.append(Edit("move", ask.items[0], old=ask.items[1].digit, side=ask.relation))
            edits = _with_sides(edits, ask, match)
    return edits


def _with_sides(edits: list[Edit], ask: Ask, match: tuple[int | None, ...]) -> list[Edit]:
    """Where one of two is missing and its side is free by the prompt, it is added on that side,
    and nothing needs to move."""
    assert ask.relation is not None, "only a relation has sides"
    missing = [place for place, cell in enumerate(match) if cell is None]
    if len(missing) != 1:
        return edits
    (place,) = missing
    other = match[1 - place]
    assert other is not None, "the other one is there"
    # left of: the first belongs on the left (side 0), the second on the right (side 1); and so on
    side = ask.relation if place == 0 else ask.relation ^ 1
    if other in _ON_SIDE[side]:
        return edits
    added = Edit("add", ask.items[place], side=side)
    return [added if edit.kind == "add" else edit for edit in edits if edit.kind != "move"]
