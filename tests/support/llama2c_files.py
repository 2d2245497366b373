"""A random checkpoint and a vocabulary as llama2.c writes them, and judged pairs as PandaLM's."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path

import numpy as np

WIDTH, HIDDEN, LAYERS, HEADS, KEY_HEADS, TOKENS, LONGEST = 16, 24, 2, 4, 2, 264, 256
PIECES = ("t", "h", "e", "th", "the")


def model(folder: Path) -> Path:
    """Writes the three files into a folder, which it returns."""
    keys = KEY_HEADS * WIDTH // HEADS
    layer = 2 * WIDTH + 2 * WIDTH * WIDTH + 2 * keys * WIDTH + 3 * HIDDEN * WIDTH
    count = TOKENS * WIDTH + LAYERS * layer + WIDTH + LONGEST * WIDTH // HEADS
    header = struct.pack("7i", WIDTH, HIDDEN, LAYERS, HEADS, KEY_HEADS, TOKENS, LONGEST)
    weights = np.random.default_rng(0).normal(0, 0.2, count).astype("<f4")
    (folder / "stories260K.bin").write_bytes(header + weights.tobytes())
    signs = ["<unk>", "<s>", "</s>", *(f"<0x{number:02X}>" for number in range(256)), *PIECES]
    entries = (struct.pack("<fi", -float(n), len(s)) + s.encode() for n, s in enumerate(signs))
    (folder / "tok512.bin").write_bytes(struct.pack("i", 8) + b"".join(entries))
    rows = [
        {
            "instruction": f"say {number}",
            "input": "",
            "response1": "the " * (1 + number % 3) + f"{number}",
            "response2": f"no {number}",
            "annotator1": 1,
            "annotator2": number % 3,
            "annotator3": 1,
        }
        for number in range(24)
    ]
    with gzip.open(folder / "pandalm_testset-v1.json.gz", "wt") as file:
        json.dump(rows, file)
    return folder
