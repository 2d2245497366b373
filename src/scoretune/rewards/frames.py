"""Rewards of pictures on videos: which frames are looked at, `reward="clip(frames=every(4))"`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from scoretune.core import resolve
from scoretune.core.errors import UserError
from scoretune.rewards.base import Reward, check_prompt, checked

SETTING = re.compile(r"[(,]\s*frames\s*=")


@dataclass(frozen=True)
class OnFrames:
    """The mean of a reward of pictures over some frames of a video; of a picture the reward itself.

    `frames`: first, middle, all or every(n), the first and each n-th behind it. It has a gradient
    where the reward has one.
    """

    reward: Reward
    name: str
    frames: str = "all"
    takes_videos: ClassVar[bool] = True

    def __post_init__(self) -> None:
        places(self.frames, 1)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Videos [B, T, 3, H, W] in [0, 1], or pictures, and B prompts -> [B]."""
        if images.dim() == 5:
            images = images[:, places(self.frames, images.shape[1])]
        return checked(self.reward, self.name, images, prompts)

    def check_prompt(self, prompt: str) -> None:
        """Refuse a prompt that the reward cannot judge."""
        check_prompt(self.reward, prompt)


def places(frames: str, count: int) -> list[int]:
    """The numbers of the frames that are looked at, of `count`. Raises UserError for other text."""
    every = re.fullmatch(r"every\(\s*(\d{1,6})\s*\)", frames)
    if every and int(every[1]):
        return list(range(0, count, int(every[1])))
    named = {"first": [0], "middle": [count // 2], "all": list(range(count))}
    if frames not in named:
        raise UserError(f"frames={frames}: write first, middle, all or every(4)")
    return named[frames]


def split(text: str) -> tuple[str, str | None]:
    """The text of a reward without its setting `frames`, and that; None where it has none."""
    if not SETTING.search(text):
        return text, None
    call = resolve.read_call(text)
    settings = dict(call.settings)
    frames = settings.pop("frames", None)
    rest = ", ".join(f"{name}={value}" for name, value in settings.items())
    return (f"{call.name}({rest})" if rest else call.name), frames
