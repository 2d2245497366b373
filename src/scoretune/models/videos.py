"""How many frames a model of videos draws: states are [B, C, T, h, w], of which T is fewer than the
frames of a video by what its autoencoder puts together."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any, TypeVar

from scoretune.core.errors import UserError
from scoretune.models.autoencoder import time_factor
from scoretune.models.base import Pipelined, default_argument

P = TypeVar("P", bound=Pipelined)


def draws_videos(pipeline: Any) -> bool:
    """Whether the call of a pipeline is told a number of frames."""
    return "num_frames" in inspect.signature(type(pipeline).__call__).parameters


def usual_frames(pipeline: Any) -> int:
    """T of the videos that a pipeline draws unless told otherwise; in patches of time up to whole
    ones, as it fills them up itself."""
    config = pipeline.transformer.config
    named = config.get("_sample_frames") or config.get("sample_frames")
    frames = int(named or default_argument(pipeline, "num_frames"))
    patch = _patch(pipeline)
    latents = (frames - 1) // time_factor(pipeline.vae) + 1
    return -(-latents // patch) * patch


def with_frames(model: P, frames: int) -> P:
    """The same model of videos of so many frames.

    Raises UserError for a model of pictures, and for a count that is not r·(p·k − 1) + 1: r frames
    behind the first are one of the latents, and p of those a patch.
    """
    pipeline = model.pipeline
    if not draws_videos(pipeline):
        raise UserError(
            f"model.frames={frames} is of videos, and a {type(pipeline).__name__} draws pictures: "
            "leave it out, or give a text-to-video model"
        )
    ratio, patch = time_factor(pipeline.vae), _patch(pipeline)
    whole, rest = divmod(frames - 1 + ratio, ratio * patch)
    if rest or not whole:
        near = [ratio * (patch * k - 1) + 1 for k in (whole, whole + 1) if k]
        raise UserError(
            f"model.frames={frames} cannot be divided by the autoencoder's {ratio} frames"
            f"{f' and patches of {patch}' if patch > 1 else ''}: set "
            f"{' or '.join(map(str, near))}"
        )
    channels, _, *sides = model.shape
    return replace(model, shape=(channels, whole * patch, *sides))


def half_as_long(model: Pipelined) -> int:
    """Frames of videos of about half the length, 0 where there are no shorter ones."""
    if not draws_videos(model.pipeline):
        return 0
    patch = _patch(model.pipeline)
    latents = model.shape[1] // patch // 2 * patch
    return time_factor(model.pipeline.vae) * (latents - 1) + 1 if latents else 0


def _patch(pipeline: Any) -> int:
    """Frames of the latents that are one place to the network."""
    config = pipeline.transformer.config
    sides = config.get("patch_size")
    return int(config.get("patch_size_t") or (1 if isinstance(sides, int) else sides[0]))
