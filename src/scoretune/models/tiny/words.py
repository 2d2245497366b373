"""The few words that miniatures read: a word-level tokenizer for every text encoder of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

WORDS = ("a", "and", "red", "green", "blue", "bright", "dark", "circle", "square", "sky", "sea")
SPECIAL = ("<pad>", "<start>", "<end>", "<unknown>")
VOCABULARY: int = len(SPECIAL) + len(WORDS)
"""How many token numbers there are, 0 to VOCABULARY - 1."""
PROMPTS = ("a red circle", "a blue square and a green sea", "a dark sky", "a bright red sea")
"""Prompts of these words, none of more than nine tokens."""


def tokenizer(length: int = 10, words: Iterable[str] = WORDS) -> PreTrainedTokenizerFast:
    """Words to numbers, <start> before and <end> behind; any other word is <unknown>.

    The ids of <pad>, <start> and <end> are 0, 1 and 2; `length` is `model_max_length`.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(dict.fromkeys((*SPECIAL, *words)))}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        model_max_length=length,
        pad_token="<pad>",
        bos_token="<start>",
        eos_token="<end>",
        unk_token="<unknown>",
    )
