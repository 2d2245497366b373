"""Checkpoints and vocabularies of llama2.c (MIT), in transformers' own classes.

A checkpoint is seven int32 (width, hidden width, layers, heads, heads of keys, tokens, longest; a
negative number of tokens says that the head is not the embedding), then float32 weights in a fixed
order. A vocabulary is an int32, then for every token a float32 score, an int32 length and bytes.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoretune.core.errors import UserError

BYTES = range(3, 259)
"""Tokens of single bytes, after <unk>, <s> and </s>."""


def model(path: Path) -> Any:
    """The network as a LlamaForCausalLM. Raises UserError for a file of another shape."""
    from transformers import LlamaConfig, LlamaForCausalLM

    raw = path.read_bytes()
    if len(raw) < 28:
        raise UserError(f"{str(path)!r} is no checkpoint of llama2.c: it ends within its header")
    width, hidden, layers, heads, key_heads, tokens, longest = struct.unpack("7i", raw[:28])
    tied, tokens = tokens > 0, abs(tokens)
    config = LlamaConfig(
        vocab_size=tokens,
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        max_position_embeddings=longest,
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
    )
    network = LlamaForCausalLM(config)
    head, keys = width // heads, key_heads * (width // heads)
    shapes = {
        "model.embed_tokens.weight": (tokens, width),
        "input_layernorm.weight": (layers, width),
        "self_attn.q_proj.weight": (layers, width, width),
        "self_attn.k_proj.weight": (layers, keys, width),
        "self_attn.v_proj.weight": (layers, keys, width),
        "self_attn.o_proj.weight": (layers, width, width),
        "post_attention_layernorm.weight": (layers, width),
        "mlp.gate_proj.weight": (layers, hidden, width),
        "mlp.down_proj.weight": (layers, width, hidden),
        "mlp.up_proj.weight": (layers, hidden, width),
        "model.norm.weight": (width,),
        "angles": (longest, head),
        **({} if tied else {"lm_head.weight": (tokens, width)}),
    }
    floats = torch.from_numpy(np.frombuffer(raw[28:], dtype="<f4").copy())
    sizes = [int(np.prod(shape)) for shape in shapes.values()]
    if sum(sizes) != len(floats):
        raise UserError(f"{str(path)!r} holds {len(floats)} weights, and its header {sum(sizes)}")
    parts = zip(shapes.items(), floats.split(sizes), strict=True)
    network.load_state_dict(_named({n: p.view(s) for (n, s), p in parts}, head), strict=False)
    return network.eval()


def _named(weights: dict[str, Tensor], head: int) -> dict[str, Tensor]:
    """By transformers' names, layer by layer, with rotations of halves in place of neighbours."""
    named: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name.startswith(("model.", "lm_head.")):
            named[name] = value
        elif name != "angles":  # of the rotations, which transformers works out itself
            for layer, part in enumerate(value):
                if "q_proj" in name or "k_proj" in name:
                    pairs = part.view(-1, head // 2, 2, part.shape[1])
                    part = pairs.transpose(1, 2).reshape(part.shape)
                named[f"model.layers.{layer}.{name}"] = part
    return named


def tokenizer(path: Path) -> Any:
    """The vocabulary as a byte-pair encoding whose merges have the order of their scores."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    pieces = _pieces(path)
    vocabulary = {piece: number for number, (piece, _) in enumerate(pieces)}
    merges = [
        (-score, (piece[:cut], piece[cut:]))
        for piece, score in pieces[BYTES.stop :]
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]
    merges.sort(key=lambda merge: merge[0])
    inner = Tokenizer(
        models.BPE(
            vocabulary,
            [pair for _, pair in merges],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    inner.normalizer = normalizers.Prepend(" ")
    inner.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def _pieces(path: Path) -> list[tuple[str, float]]:
    """Every token and its score."""
    raw, at, pieces = path.read_bytes(), 4, []
    while at + 8 <= len(raw):
        score, size = struct.unpack("<fi", raw[at : at + 8])
        at += 8
        pieces.append((raw[at : at + size].decode("utf-8", "replace"), score))
        at += size
    if len(pieces) <= BYTES.stop:
        raise UserError(f"{str(path)!r} is no vocabulary of llama2.c: it has {len(pieces)} tokens")
    pieces[:3] = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]
    return pieces
