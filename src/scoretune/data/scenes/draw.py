"""Drawing layouts with real handwriting (the UCI digits that scikit-learn bundles)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from scoretune.data.scenes.world import CELLS, EMPTY, Layout

SIZE = 32  # pixels a side; a cell is half of it
DIGIT_SIZE = 14  # pixels a side of one digit
BACKGROUND = np.array([0.06, 0.07, 0.10], dtype=np.float32)
INKS = np.array(
    [[0.95, 0.22, 0.20], [0.25, 0.85, 0.35], [0.25, 0.50, 1.00], [0.98, 0.85, 0.20]],
    dtype=np.float32,
)
PARTS = {"pictures": 0, "reader": 1, "judge": 2}  # who may see which third of the handwriting


@lru_cache
def handwriting(part: str) -> tuple[NDArray[np.float32], ...]:
    """One third of the handwriting, enlarged: for each digit an array `[n, 14, 14]` in [0, 1]."""
    from scipy.ndimage import zoom
    from sklearn.datasets import load_digits

    bundle = load_digits()
    images = bundle.images.astype(np.float32) / 16.0
    mine = np.arange(len(images)) % len(PARTS) == PARTS[part]
    factor = DIGIT_SIZE / images.shape[1]
    large = np.clip(zoom(images, (1, factor, factor), order=1), 0.0, 1.0)
    return tuple(large[mine & (bundle.target == digit)] for digit in range(10))


def draw(layouts: list[Layout], part: str, rng: np.random.Generator) -> NDArray[np.float32]:
    """Pictures `[B, 3, 32, 32]` in [0, 1], each digit in a random hand, shifted a little."""
    return _drawn(layouts, part, [[rng] * CELLS] * len(layouts))


def draw_in_hands(
    layouts: list[Layout], part: str, hands: list[tuple[int, ...]]
) -> NDArray[np.float32]:
    """The same, with a number a cell from which its hand, shift and ink follow: what has the same
    number looks the same in two pictures."""
    return _drawn(layouts, part, [[np.random.default_rng(n) for n in cells] for cells in hands])


def _drawn(
    layouts: list[Layout], part: str, rngs: list[list[np.random.Generator]]
) -> NDArray[np.float32]:
    shelves = handwriting(part)
    pictures = np.tile(BACKGROUND, (len(layouts), SIZE, SIZE, 1))
    half = SIZE // 2
    room = half - DIGIT_SIZE
    for picture, layout, of_cell in zip(pictures, layouts, rngs, strict=True):
        for cell, rng in enumerate(of_cell):
            if layout.digits[cell] == EMPTY:
                continue
            shelf = shelves[layout.digits[cell]]
            stroke = shelf[rng.integers(len(shelf)), :, :, None]
            row, column = divmod(cell, 2)
            top = row * half + int(rng.integers(room + 1))
            left = column * half + int(rng.integers(room + 1))
            ink = INKS[layout.colours[cell]] * rng.uniform(0.85, 1.0)
            window = picture[top : top + DIGIT_SIZE, left : left + DIGIT_SIZE]
            window[:] = window * (1 - stroke) + ink.astype(np.float32) * stroke
    return np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))
