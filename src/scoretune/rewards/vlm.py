"""A vision-language model as reward: a question about each picture in, odds of the answer out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from scoretune.core.errors import UserError
from scoretune.rewards.base import Precision
from scoretune.rewards.cache import Pixels
from scoretune.rewards.networks import pretrained
from scoretune.rewards.networks.vision_language import Answered

QUESTION = "Does this picture show the following? {prompt}\nAnswer with %s."
RATING = "How well does this picture show the following? {prompt}\nAnswer with a number, %s to %s."


@dataclass(frozen=True)
class Vlm(Answered):
    """What `model` answers about a picture, read off its next-token probabilities p; no gradient.

    With `answers` "yes,no" the score is p(yes) / (p(yes) + p(no)), in [0, 1] (arXiv 2404.01291
    asks for p(yes) alone); with more of them, the first one's share. With `scale` "1-5" it is the
    expectation sum k p(k) / sum p(k) of the rating, in [1, 5]. A word counts however it begins:
    yes, Yes, with and without a space before.

    model: folder or hub id of an image-text-to-text model of transformers; question: with {prompt}
    where the prompt is to stand; batch: pictures at once; cache: scores that are remembered;
    dtype: of the network.
    """

    model: str
    question: str = ""
    answers: str = "yes,no"
    scale: str = ""
    batch: int = 1
    cache: int = 4096
    revision: str | None = None
    dtype: Precision = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        _worth(self)

    def fingerprint(self) -> Mapping[str, str]:
        """The model with its hashes or commit, what it is asked, and what counts as an answer."""
        return {
            **pretrained.identity(self.model, revision=self.revision),
            "question": self.question or _question(self),
            "answers": ",".join(f"{word}={value:g}" for word, value in _worth(self).items()),
            "dtype": self.dtype,
        }

    def _score(self, pixels: Pixels, prompts: list[str]) -> list[float]:
        question = self.question or _question(self)
        texts = [question.replace("{prompt}", prompt) for prompt in prompts]
        # By way of `generate`, which knows each model's positions behind padding.
        output = self.vision_language.generate(
            self.vision_language.inputs(pixels, texts),
            max_new_tokens=1,
            num_beams=1,
            output_logits=True,
            return_dict_in_generate=True,
        )
        logs = output.logits[0].float().log_softmax(-1)
        words = torch.stack([logs[:, tokens].logsumexp(-1) for tokens in self._tokens], -1)
        worth = torch.tensor(list(_worth(self).values()), device=words.device)
        return [float(score) for score in words.softmax(-1) @ worth]

    @cached_property
    def _tokens(self) -> list[list[int]]:
        """The tokens that begin each answer: those that are the whole of it, in any form."""
        return [
            _forms(self.vision_language.processor.tokenizer, word, self.model)
            for word in _worth(self)
        ]


def _worth(reward: Vlm) -> dict[str, float]:
    """What each answer is worth."""
    if reward.scale:
        ends = re.fullmatch(r"(\d+)-(\d+)", reward.scale)
        low, high = (int(ends[1]), int(ends[2])) if ends else (0, 0)
        if not low < high <= low + 100:
            raise UserError(f"vlm(scale={reward.scale}): write it as 1-5, the lower number first")
        return {str(rating): float(rating) for rating in range(low, high + 1)}
    words = [word.strip() for word in re.split("[,/]", reward.answers)]
    if len(words) < 2 or not all(words) or len({word.casefold() for word in words}) < len(words):
        raise UserError(
            f'vlm(answers={reward.answers!r}): write two or more different words, as "yes,no"'
        )
    return {word: float(place == 0) for place, word in enumerate(words)}


def _question(reward: Vlm) -> str:
    """What is asked unless the user says otherwise."""
    words = list(_worth(reward))
    if reward.scale:
        return RATING % (words[0], words[-1])
    return QUESTION % " or ".join(words)


def _forms(tokenizer: Any, word: str, model: str) -> list[int]:
    """The single tokens that spell a word, in small letters or not, after a space or not."""
    cases = {word, word.lower(), word.capitalize(), word.upper()}
    forms = sorted(cases | {f" {case}" for case in cases})
    encoded = {tuple(tokenizer.encode(form, add_special_tokens=False)) for form in forms}
    # Some tokenizers put a space before all they read: there a bare digit is in the table only.
    vocabulary = tokenizer.get_vocab()
    single = {tokens[0] for tokens in encoded if len(tokens) == 1}
    single |= {vocabulary[case] for case in cases if case in vocabulary}
    single -= {tokenizer.unk_token_id}
    if not single:
        raise UserError(
            f"{word!r} is no single token of {model!r}, and only the next token is looked at: "
            "choose shorter answers="
        )
    return sorted(single)
