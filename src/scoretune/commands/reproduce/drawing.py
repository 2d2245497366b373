"""What figures of several experiments share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from scoretune.commands.reproduce.base import interval

Grid = Literal["both", "x", "y", "none"]

COLOURS = ("#0b6e99", "#c8553d", "#5b8c3a", "#8a5aa8", "#c99a2e", "#555555")


def subplots(
    rows: int = 1, columns: int = 1, *, size: tuple[float, float], grid: Grid = "both", **more: Any
) -> tuple[Any, Any]:
    """A matplotlib Figure of `size` inches and its panels, as `Figure.subplots` gives them.

    `grid` names the axis across which lines are drawn: x, y, both or none.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, **more)
    if grid != "none":
        for axes in figure.axes:
            axes.grid(alpha=0.3, axis=grid)
    return figure, panels


def legend_outside(figure: Any, where: str, **options: Any) -> None:
    """One legend for all panels beside them, by the labels of the first."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc=f"outside {where}", **options)


def name_ticks(axes: Any, values: Sequence[float]) -> None:
    """Ticks of a logarithmic x axis at these values alone."""
    axes.set_xticks(values, [str(value) for value in values])
    axes.minorticks_off()


def draw_band(
    axes: Any, x: Sequence[float], curves: Sequence[Sequence[float]], colour: str, label: str
) -> None:
    """The mean of some curves, one a seed, and its 95 % interval at every x."""
    bands = [interval(column) for column in zip(*curves, strict=True)]
    axes.plot(x, [b[0] for b in bands], color=colour, linewidth=2, label=label)
    low, high = [b[1] for b in bands], [b[2] for b in bands]
    axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
