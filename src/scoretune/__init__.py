"""scoretune: fine-tune diffusion and flow models from rewards, in continuous time.

The names below are imported on first use, so `import scoretune` costs nothing.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scoretune import control, diffusion, evaluate, recipes, rl
    from scoretune.policy import Policy
    from scoretune.samples import load
    from scoretune.train import train

__version__ = "0.1.0"

__all__ = ["Policy", "control", "diffusion", "evaluate", "load", "recipes", "rl", "train"]

_HOMES = {"Policy": "policy", "load": "samples", "train": "train"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'scoretune' has no attribute {name!r}")
    home = importlib.import_module(f"scoretune.{_HOMES.get(name, name)}")
    return getattr(home, name) if name in _HOMES else home


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Python binds a submodule to its package; here `train` means the function of that module."""

    def __setattr__(self, name: str, value: object) -> None:
        if name == "train" and isinstance(value, ModuleType):
            value = value.train
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
