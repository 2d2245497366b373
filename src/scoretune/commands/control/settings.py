"""Settings on the command line, word by word, for functions that take them by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from scoretune.core.errors import UserError, unknown
from scoretune.core.resolve import Call, typed_settings


def shared_settings(
    kind: str, words: Sequence[str], *takers: Callable[..., Any]
) -> list[dict[str, Any]]:
    """What each of the takers is given of `name=value` words; a name may be of several of them.

    Raises UserError for a word that is none, a name that nobody takes, and values of another type.
    """
    values: dict[str, str] = {}
    for word in words:
        key, equals, value = (part.strip() for part in word.partition("="))
        if not (equals and key and value):
            raise UserError(f"cannot read {word!r}: write a setting as name=value, such as k=2")
        if key in values:
            raise UserError(f"{key!r} is there twice: give it one value")
        values[key] = value
    names = [inspect.signature(taker).parameters for taker in takers]
    for key in values:
        if not any(key in each for each in names):
            raise unknown(f"setting of {kind}", key, [name for each in names for name in each])
    return [
        typed_settings(kind, Call(kind, {k: v for k, v in values.items() if k in each}), taker)
        for each, taker in zip(names, takers, strict=True)
    ]
