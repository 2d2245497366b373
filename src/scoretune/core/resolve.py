"""Text into objects: `name(setting=value, …)`, weighted sums of such, and `module:function`.

A value is a Python literal (`4`, `0.5`, `None`, `"Is it red, or not?"`, `("a", "b")`) or bare text
up to the next comma (`openai/clip-vit-large-patch14`, `http://host:8000`). Bare text that looks
like a literal stays text where the setting is text: `revision=1234567`.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import math
import re
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple, TypeVar, cast, get_args, get_origin

from scoretune.core.errors import UserError, unknown
from scoretune.core.reading import check_regular
from scoretune.core.user_code import contained

T = TypeVar("T")
_CLOSES = {"(": ")", "[": "]", "{": "}"}
_WORDS = {"true": True, "false": False, "null": None}
_NUMBER = r"[+-]?\s*(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_ADDRESS = r"https?://\S+"
_EXAMPLE = "write a sum like 'reader + 0.5*compressibility - 0.1*my_module:function'"


@dataclass(frozen=True)
class Call:
    """A name and the text of its settings, not yet checked."""

    name: str
    settings: Mapping[str, str]


class Term(NamedTuple):
    """One term of a weighted sum: `text` is a URL, a `module:function` or a call."""

    weight: float
    text: str


# ------------------------------------------------------------------------ name(setting=value)


def read_call(text: str) -> Call:
    """`name` or `name(setting=value, …)`. Raises UserError for anything else."""
    name, bracket, _ = text.strip().partition("(")
    if not bracket:
        return Call(name, {})
    inside = text.strip()[len(name) :]
    end, commas = _scan_brackets(inside, 0)
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


def instantiate(kind: str, call: Call, constructor: Callable[..., T]) -> T:
    """The constructor called with the settings, each of the type that its signature gives.

    `kind` is what errors call it. Raises UserError for a setting that is unknown, missing or of
    another type.
    """
    return constructor(**typed_settings(kind, call, constructor))


def typed_settings(kind: str, call: Call, constructor: Callable[..., Any]) -> dict[str, Any]:
    """The settings of a call as values. Raises UserError as `instantiate` does."""
    parameters = inspect.signature(constructor, eval_str=True).parameters
    settings: dict[str, Any] = {}
    for key, text in call.settings.items():
        if not parameters:
            raise UserError(f"{kind} {call.name!r} has no settings: write {call.name} alone")
        if key not in parameters:
            raise unknown(f"setting of {kind} {call.name!r}", key, parameters)
        settings[key] = _value(f"{call.name}({key}=…)", text, parameters[key].annotation)
    for key, parameter in parameters.items():
        if key not in settings and parameter.default is inspect.Parameter.empty:
            raise UserError(
                f"{kind} {call.name!r} needs the setting {key!r}: write {call.name}({key}=…)"
            )
    return settings


def _value(where: str, text: str, annotation: Any) -> Any:
    """The text as a literal if that fits the type, else as it stands."""
    from pydantic import TypeAdapter, ValidationError

    if annotation is inspect.Parameter.empty:  # a user's function may leave it out
        return _literal(text)
    adapter: TypeAdapter[Any] = TypeAdapter(annotation)
    for candidate in (_literal(text), text):
        try:
            return adapter.validate_python(candidate, strict=True)
        except ValidationError:
            continue
    if get_origin(annotation) is Literal:
        raise unknown(f"value of {where}:", text, [str(choice) for choice in get_args(annotation)])
    type_name = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    raise UserError(f"{where} must be {type_name}, got {text!r}")


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return _WORDS.get(text, text)


def _scan_brackets(text: str, place: int) -> tuple[int, list[int]]:
    """Where the bracket that opens at `place` has closed, and the places of its commas.

    The end is the index behind the bracket, −1 if it never closes; commas are those of no inner
    bracket. Brackets and commas in quotes do not count; a quote opens at the beginning of a value
    only, so an apostrophe within bare text is one.
    """
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


# ------------------------------------------------------------------------ weighted sums


def read_sum(text: str, before_minus: Collection[str] = ()) -> list[Term]:
    """The terms of `a + 0.5*b(c=1) - module:function`; of a text without signs, that one term.

    A hyphen glued into the folder or module of `module:function` belongs to it, unless it follows
    one of the names `before_minus`: `clip-taste:of` is a module. Raises UserError for what cannot
    be read, a weight of 0 and a term that is there twice.
    """
    if not re.search(r"[-+*\s]", text):
        return [Term(1.0, text)]
    terms: list[Term] = []
    place, pattern = 0, _term_pattern(before_minus)
    text = text.strip()
    while place < len(text):
        match = pattern.match(text, place)
        end = _end_of_term(text, match) if match else -1
        if match is None or end < 0 or not (match["sign"] or place == 0):
            rest = text[place:].lstrip()
            raise UserError(f"cannot read the reward {text!r} from {rest!r} on: {_EXAMPLE}")
        weight = float(re.sub(r"\s", "", match["weight"] or "1"))
        weight = -weight if match["sign"] == "-" else weight
        name = text[match.start("name") : end]
        _check_term(weight, name, terms)
        terms.append(Term(weight, name))
        place = end
    return terms or [Term(1.0, text)]


def _end_of_term(text: str, match: re.Match[str]) -> int:
    """Where a term ends, with its brackets if it has any; −1 if it does not end well."""
    end = match.end("name")
    if match["called"] and text[end : end + 1] == "(":
        end = _scan_brackets(text, end)[0]
    return end if end >= 0 and re.match(r"\s*([-+]|$)", text[end:]) else -1


def _term_pattern(before_minus: Collection[str]) -> re.Pattern[str]:
    """`± weight * name`, of which only the name must be there."""
    minus = "".join(rf"(?!{re.escape(name)}-)" for name in before_minus)
    module = rf"{minus}[A-Za-z_./\\~](?:[\w./\\]|-(?=[\w./\\]))*:[A-Za-z_]\w*"
    name = rf"{_ADDRESS}|(?P<called>{module}|[A-Za-z_]\w*)"
    return re.compile(rf"\s*(?P<sign>[+-])?\s*(?:(?P<weight>{_NUMBER})\s*\*)?\s*(?P<name>{name})")


def _check_term(weight: float, name: str, before: list[Term]) -> None:
    if weight == 0 or not math.isfinite(weight):
        raise UserError(
            f"reward {name!r} has the weight {weight + 0.0:g}: leave it out, or change it"
        )
    if any(term.text == name for term in before):
        raise UserError(f"reward {name!r} is there twice: give it one weight, the sum of the two")


# ------------------------------------------------------------------------ module:function


def is_function(text: str) -> bool:
    """Whether a text names a function as `module:function`, and no file or folder."""
    return bool(re.fullmatch(r"[\w.]*:\w*", text)) and not Path(text).exists()


def imported(kind: str, path: str) -> Callable[..., Any]:
    """Import `module:function`, also from the current folder or a file; `kind` is for errors.

    Raises UserError when it cannot be imported or is nothing to call; of a name that the module
    does not have, with the nearest one that it has.
    """
    place, _, name = path.partition(":")
    try:
        with contained(f"importing the {kind} {path!r}"):
            module = _module(place)
    except UserError:
        raise
    except Exception as error:  # importing runs the user's code, which may raise anything
        raise UserError(
            f"cannot import the {kind} {path!r} ({type(error).__name__}: {error}): write it as "
            "module:function, with the module in this folder or installed, or file.py:function"
        ) from error
    function = getattr(module, name, None) if name else None
    if function is None:
        raise UserError(f"{kind} {path!r}: {_nearest(module, name)}")
    if not callable(function):
        raise UserError(f"{kind} {path!r} is a {type(function).__name__}, not a function")
    return cast(Callable[..., Any], function)


def _module(place: str) -> ModuleType:
    """An importable module, or that of a file whose name ends in .py."""
    if not place.endswith(".py"):
        here = str(Path.cwd())
        if here not in sys.path:
            sys.path.append(here)
        module = importlib.import_module(place)
        _check_hidden(module, place, Path(here))
        return module
    check_regular(Path(place))
    spec = importlib.util.spec_from_file_location(Path(place).stem, place)
    assert spec is not None and spec.loader is not None, "its name ends as Python's files do"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _check_hidden(module: ModuleType, place: str, here: Path) -> None:
    """Refuse a module that hides a file of the same name in the current folder."""
    own = here.joinpath(*place.split(".")).with_suffix(".py")
    home = getattr(module, "__file__", None)
    if own.is_file() and (home is None or not own.samefile(home)):
        raise UserError(
            f"{own.name} in this folder is hidden by another module {place!r} "
            f"({home or 'built in'}): name it as {own.name}:FUNCTION, or give the file another name"
        )


def _nearest(module: ModuleType, name: str) -> str:
    """What a module without that function has instead."""
    public = {key: it for key, it in vars(module).items() if callable(it) and key[0] != "_"}
    # What a module imports for itself is hardly meant, but where it has nothing else it may be.
    defined = [n for n, it in public.items() if getattr(it, "__module__", "") == module.__name__]
    if not name:
        return f"write it as module:function, with a function of {module.__name__}"
    if not public:
        return f"{module.__name__} has no {name!r}, nor another function: define it there"
    hint = str(unknown("function", name, defined or public)).partition(f"{name!r}: ")[2]
    return f"{module.__name__} has no {name!r}: {hint}"
