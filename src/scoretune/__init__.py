"""scoretune: fine-tune diffusion and flow models from rewards, in continuous time.

The names below are imported on first use, so `import scoretune` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scoretune import control, diffusion, evaluate, recipes, rl
    from scoretune.data.scenes.world import shipped
    from scoretune.models.lora import load_lora
    from scoretune.policy import Policy
    from scoretune.rewards.networks import convert
    from scoretune.training.loop import train
    from scoretune.training.run_folder import load

__version__ = "0.1.0"

__all__ = [
    "Policy",
    "control",
    "convert",
    "diffusion",
    "evaluate",
    "load",
    "load_lora",
    "recipes",
    "rl",
    "shipped",
    "train",
]

_HOMES = {
    "Policy": "policy:Policy",
    "convert": "rewards.networks.convert",
    "load": "training.run_folder:load",
    "load_lora": "models.lora:load_lora",
    "shipped": "data.scenes.world:shipped",
    "train": "training.loop:train",
}
"""Where a name is at home that is no module of its own: a module, or `module:name` in one."""


_MOVED = {
    "backbones": "scoretune.models",
    "conversions": "scoretune.convert",
    "draws": "scoretune.evaluate.data_samples",
    "loras": "scoretune.load_lora, and scoretune.models.lora",
    "metrics": "scoretune.evaluate.metrics",
    "samples": "scoretune.load, and scoretune.evaluate.samples",
    "scenes": "scoretune.shipped, and scoretune.data.scenes",
    "scorers": "scoretune.rewards.catalog",
}
"""Names that pages of earlier versions used, and what they are now."""


def __getattr__(name: str) -> Any:
    if name in _MOVED:  # an AttributeError would not be shown by `from scoretune import …`
        raise ImportError(f"scoretune.{name} is now {_MOVED[name]}")
    if name not in __all__:
        raise AttributeError(f"module 'scoretune' has no attribute {name!r}")
    home, _, inside = _HOMES.get(name, name).partition(":")
    module = importlib.import_module(f"scoretune.{home}")
    return getattr(module, inside) if inside else module


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
