"""The one error a user is meant to see: a single line that names the thing and the fix."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

LONGEST = 300
"""Characters of a line that a user is meant to read."""
SHOWN = 150
"""Characters of the names that such a line lists."""


class UserError(Exception):
    """Something the user can mend. The command line prints it as one line and exits with 2.

    Whatever its text quotes, it is `one_line`.
    """

    def __init__(self, text: str) -> None:
        super().__init__(one_line(text))


@contextmanager
def user_errors(setting: str = "") -> Iterator[None]:
    """Within this context a ValueError is the user's to mend: it becomes a UserError.

    `setting` is what the message begins with, where the error does not name the setting itself.
    """
    try:
        yield
    except ValueError as error:
        raise UserError(f"{setting}: {error}" if setting else str(error)) from error


def unknown(kind: str, given: str, names: Iterable[str]) -> UserError:
    """An error for a name that does not exist, with the nearest one that does."""
    choices = sorted(names)
    near = difflib.get_close_matches(given, choices, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"choose one of: {listed(choices)}"
    return UserError(f"unknown {kind} {given!r}: {hint}")


def visible(text: str) -> str:
    """The text with what a terminal or a page would obey instead of show, as escapes.

    Control and format characters become such as \\x1b, half a surrogate pair \\ud83d.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str, most: int = LONGEST) -> str:
    """The text on one line of at most `most` characters: lists lose their ends, others a middle."""
    line = visible(" ".join(text.split()))
    if len(line) <= most:
        return line
    line = _without_list_end(line, most)
    if len(line) <= most:
        return line
    tail = most // 3
    return f"{line[: most - tail - 3]} … {line[-tail:]}"  # what it is about, and the fix


def listed(names: Iterable[str], most: int = SHOWN) -> str:
    """The names with commas, as many as fit into `most` characters, and how many there are more."""
    words = list(names)
    shown, size = 0, 0
    for word in words:
        size += len(word) + 2
        if shown and size > most:
            break
        shown += 1
    left = len(words) - shown
    return ", ".join(words[:shown]) + (f" … and {left} more" if left else "")


def _without_list_end(line: str, most: int) -> str:
    """The line without the end of its longest list of short words, as far as needed."""
    pieces = line.split(", ")
    best, start = range(0), 1
    for place in range(1, len(pieces)):
        if place == len(pieces) - 1 or len(pieces[place]) > 60 or _PROSE.search(pieces[place]):
            if place - start > len(best):
                best = range(start, place)
            start = place + 1
    for kept in reversed(range(len(best))):
        head, tail = pieces[: best[0] + kept], pieces[best[-1] + 1 :]
        more = f"{', '.join(head)} … and {len(best) - kept} more"
        short = ", ".join([more, *tail])
        if len(short) <= most:
            return short
    return line


_PROSE = re.compile(r"[:;(]")
"""What a word of a list does not hold."""


def first_line(error: BaseException | None) -> str:
    """The first line of what an error says, or its kind where it says nothing."""
    return visible((str(error).strip() or type(error).__name__).splitlines()[0])
