"""Which edits are worth learning from: pure functions of rewards and distances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from scoretune.core.errors import UserError

Outcome = Literal["kept", "reversed", "refused"]


@dataclass(frozen=True)
class Verdict:
    """What the filter says of an edit: preferred to the picture, the picture to it, or neither;
    and why."""

    outcome: Outcome
    reason: str


@dataclass(frozen=True, kw_only=True)
class Filter:
    """An edit is kept if its reward gains more than `threshold`, a second reward does not lose, and
    the picture changed by more than `least` and less than `most` (the mean absolute difference of
    pixels in [0, 1]), so that neither nothing nor everything was changed.

    With `reversed` a picture is preferred to an edit that loses more than the threshold.
    """

    threshold: float = 0.0
    least: float = 0.002
    most: float = 0.3
    reversed: bool = False

    def __post_init__(self) -> None:
        if self.threshold < 0:
            raise UserError(f"the filter's threshold is a gain: {self.threshold:g} is below 0")
        if not 0 <= self.least < self.most:
            raise UserError(
                f"the filter's distances must be 0 <= least < most, not {self.least:g}, "
                f"{self.most:g}"
            )

    def __call__(
        self, gain: float, distance: float, *, second: float | None = None, problem: str = ""
    ) -> Verdict:
        """`gain` of the reward, edit less picture; `second` that of another reward."""
        if problem:
            return Verdict("refused", problem)
        if distance <= self.least:
            return Verdict("refused", "nothing changed")
        if distance >= self.most:
            return Verdict("refused", "everything changed")
        if gain > self.threshold:
            if second is not None and second < 0:
                return Verdict("refused", "the second reward disagrees")
            return Verdict("kept", "better")
        if self.reversed and -gain > self.threshold:
            if second is not None and second > 0:
                return Verdict("refused", "the second reward disagrees")
            return Verdict("reversed", "worse")
        return Verdict("refused", "not better")


def distances(pictures: Tensor, edited: Tensor) -> Tensor:
    """Mean absolute differences [B] of pictures [B, 3, H, W] in [0, 1]."""
    return (pictures - edited).abs().flatten(1).mean(1)
