"""What a reward is: a function of finished images and their prompts, one number each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from scoretune.errors import UserError

Reward = Callable[[Tensor, Sequence[str]], Tensor]
"""(images [B, 3, H, W] in [0, 1], B prompts) -> rewards [B]; higher is better."""


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
        raise UserError(
            f"reward {name!r} failed with {type(error).__name__}: {error}; it is called with "
            f"images {tuple(images.shape)} in [0, 1] and a list of {len(prompts)} prompts"
        ) from error
    if values.shape != (len(images),):
        raise UserError(
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
