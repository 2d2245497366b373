"""Critic and writer that are image-text-to-text models of transformers, in this process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from scoretune.core import distributed
from scoretune.core.records import spans
from scoretune.rewards.base import Precision
from scoretune.rewards.networks.vision_language import VisionLanguage
from scoretune.training.feedback.answers import critiques_by, plans_by
from scoretune.training.feedback.records import Answer, Critique, EditPlan, Shown


@dataclass(frozen=True)
class Chat:
    """A model that looks at pictures and answers in words, without sampling.

    model: folder or hub id; batch: pictures at once; tokens: of an answer, at most.
    """

    model: str
    batch: int = 1
    tokens: int = 512
    revision: str | None = None
    dtype: Precision = "float32"

    @cached_property
    def vision_language(self) -> VisionLanguage:
        """The model that answers, on this process's device."""
        model = VisionLanguage(self.model, self.revision, self.dtype)
        model.network.to(distributed.device())
        return model

    def ask(self, pictures: Sequence[Shown], questions: Sequence[str]) -> list[str]:
        """The answer to a question about each picture."""
        texts: list[str] = []
        for span in spans(len(questions), self.batch):
            texts += self._batch(pictures[span], questions[span])
        return texts

    def _batch(self, pictures: Sequence[Shown], questions: Sequence[str]) -> list[str]:
        pixels = torch.stack([(shown.pixels.cpu() * 255).round().byte() for shown in pictures])
        array = np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy())
        inputs: Any = self.vision_language.inputs(array, questions)
        output = self.vision_language.generate(inputs, max_new_tokens=self.tokens, num_beams=1)
        answered = output[:, inputs["input_ids"].shape[1] :]
        tokenizer = self.vision_language.processor.tokenizer
        return [str(text) for text in tokenizer.batch_decode(answered, skip_special_tokens=True)]


@dataclass(frozen=True)
class VlmCritic(Chat):
    """Asks a vision-language model for a critique in JSON."""

    def __call__(self, pictures: Sequence[Shown]) -> list[Answer[Critique]]:
        return critiques_by(self.ask, pictures)


@dataclass(frozen=True)
class VlmWriter(Chat):
    """Asks a vision-language model for instructions in JSON."""

    most: int = 3

    def __call__(
        self, pictures: Sequence[Shown], critiques: Sequence[Critique]
    ) -> list[Answer[EditPlan]]:
        return plans_by(self.ask, pictures, critiques, self.most)
