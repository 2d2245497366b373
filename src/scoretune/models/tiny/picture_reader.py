"""What makes texts with pictures into numbers for a Qwen2.5-VL, without its part for videos, which
needs torchvision."""

from __future__ import annotations

from typing import Any

from transformers import Qwen2VLProcessor
from transformers.processing_utils import ProcessorMixin


class PictureReader(Qwen2VLProcessor):  # type: ignore[misc]
    """A Qwen2VLProcessor of pictures alone."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, **kwargs: Any) -> None:
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id, self.video_token_id = (
            tokenizer.convert_tokens_to_ids(token) for token in (self.image_token, self.video_token)
        )
        ProcessorMixin.__init__(self, image_processor, tokenizer, **kwargs)
