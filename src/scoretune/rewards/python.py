"""A user's own function as a reward: `module:function`."""

from __future__ import annotations

from typing import cast

from scoretune.core.resolve import imported
from scoretune.rewards.base import Reward


def from_path(path: str) -> Reward:
    """Import `module:function`, also from the current folder. Raises UserError when it cannot."""
    return cast(Reward, imported("reward", path))
