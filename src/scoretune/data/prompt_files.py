"""Prompts from files of every common kind, and from the `datasets` library, row by row.

Whatever else a row says comes with its prompt as metadata, so that a reward may read it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scoretune.core.errors import UserError, unknown
from scoretune.data import formats
from scoretune.data.formats import Found

PROMPT_KEYS = ("prompt", "prompts", "caption", "text")
"""What the column of prompts may be called, the first that there is; capitals do not matter."""
TASK_KEYS = ("task", "category", "tag")


class Prompt(str):
    """A text, and what its file says of it beside: `metadata`, the whole row by its columns.

    Equal to the plain text and hashed like it. A part of it is a plain text again.
    """

    metadata: Mapping[str, Any]

    def __new__(cls, text: str, metadata: Mapping[str, Any] | None = None) -> Prompt:
        made = super().__new__(cls, text)
        made.metadata = dict(metadata or {})
        return made


@dataclass(frozen=True)
class Row:
    """A prompt, the task it belongs to, and how often it is asked for relative to others."""

    prompt: Prompt
    task: str = "all"
    weight: float = 1.0


def read_rows(source: str) -> list[Row]:
    """The prompts of a file, of `pairs:FILE:FILE`, or of `datasets:ID[:SPLIT[:COLUMN]]`.

    A file is .csv, .tsv, .json, .jsonl or .parquet, and may name its column as `FILE:COLUMN`; any
    other is text with one prompt a line; each may be gzipped (.gz). Raises UserError, in one line,
    for what cannot be read or has no prompts.
    """
    kind, _, rest = source.partition(":")
    if kind == "datasets" and rest:
        found, column = formats.of_datasets(rest)
        rows = list(_of_items(source, found, column))
    elif kind == "pairs" and rest:
        rows = _pairs(rest)
    else:
        file, column = formats.column_of(source)
        rows = list(_of_items(file, formats.of_file(file), column))
    if not rows:
        raise UserError(f"prompt file {source!r} is empty: write one prompt a line")
    return rows


def _pairs(rest: str) -> list[Row]:
    """Every line of one file with every line of another, as in DDPO (arXiv 2305.13301): `cat` and
    `riding a bike` make `a cat riding a bike`, of the task `riding a bike`."""
    first, _, second = rest.partition(":")
    nouns, actions = ([row.prompt for row in read_rows(file)] for file in (first, second))
    return [
        Row(Prompt(f"{_article(noun)} {noun} {action}", {"noun": noun, "action": action}), action)
        for noun in nouns
        for action in actions
    ]


def _article(noun: str) -> str:
    return "an" if noun[:1].lower() in "aeiou" else "a"


# ------------------------------------------------------------------------- rows of objects


def _of_items(source: str, found: Iterable[Found], column: str | None = None) -> Iterator[Row]:
    """Rows from texts or objects; the first object says which column holds the prompts."""
    keys: list[str] = []
    for place, item in found:
        if isinstance(item, str):
            yield Row(Prompt(item.strip()))
            continue
        if not isinstance(item, Mapping):
            raise UserError(
                f"{source!r}, {place}: {_brief(item)} is no prompt: write a text, or an object "
                'such as {"prompt": "a cat"}'
            )
        if column and not keys and column not in item:
            raise unknown(f"column of {source!r}", column, map(str, item))
        if not keys:
            keys = [column or _prompt_key(source, item)]
        yield _row(f"{source!r}, {place}", item, keys[0])


def _row(where: str, item: Mapping[str, Any], key: str) -> Row:
    text = item.get(key)
    if not isinstance(text, str):
        raise UserError(f"{where}: {key!r} must be a text, and is {_brief(text)}")
    return Row(Prompt(text.strip(), item), _task(item), _weight(where, item))


def _prompt_key(source: str, item: Mapping[str, Any]) -> str:
    key = _first(item, PROMPT_KEYS)
    if key is not None:
        return key
    near = unknown("column", "prompt", item)
    hint = str(near).rpartition(": ")[2] if "did you mean" in str(near) else "name one 'prompt'"
    raise UserError(
        f"{source!r} has no column {', '.join(PROMPT_KEYS[:-1])} or {PROMPT_KEYS[-1]}, and has "
        f"{', '.join(map(str, item)) or 'none'}: {hint}"
    )


def _task(item: Mapping[str, Any]) -> str:
    key = _first(item, TASK_KEYS)
    return "all" if key is None or item[key] in (None, "") else str(item[key])


def _weight(where: str, item: Mapping[str, Any]) -> float:
    key = _first(item, ("weight",))
    if key is None:
        return 1.0
    try:
        value = float(item[key])
    except (TypeError, ValueError):
        value = math.nan
    if not 0 < value < math.inf:
        raise UserError(
            f"{where}: the weight must be a number above 0, and is {_brief(item[key])}: leave out "
            "rows that are not wanted"
        )
    return value


def _first(item: Mapping[str, Any], names: Sequence[str]) -> str | None:
    known = {str(key).strip().lower(): key for key in item}
    return next((known[name] for name in names if name in known), None)


def _brief(item: Any) -> str:
    text = "missing" if item is None else repr(item)
    return text if len(text) <= 40 else f"{text[:37]}..."
