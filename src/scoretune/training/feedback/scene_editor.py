"""The editor of the shipped world: it redraws the cells that an instruction is about.

It sees what the shipped reader sees, and no more: where that reads wrongly it changes the wrong
thing, or nothing, as an editor of pictures does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scoretune.data.scenes import world
from scoretune.data.scenes.draw import draw_in_hands
from scoretune.data.scenes.edits import edits_by_instruction, trained_outcomes
from scoretune.rewards import reader
from scoretune.training.feedback.records import Edited, Shown


@dataclass(frozen=True)
class SceneEditor:
    """Understands the instructions of `data.scenes.edits`; leaves a picture as it is at any other.

    `fails` is the share of instructions that it does not carry out, drawn from the seed: it then
    changes a cell that nobody spoke of.
    """

    fails: float = 0.0

    def __call__(
        self, pictures: Sequence[Shown], plans: Sequence[Sequence[str]], seeds: Sequence[int]
    ) -> list[Edited]:
        edited = []
        for shown, plan, seed in zip(pictures, plans, seeds, strict=True):
            pixels, rng = shown.pixels, np.random.default_rng(seed)
            for instruction in plan:
                pixels = self._changed(pixels, instruction, rng)
            edited.append(Edited(pixels))
        return edited

    @torch.no_grad()
    def _changed(self, pixels: Tensor, instruction: str, rng: np.random.Generator) -> Tensor:
        edit = edits_by_instruction().get(instruction)
        network = reader.load(world.shipped(), "reader").to(pixels.device)
        (before,) = reader.layouts(network(pixels[None]))
        if rng.random() < self.fails:
            cell = int(rng.integers(world.CELLS))
            return _redrawn(pixels, _any_digit(before, cell, rng), [cell], rng)
        ends = trained_outcomes(edit, before) if edit is not None else []
        if not ends:
            return pixels
        after = ends[rng.integers(len(ends))]
        cells = range(world.CELLS)
        changed = [
            cell
            for cell in cells
            if after.digits[cell] != before.digits[cell]
            or (after.digits[cell] != world.EMPTY and after.colours[cell] != before.colours[cell])
        ]
        return _redrawn(pixels, after, changed, rng)


def _any_digit(layout: world.Layout, cell: int, rng: np.random.Generator) -> world.Layout:
    digits, colours = list(layout.digits), list(layout.colours)
    digits[cell], colours[cell] = int(rng.integers(10)), int(rng.integers(4))
    return world.Layout(tuple(digits), tuple(colours))


def _redrawn(
    pixels: Tensor, layout: world.Layout, cells: Sequence[int], rng: np.random.Generator
) -> Tensor:
    """The picture with some of its cells drawn anew."""
    hands = tuple(int(number) for number in rng.integers(2**31, size=world.CELLS))
    drawn = torch.from_numpy(draw_in_hands([layout], "pictures", [hands])[0]).to(pixels)
    result, half = pixels.clone(), pixels.shape[-1] // 2
    for cell in cells:
        row, column = divmod(cell, 2)
        part = (
            slice(None),
            slice(row * half, (row + 1) * half),
            slice(column * half, (column + 1) * half),
        )
        result[part] = drawn[part]
    return result
