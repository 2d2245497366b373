"""What figures of several experiments share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scoretune.commands.reproduce.base import interval

COLOURS = ("#0b6e99", "#c8553d", "#5b8c3a", "#8a5aa8", "#c99a2e", "#555555")


def draw_band(
    axes: Any, x: Sequence[float], curves: Sequence[Sequence[float]], colour: str, label: str
) -> None:
    """The mean of some curves, one a seed, and its 95 % interval at every x."""
    bands = [interval(column) for column in zip(*curves, strict=True)]
    axes.plot(x, [b[0] for b in bands], color=colour, linewidth=2, label=label)
    low, high = [b[1] for b in bands], [b[2] for b in bands]
    axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
