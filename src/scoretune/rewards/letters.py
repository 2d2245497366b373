"""Which letters of a word stand in a picture of the world of words, by templates.

For the model of `scoretune pretrain words`, meant for `guard.judge` while another reward is
optimised: it has no network, so that what flatters one does not flatter it. Each cell is compared
with every capital letter in the world's fonts and sizes, a little shifted, by the correlation of
what the cell shows above its background.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from scoretune.core.errors import UserError
from scoretune.data import words
from scoretune.data.scenes.draw import BACKGROUND

SHIFT = 2  # pixels, in each direction


@dataclass(frozen=True)
class Letters:
    """The share of the letters of the word between quotes that is read; without a gradient.

    whole: 1 where all are read, else 0.
    """

    whole: bool = False

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        wanted = [[words.LETTERS.index(letter) for letter in words.asked(p)] for p in prompts]
        right = (read(images).cpu() == torch.tensor(wanted)).float()
        return right.amin(1) if self.whole else right.mean(1)


def read(images: Tensor) -> Tensor:
    """The numbers of the likeliest letters [B, 3] of pictures [B, 3, 24, 48]."""
    return likeness(images).amax(3).argmax(2)


def likeness(images: Tensor) -> Tensor:
    """The correlation [B, 3, 26, looks] of each cell of pictures with every letter in every look,
    font by font, where it fits best."""
    if images.shape[-2:] != (words.HEIGHT, words.WIDTH):
        height, width = images.shape[-2:]
        raise UserError(
            f"letters reads pictures of {words.HEIGHT}x{words.WIDTH} pixels, those of `scoretune "
            f"pretrain words`, and these are {height}x{width}"
        )
    paper = torch.from_numpy(BACKGROUND).to(images)[:, None, None]
    shown = (images - paper).abs().amax(1)  # [B, 24, 48]
    cells = F.pad(shown, (SHIFT, SHIFT, SHIFT, SHIFT)).unfold(2, words.CELL + 2 * SHIFT, words.CELL)
    cells = cells.permute(0, 2, 1, 3).flatten(0, 1)[:, None]  # [B·3, 1, 28, 20]
    kernels = _templates().to(cells)
    overlap = F.conv2d(cells, kernels)  # [B·3, templates, 5, 5]
    ones = torch.ones_like(kernels[:1])
    # ⟨a − ā, t⟩ = ⟨a, t⟩ for templates of mean 0; the norm of a − ā over the same window
    norm = F.conv2d(cells**2, ones) - F.conv2d(cells, ones) ** 2 / ones.numel()
    best = (overlap / norm.clamp(min=1e-6).sqrt()).amax((2, 3))
    return best.view(len(images), words.LENGTH, len(words.LETTERS), -1)


@lru_cache(1)
def _templates() -> Tensor:
    """[26 · looks, 1, 24, 16]: each letter in every font and size, of mean 0 and norm 1."""
    looks = [(f, s) for f in words.FONTS for s in range(words.SIZES[0], words.SIZES[1] + 1)]
    drawn = [words.glyph(letter, *look) for letter in words.LETTERS for look in looks]
    kernels = torch.from_numpy(np.stack(drawn))[:, None]
    kernels = kernels - kernels.mean((2, 3), keepdim=True)
    return kernels / kernels.square().sum((2, 3), keepdim=True).sqrt()
