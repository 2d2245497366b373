"""MixGRPO's sliding window (arXiv 2507.21802): noise on a few steps, an ODE solver on the others.

Only the window's steps are learned from, so an update costs their gradients alone. Its place is a
function of the update, so that a resumed run finds it again.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """The steps start <= k < stop are stochastic; `solver` takes the ones before and after.

    `compress` is the share of the steps after the window that is taken (MixGRPO-Flash).
    """

    start: int
    stop: int
    solver: str = "ddim"
    compress: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise ValueError(f"a window needs 0 <= start < stop, got {self.start}, {self.stop}")

    def nodes_after(self, steps: int) -> list[int]:
        """Numbers of the nodes from the window's end to the last, of a grid of `steps` steps."""
        left = steps - self.stop
        taken = max(1, round(self.compress * left)) if left else 0
        return [self.stop + round(j * left / taken) for j in range(taken + 1)] if taken else [steps]


def progressive(
    update: int,
    places: int,
    *,
    every: int,
    stride: int = 1,
    decay: float = 0.0,
    decay_from: int = 0,
) -> int:
    """Where the window starts: 0, stride, … below `places`, then from the beginning.

    At place l it stays for ⌈every·e^{−decay·max(l − decay_from, 0)}⌉ updates, so that with a decay
    the steps near the data, which decide less, get fewer (arXiv 2507.21802 §3).
    """
    stops = range(0, places, stride)
    stays = [math.ceil(every * math.exp(-decay * max(at - decay_from, 0))) for at in stops]
    left = update % sum(stays)
    for at, stay in zip(stops, stays, strict=True):
        if left < stay:
            return at
        left -= stay
    raise AssertionError("unreachable: `left` is below the sum of the stays")


def anywhere(update: int, places: int, *, every: int, seed: int) -> int:
    """A uniform place below `places`, another every so many updates."""
    return random.Random(f"{seed}/{update // every}").randrange(places)
