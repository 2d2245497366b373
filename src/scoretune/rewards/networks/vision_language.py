"""Vision-language models of transformers: pictures and questions in, tokens out."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scoretune.core import hub
from scoretune.core.errors import UserError
from scoretune.rewards.base import Precision
from scoretune.rewards.cache import Cached
from scoretune.rewards.networks import pretrained

KIND = "AutoModelForImageTextToText"
_UNUSED = ("encoder.pooler.",)  # of TrOCR: its files lack it, and nothing that it makes is read


class Answered(Cached):
    """What rewards share that are read off the answers of a vision-language model.

    A subclass is a frozen dataclass with these fields, and those of `Cached`.
    """

    model: str
    revision: str | None
    dtype: Precision

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        self.vision_language.network.to(images.device)
        return super().__call__(images, prompts)

    @cached_property
    def vision_language(self) -> VisionLanguage:
        """The model that answers."""
        return VisionLanguage(self.model, self.revision, self.dtype)


@dataclass(frozen=True)
class VisionLanguage:
    """An image-text-to-text model of a folder or hub id, loaded when it is needed, and frozen."""

    source: str
    revision: str | None = None
    dtype: Precision = "float32"

    @cached_property
    def network(self) -> Any:
        """The model, frozen. Raises UserError unless all of it is there, and for pickles."""
        dtype = getattr(torch, self.dtype)
        return pretrained.network(
            KIND, self.source, revision=self.revision, dtype=dtype, unused=_UNUSED
        )

    @cached_property
    def processor(self) -> Any:
        """Prepares pictures, by Pillow, and text, padded left. Raises UserError for no such."""
        hub.quieten()
        processor = hub.offline_first(
            self.source,
            "a model with its processor",
            lambda here: _processor(self.source, self.revision, here),
        )
        parts = [getattr(processor, name, None) for name in ("tokenizer", "image_processor")]
        if None in parts:
            raise UserError(
                f"{self.source!r} holds a {type(processor).__name__}, which does not prepare "
                "pictures and text: save the model's processor beside it with "
                "processor.save_pretrained(folder)"
            )
        tokenizer = processor.tokenizer
        tokenizer.padding_side = "left"  # so that the last token of each question comes last
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return processor

    @property
    def chats(self) -> bool:
        """Whether it has a chat template."""
        return bool(getattr(self.processor, "chat_template", None))

    def inputs(self, pixels: NDArray[np.uint8], texts: Sequence[str]) -> Any:
        """Inputs of a text about each picture [B, H, W, 3], or of pictures alone, on the device."""
        if any(texts):
            inputs = questions(self.processor, pixels, texts)
        else:
            inputs = self.processor(images=pictures(pixels), return_tensors="pt")
        return inputs.to(self.network.device, self.network.dtype)

    def generate(self, inputs: Any, **settings: Any) -> Any:
        """What `generate` of transformers gives, without sampling and without a gradient."""
        with torch.no_grad():
            return self.network.generate(**inputs, do_sample=False, **settings)


def _processor(source: str, revision: str | None, here: bool) -> Any:
    from transformers import AutoProcessor

    place = {"revision": revision, "trust_remote_code": False, "local_files_only": here}
    try:
        return AutoProcessor.from_pretrained(source, **place)
    except (ImportError, TypeError, AttributeError):
        # One that knows videos too (Qwen-VL) wants torchvision, if only for these.
        if importlib.util.find_spec("torchvision"):
            raise
        return _without_videos(source, place)


def _without_videos(source: str, place: dict[str, Any]) -> Any:
    """The processor of a model that reads videos too, without that part."""
    import transformers
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    config = transformers.AutoConfig.from_pretrained(source, **place)
    kind: Any = getattr(transformers, PROCESSOR_MAPPING_NAMES[config.model_type])

    def accept(self: Any, name: str, part: Any) -> Any:
        if name == "video_processor":
            return type(part)
        return kind.check_argument_for_proper_class(self, name, part)

    subclass: Any = type(kind.__name__, (kind,), {"check_argument_for_proper_class": accept})
    parts = {
        "image_processor": transformers.AutoImageProcessor.from_pretrained(source, **place),
        "tokenizer": transformers.AutoTokenizer.from_pretrained(source, **place),
    }
    settings, _ = kind.get_processor_dict(source, **place)
    return subclass.from_args_and_dict(
        [parts.get(name) for name in kind.get_attributes()], settings
    )


def pictures(pixels: NDArray[np.uint8]) -> list[Any]:
    """Pictures [B, H, W, 3] for Pillow."""
    from PIL import Image

    return [Image.fromarray(picture) for picture in pixels]


def questions(prepare: Any, pixels: NDArray[np.uint8], texts: Sequence[str]) -> Any:
    """Inputs of a question a picture [B, H, W, 3], padded left, by chat template or image token."""
    filled = [_templated(prepare, text) for text in texts]
    start = prepare.tokenizer.bos_token
    # A template may have written the token of the beginning, which is not to be there twice.
    has_start = bool(start) and filled[0].startswith(start)
    extra = {"add_special_tokens": False} if has_start else {}
    nested = [[picture] for picture in pictures(pixels)]
    return prepare(images=nested, text=filled, padding=True, return_tensors="pt", **extra)


def _templated(prepare: Any, text: str) -> str:
    if getattr(prepare, "chat_template", None):
        content = [{"type": "image"}, {"type": "text", "text": text}]
        turn = [{"role": "user", "content": content}]
        return str(prepare.apply_chat_template(turn, add_generation_prompt=True, tokenize=False))
    token = getattr(prepare, "image_token", None)
    return f"{token}\n{text}" if token else text
