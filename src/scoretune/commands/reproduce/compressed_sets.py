"""Data for the learned studies of compressed sensing: bundled digits, or what a user's folder has.

`FOLDER/mnist` holds the idx files, gzipped; `FOLDER/mednist` has `breastmri_64.npz`,
`FOLDER/climate_images` has `mrms_rain_64.npz`, and `FOLDER/series_finance` the two files of
arXiv 2509.03898's code (`compressed_factors`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from scoretune.commands.reproduce.compressed_factors import (
    RETURNS,
    YEAR,
    factor_windows,
    macro_factors,
)
from scoretune.commands.reproduce.image_data import idx
from scoretune.core.errors import UserError

EDGE = 8
"""Dark pixels on every side of the 8×8 digits."""


@dataclass(frozen=True)
class States:
    """Data [n, *S] to learn from and held out; the basis in which they are sparse, the box that
    they lie in, and the numbers of measurements that are tried; other latents have the second."""

    learned: Tensor
    held_out: Tensor
    basis: str
    box: tuple[float, float] | None
    sizes: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.learned.shape[1:])

    @property
    def dimension(self) -> int:
        return self.learned[0].numel()


def digits(count: int) -> Tensor:
    """Bundled 8×8 digits without what is darker than 0.2, in the middle of 24×24: [count, 576]."""
    from sklearn.datasets import load_digits

    images = torch.tensor(load_digits().images[:count], dtype=torch.float32) / 16
    return F.pad(images * (images >= 0.2), (EDGE, EDGE, EDGE, EDGE)).flatten(1)


def _digits(data: Path) -> States:
    """All digits in random order, of which 297 are held out."""
    side = 8 + 2 * EDGE
    images = digits(1797).view(-1, 1, side, side)
    images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]
    return States(images[:1500], images[1500:], "identity", (0.0, 1.0), (64, 144, 196))


def _mnist(data: Path) -> States:
    learned, held_out = (
        idx(data / "mnist" / f"{part}-images-idx3-ubyte.gz")[:count, None].float() / 255
        for part, count in (("train", 5000), ("t10k", 500))
    )
    return States(learned, held_out, "identity", (0.0, 1.0), (196, 324, 441))


def _rain(data: Path) -> States:
    """Radar rain at 64×64, its coded rates. All numbers of measurements are below what recovery of
    every state asks for: small wavelets that are lost are little of a field of rain."""
    with np.load(data / PLACES["rain"]) as bundle:
        parts = [torch.from_numpy(bundle[f"{part}_images"]) for part in ("train", "test")]
    learned, held_out = (part[:, None].float() / 255 for part in parts)
    return States(learned, held_out, "haar", (0.0, 1.0), (144, 256))


def _breast(data: Path) -> States:
    """Slices of breast MRI at 32×32, means of 2×2 pixels."""
    with np.load(data / PLACES["breast"]) as bundle:
        parts = [torch.from_numpy(bundle[f"{part}_images"]) for part in ("train", "test")]
    learned, held_out = (F.avg_pool2d(part[:, None].float() / 255, 2) for part in parts)
    return States(learned, held_out, "identity", (0.0, 1.0), (144, 256, 480))


def _factors(data: Path) -> States:
    """A year of six principal components of macroeconomic series, twenty days a month; every
    twelfth window is held out, which is like its neighbours: distances to it say how well the law
    is learned, not how well the future is foretold."""
    windows = factor_windows(macro_factors(data / "series_finance").components, YEAR)
    late = torch.arange(len(windows)) % 12 == 11
    return States(windows[~late], windows[late], "dct", None, (96, 160, 240))


PLACES = {
    "mnist": "mnist/train-images-idx3-ubyte.gz",
    "breast": "mednist/breastmri_64.npz",
    "rain": "climate_images/mrms_rain_64.npz",
    "factors": f"series_finance/{RETURNS}",
}
SETS: dict[str, Callable[[Path], States]] = {
    "digits": _digits,
    "mnist": _mnist,
    "rain": _rain,
    "breast": _breast,
    "factors": _factors,
}
TITLES = {
    "digits": "8×8 digits on 24×24",
    "factors": "macroeconomic factors, 6 × 240 days",
    "mnist": "MNIST, 28×28",
    "rain": "radar rain, 64×64",
    "breast": "breast MRI, 32×32",
}


def sets_in(data: str | None) -> list[str]:
    """What can be learned from: what the folder holds, and without one the digits."""
    if data is None:
        return ["digits"]
    present = [name for name in SETS if name in PLACES and (Path(data) / PLACES[name]).is_file()]
    if not present:
        wanted = ", ".join(PLACES.values())
        raise UserError(f"--data {data} holds nothing to learn from: put one of {wanted} in it")
    return present


def states_of(name: str, data: str | None) -> States:
    """The data set of a name, of those that `sets_in` gives."""
    return SETS[name](Path(data or ""))
