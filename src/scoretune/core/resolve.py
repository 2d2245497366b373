"""A user's own function, named as `module:function` or `path/to/file.py:function`."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from scoretune.core.errors import UserError, unknown


def is_function(text: str) -> bool:
    """Whether a text names a function as `module:function`, and no file or folder."""
    return bool(re.fullmatch(r"[\w.]*:\w*", text)) and not Path(text).exists()


def imported(kind: str, path: str) -> Callable[..., Any]:
    """Import `module:function`, also from the current folder or a file; `kind` is for errors.

    Raises UserError when it cannot be imported or is nothing to call; of a name that the module
    does not have, with the nearest one that it has.
    """
    place, _, function = path.partition(":")
    try:
        module = _module(place)
    except Exception as error:  # importing runs the user's code, which may raise anything
        raise UserError(
            f"cannot import the {kind} {path!r} ({type(error).__name__}: {error}): write it as "
            "module:function, with the module in this folder or installed, or file.py:function"
        ) from error
    found = getattr(module, function, None) if function else None
    if found is None:
        raise UserError(f"{kind} {path!r}: {_nearest(module, function)}")
    if not callable(found):
        raise UserError(f"{kind} {path!r} is a {type(found).__name__}, not a function")
    return cast(Callable[..., Any], found)


def _module(place: str) -> ModuleType:
    """An importable module, or that of a file whose name ends in .py."""
    if not place.endswith(".py"):
        here = str(Path.cwd())
        if here not in sys.path:
            sys.path.append(here)
        return importlib.import_module(place)
    spec = importlib.util.spec_from_file_location(Path(place).stem, place)
    assert spec is not None and spec.loader is not None, "its name ends as Python's files do"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _nearest(module: ModuleType, function: str) -> str:
    """What a module without that function has instead."""
    found = {name: it for name, it in vars(module).items() if callable(it) and name[0] != "_"}
    # What a module imports for itself is hardly meant, but where it has nothing else it may be.
    names = [n for n, it in found.items() if getattr(it, "__module__", "") == module.__name__]
    if not function:
        return f"write it as module:function, with a function of {module.__name__}"
    if not found:
        return f"{module.__name__} has no {function!r}, nor another function: define it there"
    hint = str(unknown("function", function, names or found)).partition(f"{function!r}: ")[2]
    return f"{module.__name__} has no {function!r}: {hint}"
