"""scoretune: fine-tune diffusion and flow models from rewards, in continuous time.

The names below are imported on first use, so `import scoretune` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scoretune import control, diffusion, evaluate, recipes, rl
    from scoretune.policy import Policy
    from scoretune.training.loop import train
    from scoretune.training.run_folder import load

__version__ = "0.1.0"

__all__ = ["Policy", "control", "diffusion", "evaluate", "load", "recipes", "rl", "train"]

_HOMES = {"Policy": "policy", "load": "training.run_folder", "train": "training.loop"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'scoretune' has no attribute {name!r}")
    home = importlib.import_module(f"scoretune.{_HOMES.get(name, name)}")
    return getattr(home, name) if name in _HOMES else home


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
