"""The few words that miniatures read: a word-level tokenizer for every text encoder of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

WORDS = ("a", "and", "red", "green", "blue", "bright", "dark", "circle", "square", "sky", "sea")
SPECIAL = ("<pad>", "<start>", "<end>", "<unknown>")
VOCABULARY: int = len(SPECIAL) + len(WORDS)
"""How many token numbers there are, 0 to VOCABULARY - 1."""
PROMPTS = ("a red circle", "a blue square and a green sea", "a dark sky", "a bright red sea")
"""Prompts of these words, none of more than nine tokens."""


def tokenizer(length: int = 10, words: Iterable[str] = WORDS, spelt: bool = False) -> Any:
    """Words to numbers: <pad> 0, <start> 1 before, <end> 2 behind, any other word <unknown>.

    `spelt`: every letter is a word.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {w: number for number, w in enumerate(dict.fromkeys((*SPECIAL, *words)))}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    if spelt:
        letters = pre_tokenizers.Split(Regex("."), "isolated")
        inner.pre_tokenizer = pre_tokenizers.Sequence([inner.pre_tokenizer, letters])
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
