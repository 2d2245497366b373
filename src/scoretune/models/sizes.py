"""A model in the size that prompts ask for: the same weights, other states.

One call is of one size. Batches of several sizes are made by whoever batches prompts: a round of
samples is of one size (`training.sources.on_policy`), and an evaluation goes size by size
(`evaluate.mixed_sizes`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from scoretune.core.errors import UserError
from scoretune.data.picture_size import Size
from scoretune.data.prompts import Prompts, size_of
from scoretune.models.base import Pipelined
from scoretune.models.editing import check_pictures
from scoretune.models.recycled import Recycled, recycle
from scoretune.policy import Backbone


def sized(backbone: Backbone, prompts: Sequence[str]) -> Backbone:
    """The model in the one size that prompts ask for; itself where none asks. Raises UserError for
    a size that it cannot draw, ValueError for prompts of several."""
    sizes = [size for size in map(size_of, prompts) if size is not None]
    if not sizes:
        return backbone
    if isinstance(backbone, Recycled):
        return recycle(sized(backbone.base, prompts), backbone.process)
    if not isinstance(backbone, Pipelined):
        raise UserError(
            f"{sizes[0].where}: it asks for {sizes[0]}, and a network of one's own draws states of "
            "one shape: take the columns width and height out"
        )
    return backbone.in_size_of(prompts)


def shape_of(backbone: Backbone, prompts: Sequence[str]) -> tuple[int, ...]:
    """Of the states of prompts that ask for one size."""
    return sized(backbone, prompts).shape


def largest(backbone: Backbone, prompts: Iterable[str]) -> Backbone:
    """The model in the largest size that one of the prompts asks for."""
    models = [sized(backbone, [prompt]) for prompt in first_of_each(prompts).values()]
    return max(models, key=lambda model: math.prod(model.shape), default=backbone)


def first_of_each(prompts: Iterable[str]) -> dict[Size | None, str]:
    """The first prompt that asks for each size, by the sizes; None of those that ask for none."""
    firsts: dict[Size | None, str] = {}
    for prompt in prompts:
        firsts.setdefault(size_of(prompt), prompt)
    return firsts


def check_drawable(backbone: Backbone, prompts: Sequence[str]) -> None:
    """Refuse prompts of a size that a model cannot draw, and those whose picture it cannot edit or
    that lack one. Raises UserError."""
    for prompt in first_of_each(prompts).values():
        sized(backbone, [prompt])
    check_pictures(backbone, prompts)


def size_notes(backbone: Backbone, prompts: Prompts, together: int) -> tuple[str, ...]:
    """A line on the sizes of prompts of which an update takes so many `together`, and one on those
    that too few prompts ask for; none where all are of one size."""
    asked, counts = Counter(map(size_of, prompts.texts)), Counter[tuple[int, ...]]()
    for size, prompt in first_of_each(prompts.texts).items():
        counts[shape_of(backbone, [prompt])] += asked[size]
    if len(counts) < 2:
        return ()
    names = {shape: name_of(backbone, shape) for shape in counts}
    each = ", ".join(f"{names[shape]} ({count})" for shape, count in counts.items())
    notes = [f"prompts of {len(counts)} sizes, of which every update has one: {each}"]
    few = [names[shape] for shape, count in counts.items() if count < together]
    if few:
        notes.append(
            f"{', '.join(few)}: fewer prompts than sizes.prompts={together}, so that an update of "
            "that size draws some of them more than once; give such prompts a size that more share"
        )
    return tuple(notes)


def name_of(backbone: Backbone, shape: tuple[int, ...]) -> str:
    """The size of pictures of states of that shape, in pixels where that is known."""
    base = backbone.base if isinstance(backbone, Recycled) else backbone
    factor = base.factor if isinstance(base, Pipelined) and base.any_size else 1
    return "x".join(str(side * factor) for side in shape[:-3:-1])
