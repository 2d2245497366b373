"""Whether a network reads in a picture what its prompt asks for: the reward of Flow-GRPO."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Literal

from torch import Tensor

from scoretune.core.errors import UserError
from scoretune.rewards.base import Precision
from scoretune.rewards.cache import Cached, Pixels, metadata_of
from scoretune.rewards.networks import pretrained
from scoretune.rewards.networks.rapid_ocr import RapidOcr
from scoretune.rewards.networks.vision_language import Answered

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


def agreement(text: str, wanted: str) -> float:
    """1 - min(distance / length, 1) of `wanted`, spaces and case ignored (arXiv 2505.05470)."""
    letters, target = ("".join(words.casefold().split()) for words in (text, wanted))
    return 1 - min(distance(letters, target) / len(target), 1.0)


def wanted_text(prompt: str) -> str:
    """The metadata `text` of a prompt, or all that stands in quotes in it, joined by spaces.

    Quotes are "…", “…”, ‘…’ and '…'. Raises UserError for a prompt that wants no text.
    """
    column = metadata_of(prompt).get("text")
    text = column if isinstance(column, str) else ""
    if not text.strip():
        text = " ".join("".join(groups) for groups in _QUOTED.findall(prompt))
    if not text.strip():
        raise UserError(
            f"the prompt {str(prompt)!r} asks for no text: put what is to be read between quotes, "
            "or give a column 'text' beside it"
        )
    return text


@dataclass(frozen=True)
class Ocr(Answered):
    """How much of the wanted text is read in a picture, 0 to 1; without a gradient.

    engine: `transformers` reads by `model`; `rapidocr` by the networks that its package carries
    (extra `ocr`), on the CPU; `detect=false` takes a picture for one line of text, which is faster.
    model: folder or hub id of a VisionEncoderDecoderModel (TrOCR, which reads one line) or of
    any image-text-to-text model; question: what the latter is asked, if it has a chat template (and
    then there is a default) or wants a word (Florence's `<OCR>`); tokens: at most so many are read;
    batch: pictures at once; cache: scores that are remembered; dtype: of the network.
    """

    model: str = ""
    question: str = ""
    tokens: int = 64
    batch: int = 8
    cache: int = 4096
    revision: str | None = None
    dtype: Precision = "float32"
    engine: Literal["transformers", "rapidocr"] = "transformers"
    detect: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokens < 1:
            raise UserError(f"ocr(tokens={self.tokens}): tokens must be 1 or more")
        rapid = self.engine == "rapidocr"
        if not (rapid or self.model):
            raise UserError("ocr() needs engine=rapidocr, or model=, a folder or hub id")
        unread = ("model", "question", "tokens", "revision", "dtype") if rapid else ("detect",)
        given = [f.name for f in fields(self) if getattr(self, f.name) != f.default]
        for name in set(given) & set(unread):
            raise UserError(f"ocr(engine={self.engine}) does not read {name}: leave it out")

    def check_prompt(self, prompt: str) -> None:
        """Refuse a prompt that wants no text."""
        wanted_text(prompt)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        for prompt in prompts:
            self.check_prompt(prompt)  # before anything is read
        call = Cached.__call__ if self.engine == "rapidocr" else Answered.__call__
        return call(self, images, prompts)

    def read(self, pixels: Pixels) -> list[str]:
        """The text in each picture [B, H, W, 3]."""
        return self.rapid_ocr.read(pixels) if self.engine == "rapidocr" else self._answers(pixels)

    def fingerprint(self) -> Mapping[str, str]:
        """The networks with their hashes or commit, and what is asked of them."""
        if self.engine == "rapidocr":
            return self.rapid_ocr.fingerprint()
        return {
            **pretrained.identity(self.model, revision=self.revision),
            "question": self._question,
            "tokens": str(self.tokens),
            "dtype": self.dtype,
        }

    @cached_property
    def rapid_ocr(self) -> RapidOcr:
        """The networks of RapidOCR. Raises UserError where its packages are not installed."""
        return RapidOcr(self.detect)

    def _answers(self, pixels: Pixels) -> list[str]:
        model = self.vision_language
        inputs = model.inputs(pixels, [self._question] * len(pixels))
        end = getattr(model.processor, "message_end_token", None)  # GOT-OCR does not end by itself
        stop = {"stop_strings": end, "tokenizer": model.processor.tokenizer} if end else {}
        tokens = model.generate(inputs, max_new_tokens=self.tokens, **stop)
        if not model.network.config.is_encoder_decoder:
            tokens = tokens[:, inputs["input_ids"].shape[1] :]
        texts = model.processor.batch_decode(tokens, skip_special_tokens=True)
        return [text.split(end)[0] if end else text for text in texts]

    @property
    def _question(self) -> str:
        return self.question or (QUESTION if self.vision_language.chats else "")

    def _score(self, pixels: Pixels, prompts: list[str]) -> list[float]:
        pairs = zip(self.read(pixels), prompts, strict=True)
        return [agreement(text, wanted_text(prompt)) for text, prompt in pairs]
