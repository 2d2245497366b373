"""How little a video flickers, by its pixels alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from scoretune.rewards.base import RewardFailed


def temporal_flickering(videos: Tensor, prompts: Sequence[str]) -> Tensor:
    """1 less the mean absolute difference of frames that follow each other, [B] in [0, 1]:

        r(v) = 1 − 1/((T − 1)·3HW) Σ_t ‖v_{t+1} − v_t‖₁

    of videos [B, T, 3, H, W] in [0, 1] (the dimension "temporal flickering" of VBench, arXiv
    2311.17982). Motion counts as flicker: a still video has 1, so it belongs into a sum. Raises
    RewardFailed for pictures and for videos of one frame.
    """
    if videos.dim() != 5 or videos.shape[1] < 2:
        raise RewardFailed(
            "temporal_flickering compares the frames of a video, and was shown "
            f"{'one frame' if videos.dim() == 5 else 'pictures'}: give a text-to-video model, and "
            "model.frames above 1"
        )
    return 1 - videos.diff(dim=1).abs().mean((1, 2, 3, 4))


_marked: Any = temporal_flickering
_marked.takes_videos = True
