"""Charts of pages as SVG: lines with bands over time, and bars before and after. What is where is
computed here, templates draw it, and CSS classes colour it for light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from markupsafe import Markup

from scoretune.evaluate.report import render
from scoretune.evaluate.report.format import MINUS, THIN, grouped, percent
from scoretune.evaluate.report.record import Row, number

WIDTH, HEIGHT = 500, 284  # of a line chart, in drawing units
LEFT, RIGHT, TOP, BOTTOM = 62.0, 20.0, 36.0, 54.0  # margins with room for a phone's larger text
BAR, ROW, NAMES, GAINS = 12.0, 46.0, 112.0, 52.0  # bar charts: heights, and widths left and right


class Point(NamedTuple):
    """One measurement; `low` and `high` bound its 95 % interval where one is recorded."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """One line of a chart. `style` is a CSS class that sets the hue."""

    name: str
    style: str
    points: tuple[Point, ...]
    dashed: bool = False  # its dots are squares: shape as well as hue tells lines apart
    dots: bool = True


@dataclass(frozen=True)
class Axes:
    """What the axes mean. Values under `floor` are drawn on it; `marks` are places to point at."""

    x: str
    y: str
    percent: bool = False
    least_span: float = 0.0  # never zoom in further than this: noise must not look like news
    floor: float = -math.inf
    from_zero: bool = False
    marks: tuple[float, ...] = ()


class Frame(NamedTuple):
    """The data range of a chart."""

    x0: float
    x1: float
    y0: float
    y1: float

    def across(self, x: float) -> float:
        """Where `x` is drawn."""
        return round(LEFT + (x - self.x0) / (self.x1 - self.x0) * (WIDTH - LEFT - RIGHT), 1)

    def down(self, y: float) -> float:
        """Where `y` is drawn; what lies outside is drawn on the edge."""
        share = (min(max(y, self.y0), self.y1) - self.y0) / (self.y1 - self.y0)
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)


def chart(series: Sequence[Series], axes: Axes) -> Markup | None:
    """A line chart with bands, and a key for several lines; None when there is nothing to draw."""
    lines = [line for line in series if line.points]
    if not lines:
        return None
    frame = _frame(lines, axes)
    span = frame.y1 - frame.y0
    values = {
        "label": f"{axes.y} against {axes.x}: {', '.join(line.name for line in lines)}",
        "axes": axes,
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "right": WIDTH - RIGHT,
        "top": TOP,
        "bottom": HEIGHT - BOTTOM,
        "y_ticks": [
            (frame.down(y), percent(y) if axes.percent else _tick_text(y, span))
            for y in _ticks(frame.y0, frame.y1, 5)
        ],
        "x_ticks": [
            (frame.across(x), _tick_text(x, frame.x1 - frame.x0))
            for x in _ticks(frame.x0, frame.x1, 5)
        ],
        "marks": [(frame.across(mark), grouped(mark)) for mark in axes.marks],
        "lines": [_line(line, frame, axes) for line in lines],
    }
    return render.fragment("chart.html", values)


def bars(rows: Sequence[tuple[str, float, float]], style: str, label: str) -> Markup | None:
    """Horizontal bars, two a row: the share before (pale) and after, with the gain in points."""
    if not rows:
        return None
    scale = WIDTH - NAMES - GAINS
    drawn = [
        {
            "name": name,
            "before": before,
            "after": after,
            "gain": round(100 * (after - before)),
            "top": 18 + ROW * i,
            "widths": [round(max(share * scale, 1.0), 1) for share in (before, after)],
        }
        for i, (name, before, after) in enumerate(rows)
    ]
    values = {
        "style": style,
        "label": label,
        "width": WIDTH,
        "height": round(56 + ROW * len(rows)),
        "left": NAMES,
        "right": NAMES + scale,
        "thick": BAR,
        "ticks": [(NAMES + share * scale, percent(share)) for share in (0, 0.25, 0.5, 0.75, 1)],
        "rows": drawn,
    }
    return render.fragment("bars.html", values)


def read_points(
    rows: Sequence[Row], x: str, *y: str, low: tuple[str, ...] = (), high: tuple[str, ...] = ()
) -> tuple[Point, ...]:
    """The rows of a log that have both numbers; `y`, `low` and `high` are paths of keys."""
    return tuple(
        Point(across, up, number(row, *low), number(row, *high))
        for row in rows
        if (across := number(row, x)) is not None and (up := number(row, *y)) is not None
    )


def thinned(points: Sequence[Point], most: int = 200) -> tuple[Point, ...]:
    """At most `most` points: neighbours are averaged, so that long runs make small pages."""
    size = math.ceil(len(points) / most) if points else 1
    chunks = [points[i : i + size] for i in range(0, len(points), size)]
    return tuple(chunk[0] if len(chunk) == 1 else _mean(chunk) for chunk in chunks)


def _mean(points: Sequence[Point]) -> Point:
    def middle(values: Sequence[float | None]) -> float | None:
        numbers = [value for value in values if value is not None]
        return sum(numbers) / len(numbers) if len(numbers) == len(values) else None

    x, y, low, high = (middle(column) for column in zip(*points, strict=True))
    return Point(x or 0.0, y or 0.0, low, high)


def _frame(series: Sequence[Series], axes: Axes) -> Frame:
    points = [point for line in series for point in line.points]
    values = [v for p in points for v in (p.y, p.low, p.high) if v is not None]
    low, high = max(min(values), axes.floor), max(max(values), axes.floor)
    low, high = (min(low, 0.0), max(high, 0.0)) if axes.from_zero else (low, high)
    spare = max(axes.least_span - (high - low), 0.0) / 2
    low, high = low - spare, high + spare
    if axes.percent:  # slide back inside what an accuracy can be
        low, high = (0.0, high - low) if low < 0 else (low, high)
        low, high = (max(0.0, 1 - (high - low)), 1.0) if high > 1 else (low, high)
    step = _step(low, high, 5)
    bottom, top = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    left, right = min(p.x for p in points), max(p.x for p in points)
    top, right = (top if top > bottom else bottom + step), (right if right > left else left + 1)
    return Frame(left, right, bottom, top)


def _step(low: float, high: float, most: int) -> float:
    """The smallest round distance that puts at most `most` steps between `low` and `high`."""
    rough = (high - low) / most
    if rough <= 0:
        return max(abs(high), 1.0) / 10
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 2.5, 5, 10, 20) if m * power >= rough * 0.999)


def _ticks(low: float, high: float, most: int) -> list[float]:
    step = _step(low, high, most)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _tick_text(value: float, span: float) -> str:
    if span >= 4e6:
        return f"{value / 1e6:g}{THIN}M"
    if span >= 20:
        return grouped(value)
    return f"{round(value, 10):g}".replace("-", MINUS)


def _line(line: Series, frame: Frame, axes: Axes) -> dict[str, Any]:
    places = [(frame.across(point.x), frame.down(point.y)) for point in line.points]
    bounds = [(p.x, p.low, p.high) for p in line.points if p.low is not None and p.high is not None]
    edge = [(x, high) for x, _, high in bounds] + [(x, low) for x, low, _ in reversed(bounds)]
    marked = line.dots or len(places) == 1
    tips = (_tip(line, point, axes) for point in line.points)
    return {
        "name": line.name,
        "style": line.style,
        "dashed": line.dashed,
        "dots": line.dots,
        "path": _path(places),
        "band": _path([(frame.across(x), frame.down(y)) for x, y in edge]) if bounds[1:] else "",
        "marks": [(x, y, tip) for (x, y), tip in zip(places, tips, strict=True) if marked],
    }


def _path(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x},{y}" for x, y in places)


def _tip(line: Series, point: Point, axes: Axes) -> str:
    def text(value: float) -> str:
        return percent(value) if axes.percent else f"{value + 0.0:.3g}"

    tip = f"{line.name}: {text(point.y)}"
    if point.low is not None and point.high is not None:
        tip += f" (95 % interval {text(point.low)} to {text(point.high)})"
    return f"{tip} at {grouped(point.x)} {axes.x}"
