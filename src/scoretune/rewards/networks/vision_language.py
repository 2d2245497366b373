"""Questions about pictures, put to a model of transformers that reads both."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from scoretune.core import hub
from scoretune.core.errors import UserError
from scoretune.rewards.networks import pretrained

KIND = "AutoModelForImageTextToText"
_UNUSED = "encoder.pooler."  # of TrOCR: its files lack it, and nothing that it makes is read


def network(source: str, *, revision: str | None, dtype: torch.dtype) -> Any:
    """The frozen image-text-to-text model of a folder or hub id, whole and from safetensors.

    Raises UserError where there is none, where weights are missing, and for pickles.
    """
    import transformers

    hub.quieten()
    save = f"t.{KIND}.from_pretrained({source!r}).save_pretrained('FOLDER')"
    pretrained.refuse_pickles(source, f'python -c "import transformers as t; {save}"')
    found, told = hub.offline_first(
        source,
        "an image-text-to-text model of transformers with safetensors weights",
        lambda here: getattr(transformers, KIND).from_pretrained(
            source,
            revision=revision,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=here,
            output_loading_info=True,
            dtype=dtype,
        ),
    )
    missing = {key for key in told["missing_keys"] if not key.startswith(_UNUSED)}
    pretrained.whole(source, type(found).__name__, missing)
    return found.requires_grad_(False).eval()


def processor(source: str, *, revision: str | None) -> Any:
    """What prepares pictures and text for the model of a folder or hub id; it pads on the left.

    Raises UserError where there is none. Needs no torchvision: pictures go through Pillow.
    """
    hub.quieten()
    found = hub.offline_first(
        source, "a model with its processor", lambda here: _processor(source, revision, here)
    )
    parts = [getattr(found, name, None) for name in ("tokenizer", "image_processor")]
    if None in parts:
        raise UserError(
            f"{source!r} holds a {type(found).__name__}, which does not prepare pictures and text: "
            "save the model's processor beside it with processor.save_pretrained(folder)"
        )
    tokenizer = found.tokenizer
    tokenizer.padding_side = "left"  # so that the last token of each question comes last
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return found


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

    still: Any = type(kind.__name__, (kind,), {"check_argument_for_proper_class": accept})
    parts = {
        "image_processor": transformers.AutoImageProcessor.from_pretrained(source, **place),
        "tokenizer": transformers.AutoTokenizer.from_pretrained(source, **place),
    }
    told, _ = kind.get_processor_dict(source, **place)
    return still.from_args_and_dict([parts.get(name) for name in kind.get_attributes()], told)


def pictures(pixels: NDArray[np.uint8]) -> list[Any]:
    """Pictures [B, H, W, 3] for Pillow."""
    from PIL import Image

    return [Image.fromarray(picture) for picture in pixels]


def questions(prepare: Any, pixels: NDArray[np.uint8], texts: Sequence[str]) -> Any:
    """The model's inputs for one question about each picture [B, H, W, 3], padded on the left.

    With the chat template of the processor where it has one, and else the token that stands for a
    picture on a line before the question.
    """
    asked = [_put(prepare, text) for text in texts]
    start = prepare.tokenizer.bos_token
    # A template may have written the token of the beginning, which is not to be there twice.
    begun = bool(start) and asked[0].startswith(start)
    extra = {"add_special_tokens": False} if begun else {}
    shown = [[picture] for picture in pictures(pixels)]
    return prepare(images=shown, text=asked, padding=True, return_tensors="pt", **extra)


def _put(prepare: Any, text: str) -> str:
    if getattr(prepare, "chat_template", None):
        content = [{"type": "image"}, {"type": "text", "text": text}]
        turn = [{"role": "user", "content": content}]
        return str(prepare.apply_chat_template(turn, add_generation_prompt=True, tokenize=False))
    token = getattr(prepare, "image_token", None)
    return f"{token}\n{text}" if token else text
