"""What samples look like: a sheet of pictures, points in the plane, or lines over time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoretune.core.errors import UserError

SHEET = 64  # pictures of a sheet
DOTS = 2000  # points of a cloud
LINES = 8  # series of a panel
COLUMNS = 4  # columns that are drawn
INK, PALE = "#1f4e9c", "#b9bfc9"


def show(
    samples: Tensor,
    kind: str,
    path: Path,
    *,
    names: Sequence[str] = (),
    real: Tensor | None = None,
    label: str = "samples",
) -> Path:
    """Draw samples [n, *S], in the data's own units, into a .png, over or beside `real` data."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = samples.detach().cpu()
    real = None if real is None else real.detach().cpu()
    if kind == "images":
        _sheet(samples[:SHEET], path)
    elif kind == "points":
        _cloud(samples, names, path, real, label)
    else:
        _lines(samples, names, path, real, label)
    return path


def check_ending(path: Path) -> None:
    """Raises UserError for a path that `write` does not write."""
    if path.suffix not in (".png", ".npz"):
        raise UserError(f"cannot write {str(path)!r}: choose --out name.png or name.npz")


def write(samples: Tensor, kind: str, path: Path, names: Sequence[str] = ()) -> None:
    """Samples as a picture, or as numbers in a .npz. Raises UserError for a bad path."""
    import numpy as np

    check_ending(path)
    try:
        if path.suffix == ".png":
            show(samples, kind, path, names=names)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "images":
                plain = (samples * 255).round().byte().permute(0, 2, 3, 1)
            else:
                plain = samples.transpose(1, 2) if kind == "series" else samples
            np.savez(path, samples=plain.contiguous().cpu().numpy())
    except OSError as error:
        raise UserError(f"cannot write {str(path)!r} ({error}): choose another --out") from error


def _sheet(images: Tensor, path: Path) -> None:
    """A square of pictures with a pixel between them, enlarged to be looked at."""
    from PIL import Image

    columns = math.ceil(math.sqrt(len(images)))
    rows = -(-len(images) // columns)
    height, width = images.shape[-2:]
    sheet = torch.ones(3, rows * (height + 1) - 1, columns * (width + 1) - 1)
    for place, image in enumerate(images):
        top, left = place // columns * (height + 1), place % columns * (width + 1)
        sheet[:, top : top + height, left : left + width] = image.expand(3, -1, -1)
    pixels = (sheet * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    grow = max(1, 640 // max(pixels.shape[:2]))
    picture = Image.fromarray(pixels)
    size = (picture.width * grow, picture.height * grow)
    picture.resize(size, Image.Resampling.NEAREST).save(path)


def _cloud(
    points: Tensor, names: Sequence[str], path: Path, real: Tensor | None, label: str
) -> None:
    """Each pair of the first columns against each other; one column as a histogram."""
    samples, data = points[:DOTS].numpy(), None if real is None else real[:DOTS].numpy()
    size = min(points.shape[1], COLUMNS)
    pairs = [(i, j) for j in range(size) for i in range(j)] or [(0, 0)]
    columns = math.ceil(math.sqrt(len(pairs)))
    figure, axes = _axes(-(-len(pairs) // columns), columns, (5.0, 5.0) if size <= 2 else (3, 3))
    for (i, j), axis in zip(pairs, axes, strict=False):
        for values, colour, name in ((data, PALE, "data"), (samples, INK, label)):
            if values is None:
                continue
            if i == j:
                axis.hist(values[:, 0], 60, density=True, color=colour, alpha=0.6, label=name)
            else:
                axis.scatter(values[:, i], values[:, j], s=3, lw=0, c=colour, label=name)
        _bound(axis, samples if data is None else data, i, j)
        axis.set_xlabel(_name(names, i))
        axis.set_ylabel("density" if i == j else _name(names, j))
    axes[0].legend(loc="upper right", markerscale=3)
    _save(figure, axes, len(pairs), path)


def _bound(axis: Any, values: Any, i: int, j: int) -> None:
    """The data decide what is seen: a stray sample must not shrink everything else."""
    limits = [(i, axis.set_xlim)] if i == j else [(i, axis.set_xlim), (j, axis.set_ylim)]
    for column, limit in limits:
        low, high = float(values[:, column].min()), float(values[:, column].max())
        margin = 0.15 * (high - low) + 1e-9
        limit(low - margin, high + margin)


def _lines(
    series: Tensor, names: Sequence[str], path: Path, real: Tensor | None, label: str
) -> None:
    """A row a column: data to the left, samples to the right, on the same scale."""
    panels = [(label, series)] if real is None else [("data", real), (label, series)]
    rows = min(series.shape[1], COLUMNS)
    figure, axes = _axes(rows, len(panels), (4.5, 2.4), sharey="row")
    for row in range(rows):
        for column, (name, values) in enumerate(panels):
            axis = axes[row * len(panels) + column]
            places = torch.linspace(0, len(values) - 1, min(LINES, len(values))).long()
            axis.plot(values[places, row].T.numpy(), lw=1, color=INK, alpha=0.6)
            axis.set_title(f"{_name(names, row)}, {name}", fontsize=9)
            axis.set_xlabel("row of the window")
    _save(figure, axes, len(axes), path)


def _axes(rows: int, columns: int, each: tuple[float, float], **rest: Any) -> tuple[Any, list[Any]]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    size = (columns * each[0], rows * each[1])
    figure, axes = pyplot.subplots(rows, columns, figsize=size, squeeze=False, **rest)
    return figure, list(axes.flat)


def _save(figure: Any, axes: Sequence[Any], used: int, path: Path) -> None:
    from matplotlib import pyplot

    for axis in axes[used:]:
        axis.set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _name(names: Sequence[str], i: int) -> str:
    return names[i] if i < len(names) else f"column {i}"
