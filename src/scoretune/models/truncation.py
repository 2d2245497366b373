"""How many tokens of a prompt a pipeline does not read: seen in its own calls of its tokenizers."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class _Watched:
    """Stands in a tokenizer's place: of every text that it cuts to a length it also counts the
    tokens of the whole, of which the pipeline keeps `most` in any case."""

    def __init__(
        self, tokenizer: Any, name: str, cuts: dict[str, tuple[int, int]], most: int
    ) -> None:
        self.tokenizer, self.name, self.cuts, self.most = tokenizer, name, cuts, most

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def __call__(self, text: Any, *args: Any, **arguments: Any) -> Any:
        if arguments.get("truncation"):
            whole = {k: v for k, v in arguments.items() if k in ("text_pair", "add_special_tokens")}
            length = arguments.get("max_length") or self.tokenizer.model_max_length
            length = min(length, self.most)
            rows = self.tokenizer(text, **whole).input_ids
            longest = max(map(len, [rows] if isinstance(text, str) else rows))
            if longest > length:
                self.cuts[self.name] = (longest - length, length)
        return self.tokenizer(text, *args, **arguments)


@contextmanager
def watched(pipeline: Any) -> Iterator[dict[str, tuple[int, int]]]:
    """Within this context what tokenizers cut off is noted by their names: how many tokens, and how
    many they leave.

    Where a pipeline puts prompts into a template of its own, it encodes more and keeps
    `max_sequence_length` behind the template's beginning.
    """
    begins, most = vars(pipeline).get("prompt_template_encode_start_idx"), sys.maxsize
    if begins is not None:
        called = inspect.signature(type(pipeline).__call__).parameters
        most = begins + called["max_sequence_length"].default
    cuts: dict[str, tuple[int, int]] = {}
    parts = {n: p for n, p in pipeline.components.items() if n.startswith("tokenizer") and p}
    vars(pipeline).update({name: _Watched(part, name, cuts, most) for name, part in parts.items()})
    try:
        yield cuts
    finally:
        vars(pipeline).update(parts)
