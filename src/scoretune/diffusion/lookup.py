"""Things by name: what is not there gets the nearest name that is."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


def lookup(kind: str, name: str, table: Mapping[str, T]) -> T:
    """The entry of that name. Raises ValueError with the nearest one, called a `kind`."""
    if name in table:
        return table[name]
    near = difflib.get_close_matches(name, sorted(table), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"choose one of: {', '.join(sorted(table))}"
    raise ValueError(f"unknown {kind} {name!r}: {hint}")
