"""The one error a user is meant to see: a single line that names the thing and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Something the user can mend. The command line prints it as one line and exits with 2."""


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
    hint = f"did you mean {near[0]!r}?" if near else f"choose one of: {', '.join(choices)}"
    return UserError(f"unknown {kind} {given!r}: {hint}")


def first_line(error: BaseException | None) -> str:
    """The first line of what an error says, or its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
