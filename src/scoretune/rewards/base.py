"""What a reward is: a function of finished images and their prompts, one number each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from scoretune.errors import UserError

Reward = Callable[[Tensor, Sequence[str]], Tensor]
"""(images [B, 3, H, W] in [0, 1], B prompts) -> rewards [B]; higher is better."""

Precision = Literal["float32", "bfloat16", "float16"]
"""What a reward's network computes in."""


@runtime_checkable
class Fingerprinted(Protocol):
    """A reward that can say what exactly scores: model ids, commits, hashes of weights."""

    def fingerprint(self) -> Mapping[str, str]: ...


def check_batch(batch: int) -> None:
    """Raises UserError for a number of pictures at once that is none."""
    if batch < 1:
        raise UserError(f"batch={batch}: a reward scores at least one picture at a time")


def in_batches(score: Reward, images: Tensor, prompts: Sequence[str], batch: int) -> Tensor:
    """The rewards [B], `batch` pictures at a time."""
    if len(prompts) != len(images):
        raise UserError(f"{len(images)} images have {len(prompts)} prompts: give one each")
    parts = [
        score(images[start : start + batch], prompts[start : start + batch])
        for start in range(0, len(images), batch)
    ]
    return torch.cat(parts) if parts else images.new_zeros(0)


class RewardFailed(UserError):
    """A reward that cannot judge these images: it fails, or returns another shape."""


def has_gradient(reward: Reward, name: str, image: Tensor, prompt: str) -> bool:
    """True when the reward can be differentiated by the image [3, H, W]."""
    probe = image.detach()[None].requires_grad_()
    return checked(reward, name, probe, [prompt]).requires_grad


def checked(reward: Reward, name: str, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """The rewards in float32, or one clear line on what is wrong with them."""
    try:
        values = torch.as_tensor(reward(images, prompts))
    except UserError:
        raise
    except Exception as error:
        raise RewardFailed(
            f"reward {name!r} failed with {type(error).__name__}: {error}; it is called with "
            f"images {tuple(images.shape)} in [0, 1] and a list of {len(prompts)} prompts"
        ) from error
    if values.shape != (len(images),):
        raise RewardFailed(
            f"reward {name!r} returned shape {tuple(values.shape)} for {len(images)} images: "
            f"return one number an image, shape ({len(images)},)"
        )
    values = values.to(images.device, torch.float32)
    if not bool(torch.isfinite(values).all()):
        bad = int((~torch.isfinite(values)).nonzero()[0])
        raise UserError(
            f"reward {name!r} is {values[bad].item()} for the prompt {prompts[bad]!r}: "
            "return finite numbers"
        )
    return values
