"""The two networks that look at scenes of the shipped world: the reader's and the judge's.

Of different architecture, and trained on different people's handwriting. Both give, for each of the
four cells, logits of its digit (or that it is empty) and of its colour.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoretune.core.errors import UserError
from scoretune.core.files import load_tensors
from scoretune.data.scenes import world
from scoretune.data.scenes.world import CELLS, COLOURS, DIGITS

READS = len(DIGITS) + 1 + len(COLOURS)


class CellReader(nn.Module):
    """Looks at one cell at a time, with a margin of two pixels, through a plain convnet."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.look = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.GroupNorm(4, 2 * width),
            nn.SiLU(),
            nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1),
            nn.GroupNorm(4, 2 * width),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(2 * width * 25, 96),
            nn.SiLU(),
            nn.Linear(96, READS),
        )

    def forward(self, pictures: Tensor) -> Tensor:
        """`[B, 3, 32, 32]` in [0, 1] -> logits `[B, 4, 15]`."""
        half, margin = pictures.shape[-1] // 2, 2
        padded = F.pad(pictures, (margin,) * 4, mode="replicate")
        side = half + 2 * margin
        crops = [
            padded[..., r * half : r * half + side, c * half : c * half + side]
            for r in range(2)
            for c in range(2)
        ]
        logits = self.look(torch.stack(crops, 1).flatten(0, 1) * 2 - 1)
        return cast(Tensor, logits.unflatten(0, (-1, CELLS)))


class CanvasJudge(nn.Module):
    """Looks at the whole canvas at once through residual blocks."""

    def __init__(self, width: int = 40) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 5, stride=2, padding=2)
        self.blocks = nn.ModuleList(_residual(width) for _ in range(3))
        self.down = nn.Conv2d(width, 2 * width, 4, stride=2, padding=1)
        self.deep = nn.ModuleList(_residual(2 * width) for _ in range(2))
        self.answer = nn.Conv2d(2 * width, READS, 4, stride=4)

    def forward(self, pictures: Tensor) -> Tensor:
        """`[B, 3, 32, 32]` in [0, 1] -> logits `[B, 4, 15]`."""
        hidden = self.stem(pictures * 2 - 1)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        hidden = self.down(F.gelu(hidden))
        for block in self.deep:
            hidden = hidden + block(hidden)
        return cast(Tensor, self.answer(F.gelu(hidden)).flatten(2).transpose(1, 2))


def _residual(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm2d(width),
        nn.GELU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.GELU(),
        nn.Conv2d(width, width, 3, padding=1),
    )


@cache
def load(folder: Path, name: str) -> nn.Module:
    """The reader or the judge of a folder, frozen, in float32: one network for all who ask for it.

    No random number is drawn for it: how often a run looks at its progress must not change the run.
    """
    shipped = folder == world.shipped()
    fix = "reinstall scoretune" if shipped else "give a folder that `scoretune pretrain` made"
    weights = load_tensors(folder / f"{name}.safetensors", fix, kind=f"the {name} ")
    with torch.device("meta"):
        network: nn.Module = {"reader": CellReader, "judge": CanvasJudge}[name]()
    single = {k: v.float() if v.is_floating_point() else v for k, v in weights.items()}
    try:
        network.load_state_dict(single, assign=True)
    except RuntimeError as error:
        raise UserError(
            f"the {name}.safetensors in {str(folder)!r} is none of scoretune's: {fix}"
        ) from error
    return network.eval().requires_grad_(False)
