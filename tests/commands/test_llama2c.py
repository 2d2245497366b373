"""Checkpoints and vocabularies of llama2.c as transformers' models and tokenizers."""

from __future__ import annotations

import pytest
import torch

import llama2c_files
from scoretune.commands.reproduce import llama2c
from scoretune.core.errors import UserError


def test_the_network_is_the_one_that_the_file_describes(tmp_path):
    """Its first attention by hand, with neighbours rotated as llama2.c rotates them."""
    folder = llama2c_files.model(tmp_path)
    network = llama2c.model(folder / "stories260K.bin")
    width, heads = llama2c_files.WIDTH, llama2c_files.HEADS
    floats = torch.frombuffer(
        bytearray((folder / "stories260K.bin").read_bytes()[28:]), dtype=torch.float32
    )
    table = floats[: llama2c_files.TOKENS * width].view(-1, width)
    at = llama2c_files.TOKENS * width
    scale, at = floats[at : at + width], at + llama2c_files.LAYERS * width
    query = floats[at : at + width * width].view(width, width)
    x = table[torch.tensor([5, 7, 9])]
    x = x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-5) * scale
    pairs = torch.view_as_complex((x @ query.T).view(3, heads, -1, 2).contiguous())
    rate = 10000 ** (-torch.arange(0, width // heads, 2) / (width // heads))
    turn = torch.polar(torch.ones(3, len(rate)), torch.arange(3)[:, None] * rate)
    rotated = pairs * turn[:, None]

    layer = network.model.layers[0]
    seen = layer.self_attn.q_proj(
        layer.input_layernorm(network.model.embed_tokens(torch.tensor([[5, 7, 9]])))
    )
    halves = seen.view(3, heads, 2, -1)
    ours = torch.complex(halves[:, :, 0], halves[:, :, 1]) * turn[:, None]
    assert torch.allclose(ours, rotated, atol=1e-5)


def test_texts_become_the_pieces_of_best_score_and_bytes(tmp_path):
    words = llama2c.tokenizer(llama2c_files.model(tmp_path) / "tok512.bin")
    ids = words("the\n")["input_ids"]
    assert words.convert_ids_to_tokens(ids) == ["<0x20>", "the", "<0x0A>"]
    assert words.decode(words("he é")["input_ids"]) == "he é"


def test_a_file_of_another_kind_is_one_line(tmp_path):
    folder = llama2c_files.model(tmp_path)
    place = folder / "stories260K.bin"
    place.write_bytes(place.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"holds \d+ weights, and its header"):
        llama2c.model(place)
