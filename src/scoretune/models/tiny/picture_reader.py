"""What makes texts with pictures into numbers for a Qwen2.5-VL, without its part for videos, which
needs torchvision: `PictureReader`, a class that is made when it is first asked for."""

from __future__ import annotations

from functools import cache
from typing import Any


def __getattr__(name: str) -> Any:
    """The class, and the one that diffusers loads it as."""
    if name == "PictureReader":
        return _made()
    if name == "ProcessorMixin":
        return _made().__mro__[2]
    raise AttributeError(name)


@cache
def _made() -> Any:
    from transformers import Qwen2VLProcessor
    from transformers.processing_utils import ProcessorMixin

    class PictureReader(Qwen2VLProcessor):  # type: ignore[misc]
        """A Qwen2VLProcessor of pictures alone."""

        def __init__(self, image_processor: Any = None, tokenizer: Any = None, **more: Any) -> None:
            self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
            self.image_token_id, self.video_token_id = tokenizer.convert_tokens_to_ids(
                [self.image_token, self.video_token]
            )
            ProcessorMixin.__init__(self, image_processor, tokenizer, **more)

    PictureReader.__qualname__ = "PictureReader"
    return PictureReader
