"""A user's own function as a reward: `module:function`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import cast

from scoretune.errors import UserError
from scoretune.rewards.base import Reward


def from_path(path: str) -> Reward:
    """Import `module:function`, also from the current folder. Raises UserError when it cannot."""
    module_name, _, function = path.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        found = getattr(importlib.import_module(module_name), function)
    except Exception as error:  # importing runs the user's code, which may raise anything
        raise UserError(
            f"cannot import the reward {path!r} ({type(error).__name__}: {error}): write it as "
            "module:function, with the module in this folder or installed"
        ) from error
    if not callable(found):
        raise UserError(f"reward {path!r} is a {type(found).__name__}, not a function")
    return cast(Reward, found)
