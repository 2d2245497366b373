"""A user's own function, named as `module:function`."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from scoretune.errors import UserError


def is_function(text: str) -> bool:
    """Whether a text names a function as `module:function`, and no file or folder."""
    return bool(re.fullmatch(r"[\w.]*:\w*", text)) and not Path(text).exists()


def imported(kind: str, path: str) -> Callable[..., Any]:
    """Import `module:function`, also from the current folder; `kind` is what errors call it.

    Raises UserError when it cannot be imported or is nothing to call.
    """
    module_name, _, function = path.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        found = getattr(importlib.import_module(module_name), function)
    except Exception as error:  # importing runs the user's code, which may raise anything
        raise UserError(
            f"cannot import the {kind} {path!r} ({type(error).__name__}: {error}): write it as "
            "module:function, with the module in this folder or installed"
        ) from error
    if not callable(found):
        raise UserError(f"{kind} {path!r} is a {type(found).__name__}, not a function")
    return cast(Callable[..., Any], found)
