"""A random language model of a few thousand weights that reads bytes, and pairs for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

PAIRS = [
    {"prompt": "two and two", "chosen": " is four", "rejected": " is five, or so they say"},
    {"prompt": "the sky", "chosen": " is blue by day and black by night", "rejected": " is"},
    {"prompt": "a cat", "chosen": " sleeps", "rejected": " barks"},
    {"prompt": "red", "chosen": " is a colour of the evening", "rejected": " is a number"},
    {"prompt": "ice", "chosen": " melts", "rejected": " burns, and then it rains for a week"},
    {"prompt": "the end", "chosen": " comes last", "rejected": " comes first of all"},
    {"prompt": "a long way", "chosen": " home", "rejected": " to nowhere in particular"},
    {"prompt": "one more", "chosen": " thing to say about it", "rejected": " thing"},
]


def tokenizer() -> Any:
    """Bytes, and an end."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({sign: number for number, sign in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", pad_token="<pad>")


def model(seed: int = 0) -> Any:
    """GPT-2's architecture: two layers, 32 wide; its weights large enough to have opinions."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    made = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=258,
            n_positions=64,
            n_embd=32,
            n_layer=2,
            n_head=2,
            bos_token_id=256,
            eos_token_id=256,
            initializer_range=0.2,
        )
    )
    return made.eval()


def folder(path: Path, seed: int = 0) -> Path:
    """A model folder as transformers writes it."""
    model(seed).save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path
