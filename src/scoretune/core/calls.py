"""What is written `name(setting=value, …)`: read, checked against a signature, and called.

A value is a Python literal (`4`, `0.5`, `None`, `"Is it red, or not?"`, `("a", "b")`) or bare text
up to the next comma (`openai/clip-vit-large-patch14`, `http://host:8000`). Bare text that looks
like a literal stays text where the setting is text: `revision=1234567`.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, TypeVar, get_args, get_origin

from scoretune.core.errors import UserError, unknown

T = TypeVar("T")
_CLOSES = {"(": ")", "[": "]", "{": "}"}
_WORDS = {"true": True, "false": False, "null": None}


@dataclass(frozen=True)
class Call:
    """A name and the text of its settings, not yet checked."""

    name: str
    settings: Mapping[str, str]


def end_of_brackets(text: str, place: int) -> int:
    """Where the bracket that opens at `place` has closed: the index behind it. −1 if it never does.

    Brackets and commas in quotes do not count; a quote opens at the beginning of a value only, so
    an apostrophe within bare text is one.
    """
    return _scanned(text, place)[0]


def _scanned(text: str, place: int) -> tuple[int, list[int]]:
    """The end of the bracket at `place`, and where its own commas are, those of no inner one."""
    closers: list[str] = []
    commas: list[int] = []
    quote, before = "", ""
    for index in range(place, len(text)):
        letter = text[index]
        if quote:
            quote = "" if letter == quote and text[index - 1] != "\\" else quote
        elif letter in "\"'" and before in ("=", ",", *_CLOSES):
            quote = letter
        elif letter in _CLOSES:
            closers.append(_CLOSES[letter])
        elif letter == "," and len(closers) == 1:
            commas.append(index)
        elif closers and letter == closers[-1]:
            closers.pop()
            if not closers:
                return index + 1, commas
        before = before if letter.isspace() else letter
    return -1, commas


def read(text: str) -> Call:
    """`name` or `name(setting=value, …)`. Raises UserError for anything else."""
    name, bracket, _ = text.strip().partition("(")
    if not bracket:
        return Call(name, {})
    inside = text.strip()[len(name) :]
    end, commas = _scanned(inside, 0)
    if end != len(inside):
        raise UserError(
            f"cannot read {text!r}: its brackets do not close at its end; write it as "
            "name(setting=value, other=value)"
        )
    edges = [0, *commas, end - 1]
    pieces = [inside[left + 1 : right] for left, right in pairwise(edges)]
    if not pieces[-1].strip():
        pieces.pop()  # no settings, or a comma behind the last
    settings: dict[str, str] = {}
    for piece in pieces:
        key, equals, value = (part.strip() for part in piece.partition("="))
        if not (equals and key.isidentifier() and value):
            raise UserError(f"cannot read {piece.strip()!r} in {text!r}: write it as setting=value")
        if key in settings:
            raise UserError(f"{key!r} is there twice in {text!r}: give it one value")
        settings[key] = value
    return Call(name.strip(), settings)


def made(kind: str, call: Call, constructor: Callable[..., T]) -> T:
    """The constructor called with the settings, each of the type that its signature gives.

    Raises UserError for a setting that is unknown, missing or of another type.
    """
    return constructor(**values(kind, call, constructor))


def values(kind: str, call: Call, constructor: Callable[..., Any]) -> dict[str, Any]:
    """The settings of a call as values. Raises UserError as `made` does."""
    parameters = inspect.signature(constructor, eval_str=True).parameters
    found: dict[str, Any] = {}
    for key, text in call.settings.items():
        if not parameters:
            raise UserError(f"{kind} {call.name!r} has no settings: write {call.name} alone")
        if key not in parameters:
            raise unknown(f"setting of {kind} {call.name!r}", key, parameters)
        found[key] = _value(f"{call.name}({key}=…)", text, parameters[key].annotation)
    for key, parameter in parameters.items():
        if key not in found and parameter.default is inspect.Parameter.empty:
            raise UserError(
                f"{kind} {call.name!r} needs the setting {key!r}: write {call.name}({key}=…)"
            )
    return found


def _value(where: str, text: str, wanted: Any) -> Any:
    """The text as a literal if that fits the type, else as it stands."""
    from pydantic import TypeAdapter, ValidationError

    adapter: TypeAdapter[Any] = TypeAdapter(wanted)
    for candidate in (_literal(text), text):
        try:
            return adapter.validate_python(candidate, strict=True)
        except ValidationError:
            continue
    if get_origin(wanted) is Literal:
        raise unknown(f"value of {where}:", text, [str(choice) for choice in get_args(wanted)])
    told = wanted.__name__ if isinstance(wanted, type) else str(wanted)
    raise UserError(f"{where} must be {told}, got {text!r}")


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return _WORDS.get(text, text)
