"""Does the text that a prompt asks for stand in the picture? The reward of Flow-GRPO.

A network of transformers reads the picture; the score compares what it finds with what was wanted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from scoretune.core.errors import UserError
from scoretune.rewards.base import Precision
from scoretune.rewards.cache import Memory, Pixels, eight_bit, metadata_of
from scoretune.rewards.networks import pretrained, vision_language

QUESTION = "Read the text in this picture. Answer with that text alone."
_QUOTED = re.compile(
    r'"([^"]+)"|“([^”]+)”|‘([^’]+)’|(?<!\w)\'(.+?)\'(?!\w)'  # an apostrophe opens nothing
)


def distance(one: str, other: str) -> int:
    """The Levenshtein distance: how many letters to insert, delete or replace."""
    row = list(range(len(other) + 1))
    for place, letter in enumerate(one, 1):
        corner, row[0] = row[0], place
        for column, against in enumerate(other, 1):
            replaced = corner + (letter != against)
            corner = row[column]
            row[column] = min(replaced, row[column] + 1, row[column - 1] + 1)
    return row[-1]


def agreement(found: str, wanted: str) -> float:
    """1 - min(distance / length of `wanted`, 1), in [0, 1], spaces and case ignored.

    As in arXiv 2505.05470, section 4; `wanted` must not be blank.
    """
    read, asked = ("".join(text.casefold().split()) for text in (found, wanted))
    return 1 - min(distance(read, asked) / len(asked), 1.0)


def wanted_text(prompt: str) -> str:
    """The metadata `text` of a prompt, or all that stands in quotes in it, joined by spaces.

    Quotes are "…", “…”, ‘…’ and '…'. Raises UserError for a prompt that wants no text.
    """
    told = metadata_of(prompt).get("text")
    text = told if isinstance(told, str) else ""
    if not text.strip():
        text = " ".join("".join(groups) for groups in _QUOTED.findall(prompt))
    if not text.strip():
        raise UserError(
            f"the prompt {str(prompt)!r} asks for no text: put what is to be read between quotes, "
            "or give a column 'text' beside it"
        )
    return text


@dataclass(frozen=True)
class Ocr:
    """How much of the wanted text `model` reads in a picture, 0 to 1; without a gradient.

    model: folder or hub id of a VisionEncoderDecoderModel (TrOCR, which reads one line) or of any
    image-text-to-text model; question: what the latter is asked, if it has a chat template (and
    then there is a default) or wants a word (Florence's `<OCR>`); tokens: at most so many are read;
    batch: pictures at once; cache: scores that are remembered; dtype: of the network.
    """

    model: str
    question: str = ""
    tokens: int = 64
    batch: int = 8
    cache: int = 4096
    revision: str | None = None
    dtype: Precision = "float32"

    def __post_init__(self) -> None:
        if self.tokens < 1 or self.batch < 1 or self.cache < 0:
            raise UserError(
                f"ocr(tokens={self.tokens}, batch={self.batch}, cache={self.cache}): tokens and "
                "batch must be 1 or more, cache 0 or more"
            )

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        for prompt in prompts:
            wanted_text(prompt)  # before anything is read
        self.network.to(images.device)
        return self.memory.scores(eight_bit(images), prompts, self._ask, self.batch)

    def read(self, pixels: Pixels) -> list[str]:
        """The text in each picture [B, H, W, 3]."""
        asked = self._inputs(pixels).to(self.network.device, self.network.dtype)
        end = getattr(self.processor, "message_end_token", None)  # GOT-OCR does not end by itself
        stop = {"stop_strings": end, "tokenizer": self.processor.tokenizer} if end else {}
        with torch.no_grad():
            tokens = self.network.generate(
                **asked, max_new_tokens=self.tokens, do_sample=False, **stop
            )
        if not self.network.config.is_encoder_decoder:
            tokens = tokens[:, asked["input_ids"].shape[1] :]
        texts = self.processor.batch_decode(tokens, skip_special_tokens=True)
        return [text.split(end)[0] if end else text for text in texts]

    def fingerprint(self) -> Mapping[str, str]:
        """The model with its hashes or commit, and what it is asked."""
        return {
            **pretrained.identity(self.model, revision=self.revision),
            "question": self._question,
            "tokens": str(self.tokens),
            "dtype": self.dtype,
        }

    @cached_property
    def memory(self) -> Memory:
        """The scores that were given before."""
        return Memory(self.cache)

    @cached_property
    def network(self) -> Any:
        """The model, frozen."""
        dtype = getattr(torch, self.dtype)
        return vision_language.network(self.model, revision=self.revision, dtype=dtype)

    @cached_property
    def processor(self) -> Any:
        """What prepares pictures, and turns tokens into text."""
        return vision_language.processor(self.model, revision=self.revision)

    @property
    def _question(self) -> str:
        chats = bool(getattr(self.processor, "chat_template", None))
        return self.question or (QUESTION if chats else "")

    def _inputs(self, pixels: Pixels) -> Any:
        if self._question:
            return vision_language.questions(self.processor, pixels, [self._question] * len(pixels))
        return self.processor(images=vision_language.pictures(pixels), return_tensors="pt")

    def _ask(self, pixels: Pixels, prompts: list[str]) -> list[float]:
        pairs = zip(self.read(pixels), prompts, strict=True)
        return [agreement(found, wanted_text(prompt)) for found, prompt in pairs]
