"""Periodic artefacts: fine grids that a model learns to draw, found in the spectrum of pictures.

Patches, strides and up-sampling by 2, 4 and 8 leave patterns of these periods, whose power sits at
multiples of 1/8 cycles a pixel along each axis. A picture's own spectrum is smooth there, about
1/f² (Field 1987), so a pattern is a peak above its neighbours (the same peaks tell generated
pictures from photographs, arXiv 1911.00686).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

PERIOD = 8
"""The longest period looked for, in pixels; its frequencies contain those of 2 and 4."""
LEAST = 4 * PERIOD
"""Pixels a side that a picture needs: grid frequencies must have neighbours between them."""
SILENCE = 1e-9
"""Neighbours are taken to have at least this share of a picture's power."""


@dataclass(frozen=True)
class Peaks:
    """How far each picture's power stands above the smooth spectrum of all, at grid frequencies.

    `heights` [B, F], whose mean over pictures is 1 where there is no pattern; `frequencies` [F, 2]
    in cycles a pixel, down and across.
    """

    heights: Tensor
    frequencies: Tensor


def grid_peaks(images: Tensor) -> Peaks | None:
    """Peaks at multiples of 1/8 cycles a pixel of images [B, C, H, W]; None below 32 pixels a side.

    h_i(f) = p_i(f) / median_{g near f} mean_j p_j(g), with p_i the power spectrum of picture i as a
    share of its power above 1/16 cycles a pixel, hence whatever its brightness and contrast.
    "Near" is up to 3/4 of the way to the next grid frequency, which is not among its neighbours
    itself; for an f on an axis also on that axis, where the borders of a picture leave power that
    other places lack. White noise of variance s² with a·cos(2πf·x) added has E h = 1 + a²HW/cs²:
    c is 1 where both frequencies are 0 or 1/2, 4 where one is, else 8.
    """
    rows, columns = (size // PERIOD * PERIOD for size in images.shape[-2:])
    if min(rows, columns) < LEAST:
        return None
    power = _relative_power(images[..., :rows, :columns])
    mean = power.mean(0)
    spots, heights = [], []
    for down, across in product(range(PERIOD // 2 + 1), repeat=2):
        if down == across == 0:
            continue
        near = _near(mean, down, across)
        place = (down * rows // PERIOD, across * columns // PERIOD)
        heights.append(power[:, place[0], place[1]] / near.clamp(min=SILENCE))
        spots.append((down / PERIOD, across / PERIOD))
    return Peaks(torch.stack(heights, 1).float(), torch.tensor(spots))


def _relative_power(images: Tensor) -> Tensor:
    """Power by frequency over the quadrant, [B, H/2 + 1, W/2 + 1], of all above 1/16.

    Channels are added up, and the two diagonals of a frequency averaged. A flat picture has none.
    """
    rows, columns = images.shape[-2:]
    power = torch.fft.fft2(images.double()).abs().square().sum(1)
    down, across = (torch.fft.fftfreq(n, device=images.device) for n in (rows, columns))
    above = torch.hypot(down[:, None], across[None, :]) > 1 / (2 * PERIOD)
    total = (power * above).sum((1, 2))
    mirrored = power.roll(-1, 1).flip(1)  # at −f down, f across
    folded = ((power + mirrored) / 2)[:, : rows // 2 + 1, : columns // 2 + 1]
    loud = total > 1e-12 * power.sum((1, 2)).clamp(min=1e-12)
    return torch.where(loud[:, None, None], folded / total.clamp(min=1e-300)[:, None, None], 0.0)


def _near(mean: Tensor, down: int, across: int) -> Tensor:
    """The median of the mean spectrum near a grid frequency, grid frequencies left out."""
    spans, on_grid = [], []
    for size, multiple in zip(mean.shape, (down, across), strict=True):
        spacing = (size - 1) * 2 // PERIOD
        reach = 3 * spacing // 4 if multiple else 0  # on an axis: along it alone
        first, last = multiple * spacing - reach, multiple * spacing + reach
        spans.append(torch.arange(first, min(last, size - 1) + 1, device=mean.device))
        on_grid.append(spans[-1] % spacing == 0)
    patch = mean[spans[0]][:, spans[1]]
    return patch[~(on_grid[0][:, None] & on_grid[1])].quantile(0.5)
