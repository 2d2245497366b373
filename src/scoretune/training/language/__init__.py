"""Preference tuning of language models: a thin layer over TRL's DPO trainer.

`RainbowPOTrainer` and `RainbowPOConfig` are made when they are first asked for, since they derive
from classes of TRL, which `import scoretune` does not load.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["RainbowPOConfig", "RainbowPOTrainer"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.trainer").classes()[name]
