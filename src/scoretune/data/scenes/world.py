"""What can be asked for: prompts about handwritten digits on a two-by-two canvas.

The six tasks mirror GenEval (arXiv 2310.11513): single object, colour, two objects, counting,
position and colour attribution. A prompt names digits, sometimes their colours, and sometimes how
they stand to each other; a *layout* says which digit of which colour stands in which cell.

Some combinations are held out: they occur in no training picture, no training caption and no
reinforcement prompt, only in `held_out_prompts()`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from scoretune.core.errors import unknown

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PLURALS = tuple(word + ("es" if word == "six" else "s") for word in DIGITS)
COLOURS = ("red", "green", "blue", "yellow")
RELATIONS = ("left of", "right of", "above", "below")
COUNTS = {2: "two", 3: "three"}
TASKS = ("single", "colour", "two", "counting", "position", "attribution")
CELLS = 4  # top left, top right, bottom left, bottom right
EMPTY = len(DIGITS)  # the digit index of a cell with nothing in it

SHIPPED = {"scenes": "scenes", "scenes-flow": "scenes_flow"}
"""The models that draw this world, by name: their folders among the assets."""
EDITOR = "scenes-edit"
"""The shipped model that edits pictures of this world."""

HELD_OUT_SINGLES = frozenset({3, 6})
HELD_OUT_COLOURS = frozenset({(0, 1), (0, 6), (1, 3), (1, 8), (2, 0), (2, 5), (3, 2), (3, 7)})
HELD_OUT_COUNTS = frozenset({(2, 3), (2, 8), (3, 1), (3, 6)})
HELD_OUT_PAIRS = frozenset({(0, 5), (1, 6), (2, 7), (3, 8), (4, 9), (0, 3), (1, 8), (2, 5), (4, 7)})


@dataclass(frozen=True)
class Item:
    """One digit a prompt asks for; `colour` is None when any colour will do."""

    digit: int
    colour: int | None = None


@dataclass(frozen=True)
class Ask:
    """A prompt and its meaning. `relation` says how the first item stands to the second."""

    task: str
    items: tuple[Item, ...]
    relation: int | None = None

    @property
    def text(self) -> str:
        if self.task == "counting":
            return f"{COUNTS[len(self.items)]} {PLURALS[self.items[0].digit]}"
        joint = f" {RELATIONS[self.relation]} " if self.relation is not None else " and "
        return joint.join(noun(item) for item in self.items)

    def placements(self) -> list[tuple[int, ...]]:
        """Every way to put the items into distinct cells that fulfils the prompt."""
        if self.task == "counting":  # equal items: which cells matters, not who stands where
            return list(itertools.combinations(range(CELLS), len(self.items)))
        ordered = itertools.permutations(range(CELLS), len(self.items))
        return [
            cells for cells in ordered if self.relation is None or stands(self.relation, *cells)
        ]


@dataclass(frozen=True)
class Layout:
    """What stands in each of the four cells: a digit (or EMPTY) and a colour."""

    digits: tuple[int, ...]
    colours: tuple[int, ...]

    def fulfils(self, ask: Ask) -> bool:
        """True when exactly the items asked for are there, and stand as asked."""
        if sum(digit != EMPTY for digit in self.digits) != len(ask.items):
            return False
        return any(
            all(self._holds(cell, item) for cell, item in zip(cells, ask.items, strict=True))
            for cells in ask.placements()
        )

    def _holds(self, cell: int, item: Item) -> bool:
        right_colour = item.colour is None or self.colours[cell] == item.colour
        return self.digits[cell] == item.digit and right_colour


def noun(item: Item) -> str:
    """ "a seven", "a red seven"."""
    words = [DIGITS[item.digit]]
    if item.colour is not None:
        words.insert(0, COLOURS[item.colour])
    article = "an" if words[0] == "eight" else "a"
    return " ".join([article, *words])


def stands(relation: int, first: int, second: int) -> bool:
    """Whether one cell stands to another as RELATIONS says."""
    (row_1, column_1), (row_2, column_2) = divmod(first, 2), divmod(second, 2)
    return (column_1 < column_2, column_1 > column_2, row_1 < row_2, row_1 > row_2)[relation]


def every_ask() -> list[Ask]:
    """All prompts of the world, held out or not, in a fixed order."""
    numbers, colours = range(len(DIGITS)), range(len(COLOURS))
    pairs = list(itertools.permutations(numbers, 2))
    asks = [Ask("single", (Item(d),)) for d in numbers]
    asks += [Ask("colour", (Item(d, c),)) for c in colours for d in numbers]
    asks += [Ask("two", (Item(a), Item(b))) for a, b in pairs]
    asks += [Ask("counting", (Item(d),) * n) for n in COUNTS for d in numbers]
    asks += [
        Ask("position", (Item(a), Item(b)), relation)
        for relation in range(len(RELATIONS))
        for a, b in pairs
    ]
    asks += [
        Ask("attribution", (Item(a, c), Item(b, d)))
        for c, d in itertools.permutations(colours, 2)
        for a, b in pairs
    ]
    return asks


@lru_cache
def asks_by_text() -> dict[str, Ask]:
    """What each prompt of this world means."""
    return {ask.text: ask for ask in every_ask()}


def shipped(name: str = "scenes") -> Path:
    """A shipped model's folder; that of `scenes` has reader and judge. Raises UserError else."""
    if name not in SHIPPED:
        raise unknown("shipped model", name, SHIPPED)
    return Path(__file__).parents[2] / "assets" / SHIPPED[name]


def shipped_editor() -> Path:
    """The folder of the shipped editor of scenes, an InstructPix2Pix."""
    return Path(__file__).parents[2] / "assets" / "scenes_edit"


def is_held_out(ask: Ask) -> bool:
    """True when the combination the task is about never occurs in training."""
    first = ask.items[0]
    if ask.task == "single":
        return first.digit in HELD_OUT_SINGLES
    if ask.task == "counting":
        return (len(ask.items), first.digit) in HELD_OUT_COUNTS
    if len(ask.items) == 2:
        return tuple(sorted(item.digit for item in ask.items)) in HELD_OUT_PAIRS
    return (first.colour, first.digit) in HELD_OUT_COLOURS


def is_held_out_layout(layout: Layout) -> bool:
    """True when a picture of it would show a combination that never occurs in training."""
    there = [d for d in layout.digits if d != EMPTY]
    inks = [pair for pair in zip(layout.colours, layout.digits, strict=True) if pair[1] != EMPTY]
    return (
        not HELD_OUT_COLOURS.isdisjoint(inks)
        or (len(there) == 1 and there[0] in HELD_OUT_SINGLES)
        or (len(there) == 2 and tuple(sorted(there)) in HELD_OUT_PAIRS)
        or (len(set(there)) == 1 and (len(there), there[0]) in HELD_OUT_COUNTS)
    )


def training_asks() -> list[Ask]:
    """Prompts that captions and reinforcement may use: nothing held out, not even by colour."""
    return [ask for ask in every_ask() if not is_held_out(ask) and not _unseen_colour(ask)]


def held_out_asks() -> list[Ask]:
    """Prompts whose combination never occurs in training; the colours of pairs do occur."""
    return [
        ask
        for ask in every_ask()
        if is_held_out(ask) and (len(ask.items) == 1 or not _unseen_colour(ask))
    ]


def balanced(asks: list[Ask], per_task: int, seed: int) -> list[Ask]:
    """`per_task` prompts of each task, repeating a short list; the same for the same seed."""
    rng = np.random.default_rng(seed)
    sample: list[Ask] = []
    for task in TASKS:
        of_task = [ask for ask in asks if ask.task == task]
        order = [of_task[i] for i in rng.permutation(len(of_task))]
        sample += [order[i % len(order)] for i in range(per_task)]
    return sample


def lay_out(ask: Ask, rng: np.random.Generator) -> Layout:
    """A random layout that fulfils the prompt and uses no held-out colour."""
    options = ask.placements()
    cells = options[rng.integers(len(options))]
    digits, colours = [EMPTY] * CELLS, [0] * CELLS
    for cell, item in zip(cells, ask.items, strict=True):
        digits[cell] = item.digit
        allowed = [c for c in range(len(COLOURS)) if (c, item.digit) not in HELD_OUT_COLOURS]
        colours[cell] = item.colour if item.colour is not None else int(rng.choice(allowed))
    return Layout(tuple(digits), tuple(colours))


def mistaken(ask: Ask, by_task: dict[str, list[Ask]], rng: np.random.Generator) -> Ask:
    """Another prompt of the same task: a caption whose attributes were redrawn."""
    others = by_task[ask.task]
    return others[rng.integers(len(others))]


def _unseen_colour(ask: Ask) -> bool:
    return any((item.colour, item.digit) in HELD_OUT_COLOURS for item in ask.items)
