"""Numbers, durations, dates and configurations as people read them, in terminals and on pages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any

NOTHING = "–"  # what stands for a number that is not there
THIN = "\u202f"  # narrow no-break space: between a number and its unit, and between thousands
MINUS = "\u2212"


def plain(value: float | None, digits: int = 3) -> str:
    """Digits that mean something, whole numbers in full; never -0; a dash for None."""
    if value is None:
        return NOTHING
    value += 0.0  # what makes 0.0 of -0.0
    return f"{value:.0f}" if abs(value) >= 10**digits - 0.5 else f"{value:.{digits}g}"


def signed(value: float | None) -> str:
    """A difference with its sign; 0 has none."""
    return f"+{plain(value)}" if value is not None and value > 0 else plain(value)


def level(value: float | None) -> str:
    """`plain` with a true minus, for a page."""
    return plain(value).replace("-", MINUS)


def shift(value: float | None) -> str:
    """`signed` with a true minus, for a page."""
    return signed(value).replace("-", MINUS)


def points(value: float, digits: int = 0) -> str:
    """Percentage points with their sign, for a page; a minus that rounds away is a plus."""
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", MINUS)


def percent(value: float, digits: int = 0) -> str:
    """`71 %` for 0.71."""
    return f"{round(100 * value, digits) + 0.0:.{digits}f}{THIN}%".replace("-", MINUS)


def grouped(value: float) -> str:
    """`91 000`: a whole number with thin spaces between its thousands."""
    return f"{round(value, 0) + 0.0:,.0f}".replace(",", THIN).replace("-", MINUS)


def duration(seconds: float, space: str = " ") -> str:
    """A time in the unit that suits it: `3.2 s`, `212 s`, `35 min`, `2.5 h`."""
    if seconds < 600:
        return f"{seconds:.2g}{space}s" if seconds < 9.95 else f"{seconds:.0f}{space}s"
    if seconds < 7200:
        return f"{seconds / 60:.0f}{space}min"
    return f"{seconds / 3600:.1f}{space}h"


def moment(started: Any) -> str:
    """`21 November 2025, 07:41 UTC` for a date of ISO 8601; other text as it is."""
    try:
        date = datetime.fromisoformat(str(started))
    except ValueError:
        return str(started or "")
    return f"{date.day} {date:%B %Y, %H:%M %Z}".rstrip()


def settings(config: Any) -> dict[str, str]:
    """A configuration as rows: each leaf by its dotted path, as JSON unless it is text."""
    return dict(_leaves(config, "")) if isinstance(config, dict) else {}


def _leaves(tree: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    elif path:
        yield path, tree if isinstance(tree, str) else json.dumps(tree)
