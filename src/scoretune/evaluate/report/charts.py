"""The figures of a run's report: charts drawn as SVG by hand, and cards with pictures.

Every colour is a CSS class, so one drawing serves light and dark pages; charts need nothing but
the standard library.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

THIN = "\u202f"  # narrow no-break space: between a number and its unit, and between thousands
WIDTH, HEIGHT = 500, 284  # of a line chart, in drawing units
LEFT, RIGHT, TOP, BOTTOM = 62.0, 20.0, 36.0, 54.0  # margins with room for a phone's larger text
BAR, ROW, NAMES, GAINS = 12.0, 46.0, 112.0, 52.0  # bar charts: heights, and widths left and right


class Point(NamedTuple):
    """One measurement; `low` and `high` bound its 95 % interval where one is known."""

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
    dashed: bool = False
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
        return LEFT + (x - self.x0) / (self.x1 - self.x0) * (WIDTH - LEFT - RIGHT)

    def down(self, y: float) -> float:
        share = (min(max(y, self.y0), self.y1) - self.y0) / (self.y1 - self.y0)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def grouped(value: float) -> str:
    """`91 000`: a whole number with thin spaces between its thousands."""
    return f"{round(value, 0) + 0.0:,.0f}".replace(",", THIN).replace("-", "\u2212")


def percent(value: float, digits: int = 0) -> str:
    return f"{round(100 * value, digits) + 0.0:.{digits}f}{THIN}%".replace("-", "\u2212")


def chart(series: Sequence[Series], axes: Axes) -> str:
    """A line chart with bands and a key; an empty string when there is nothing to draw."""
    drawn = [line for line in series if line.points]
    if not drawn:
        return ""
    frame = _frame(drawn, axes)
    lines = "".join(_line(line, frame, axes) for line in drawn)
    names = ", ".join(line.name for line in drawn)
    label = escape(f"{axes.y} against {axes.x}: {names}", quote=True)
    head = f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
    return _key(drawn) + head + _grid(frame, axes) + lines + "</svg>"


def bars(rows: Sequence[tuple[str, float, float]], style: str, label: str) -> str:
    """Horizontal bars, two a row: the share before (pale) and after, with the gain in points."""
    if not rows:
        return ""
    height, scale = 18 + ROW * len(rows) + 38, WIDTH - NAMES - GAINS
    parts = [_bar_grid(scale, height, label)]
    for i, (name, before, after) in enumerate(rows):
        top = 18 + ROW * i
        gain = round(100 * (after - before))
        fell = " fell" if gain < 0 else ""
        tip = escape(f"{name}: {percent(before)} before, {percent(after)} after")
        parts.append(
            f'<g><title>{tip}</title><text class="name" x="{NAMES - 12}" y="{top + 20}" '
            f'text-anchor="end">{escape(name)}</text>'
            + _bar(top + 2, before * scale, "bar before")
            + _bar(top + 3 + BAR, after * scale, "bar")
            + f'<text class="gain{fell}" x="{WIDTH}" y="{top + 20}" text-anchor="end">'
            f"{signed(gain)}</text></g>"
        )
    head = f'<svg class="chart {style}" viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
    return head + f'aria-label="{escape(label, quote=True)}">' + "".join(parts) + "</svg>"


def signed(value: float, digits: int = 0) -> str:
    """The number with its sign, a true minus included; never a minus before 0."""
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "\u2212")


def thinned(points: Sequence[Point], most: int = 200) -> tuple[Point, ...]:
    """At most `most` points: neighbours are averaged, so that long runs make small pages."""
    size = math.ceil(len(points) / most) if points else 1
    chunks = [points[i : i + size] for i in range(0, len(points), size)]
    return tuple(chunk[0] if len(chunk) == 1 else _mean(chunk) for chunk in chunks)


def _mean(points: Sequence[Point]) -> Point:
    def middle(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if len(known) == len(values) else None

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
    return f"{round(value, 10):g}".replace("-", "\u2212")


def _grid(frame: Frame, axes: Axes) -> str:
    end, floor = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = [f'<text class="axis" x="2" y="14">{escape(axes.y)}</text>']
    for value in _ticks(frame.y0, frame.y1, 5):
        y = frame.down(value)
        text = percent(value) if axes.percent else _tick_text(value, frame.y1 - frame.y0)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{end}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 9}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    for value in _ticks(frame.x0, frame.x1, 5):
        x, text = frame.across(value), _tick_text(value, frame.x1 - frame.x0)
        parts.append(f'<text x="{x:.1f}" y="{floor + 20}" text-anchor="middle">{text}</text>')
    parts.append(f'<line class="base" x1="{LEFT}" x2="{end}" y1="{floor}" y2="{floor}"/>')
    for mark in axes.marks:
        x = frame.across(mark)
        place = f'x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 12}" y2="{floor}"'
        parts.append(f'<line class="alarm" {place}><title>alarm at {grouped(mark)}</title></line>')
        side, shift = ("end", -6) if x > (LEFT + end) / 2 else ("start", 6)
        place = f'x="{x + shift:.1f}" y="{TOP - 4}" text-anchor="{side}"'
        parts.append(f'<text class="alarm" {place}>alarm</text>')
    x_name = f'<text class="axis" x="{end}" y="{HEIGHT - 8}" text-anchor="end">'
    return "".join(parts) + x_name + escape(axes.x) + "</text>"


def _line(line: Series, frame: Frame, axes: Axes) -> str:
    at = [(frame.across(p.x), frame.down(p.y)) for p in line.points]
    body = ""
    banded = [p for p in line.points if p.low is not None and p.high is not None]
    if len(banded) > 1:
        edge = [(p.x, p.high) for p in banded] + [(p.x, p.low) for p in reversed(banded)]
        corners = (f"{frame.across(x):.1f},{frame.down(y or 0.0):.1f}" for x, y in edge)
        body = f'<polygon class="band" points="{" ".join(corners)}"/>'
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
    body += f'<polyline class="line{" dashed" if line.dashed else ""}" points="{path}"/>'
    if line.dots or len(at) == 1:
        tips = (_tip(line, point, axes) for point in line.points)
        marks = zip(at, tips, strict=True)
        body += "".join(_dot(x, y, line.dashed, f"<title>{tip}</title>") for (x, y), tip in marks)
    return f'<g class="{line.style}">{body}</g>'


def _dot(x: float, y: float, square: bool, inside: str = "") -> str:
    if square:  # shape as well as hue tells two lines apart
        place = f'x="{x - 3.5:.1f}" y="{y - 3.5:.1f}" width="7" height="7"'
        return f'<rect class="dot" {place}>{inside}</rect>'
    return f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="4">{inside}</circle>'


def _tip(line: Series, point: Point, axes: Axes) -> str:
    def say(value: float) -> str:
        return percent(value) if axes.percent else f"{value + 0.0:.3g}"

    text = f"{line.name}: {say(point.y)}"
    if point.low is not None and point.high is not None:
        text += f" (95 % interval {say(point.low)} to {say(point.high)})"
    return escape(f"{text} at {grouped(point.x)} {axes.x}")


def _key(series: Sequence[Series]) -> str:
    if len(series) < 2:
        return ""
    items = []
    for line in reversed(series):  # the line drawn last, on top, is the one that matters most
        dash = " dashed" if line.dashed else ""
        mark = f'<line class="line{dash}" x1="1" x2="25" y1="6" y2="6"/>'
        mark += _dot(13, 6, line.dashed) if line.dots else ""
        swatch = f'<svg class="{line.style}" viewBox="0 0 26 12" aria-hidden="true">{mark}</svg>'
        items.append(f"<li>{swatch}{escape(line.name)}</li>")
    return f'<ul class="key">{"".join(items)}</ul>'


def _bar(top: float, length: float, style: str) -> str:
    place = f'x="{NAMES}" y="{top:.1f}" width="{max(length, 1.0):.1f}" height="{BAR}"'
    return f'<rect class="{style}" rx="2" {place}/>'


def _bar_grid(scale: float, height: float, label: str) -> str:
    parts = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = NAMES + share * scale
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="12" y2="{height - 40}"/>')
        place = f'x="{x}" y="{height - 22}" text-anchor="middle"'
        parts.append(f"<text {place}>{percent(share)}</text>")
    points = f'<text x="{WIDTH}" y="10" text-anchor="end">points</text>'
    end = NAMES + scale
    axis = f'<text class="axis" x="{end}" y="{height - 3}" text-anchor="end">{escape(label)}</text>'
    return "".join(parts) + points + axis


# ----------------------------------------------------------------------------- before and after
