"""Classes as prompts: a class's name, or its number as text, and as one-hot vectors."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from scoretune.core.errors import UserError


@dataclass(frozen=True)
class Labels:
    """`count` classes, 0 to count - 1, of which some have `names`."""

    count: int
    names: Mapping[str, int] = field(default_factory=dict)

    def number(self, text: str) -> int:
        """The class that a text names. Raises UserError with the nearest name."""
        name = text.strip()
        if name in self.names:
            return self.names[name]
        if name.isdecimal() and int(name) < self.count:
            return int(name)
        raise UserError(f"unknown class {text!r}: {self._hint(name)}")

    def one_hot(self, texts: Sequence[str], *, empty: bool) -> Tensor:
        """One token a text, [B, 1, count], 1 at its class and 0 elsewhere.

        No text is no class: a token of zeros, or with `empty` a class of its own behind the others,
        [B, 1, count + 1].
        """
        numbers = [self.number(text) if text.strip() else self.count for text in texts]
        wide = F.one_hot(torch.tensor(numbers), self.count + 1).float()[:, None]
        return wide if empty else wide[..., : self.count]

    def _hint(self, name: str) -> str:
        near = difflib.get_close_matches(name, self.names, n=1, cutoff=0.5)
        if near:
            return f"did you mean {near[0]!r}?"
        either = f", or a name such as {min(self.names)!r}" if self.names else ""
        return f"give a number from 0 to {self.count - 1}{either}"
