"""What a network is told of prompts: one tensor, or several by name, and what "no prompt" is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self, TypeAlias, cast

import torch
from torch import Tensor


@dataclass(frozen=True)
class Record:
    """Tensors, conditions, and whatever else, by name."""

    def to(self, device: torch.device | None) -> Self:
        """The same on another device; None for where it is."""
        movable = {n: v for n, v in vars(self).items() if isinstance(v, Tensor | Record)}
        return replace(self, **{name: value.to(device) for name, value in movable.items()})


@dataclass(frozen=True)
class Named(Record):
    """What a network is told of prompts, by the names of its call's arguments.

    `rows` have a row [1, …] for each prompt: states, pooled states, masks, sizes. `shared` is the
    same for all of them: tables of places, switches. Texts of several lengths L, [B, L, …], lie in
    one batch where a mask tells them apart (`masked`): the shorter are filled up with zeros, in the
    mask too. `summary` names the rows [B, L, D] that critics read.
    """

    rows: Mapping[str, Tensor]
    shared: Mapping[str, Any] = field(default_factory=dict)
    summary: str = ""
    masked: bool = True

    def __len__(self) -> int:
        return len(next(iter(self.rows.values())))

    def __getitem__(self, index: Any) -> Named:
        return replace(self, rows={name: rows[index] for name, rows in self.rows.items()})

    @property
    def device(self) -> torch.device:
        return next(iter(self.rows.values())).device

    def to(self, device: Any) -> Named:
        rows = {name: rows.to(device) for name, rows in self.rows.items()}
        shared = {name: _moved(value, device) for name, value in self.shared.items()}
        return replace(self, rows=rows, shared=shared)

    def fits(self, other: Named) -> bool:
        """Whether both go into one batch."""
        shapes = ([rows.shape[1:] for rows in each.rows.values()] for each in (self, other))
        return self.masked or next(shapes) == next(shapes)


def _moved(value: Any, device: Any) -> Any:
    """Tensors, alone or in a tuple, on another device."""
    if isinstance(value, tuple):
        return tuple(_moved(each, device) for each in value)
    return value.to(device) if isinstance(value, Tensor) else value


Tokens: TypeAlias = Tensor | Named
"""What one tensor [B, L, D] can say of prompts, or several by name."""


def joined(parts: Sequence[Tokens]) -> Tokens:
    """Tokens of parts of a batch as those of the batch. Raises ValueError for texts of several
    lengths that no mask tells apart."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(cast("list[Tensor]", list(parts)))
    named = cast("Sequence[Named]", parts)
    if not all(first.fits(part) for part in named):
        raise ValueError("texts of several lengths need a mask to be in one batch")
    each = ((name, [part.rows[name] for part in named]) for name in first.rows)
    return replace(first, rows={name: torch.cat(_padded(rows)) for name, rows in each})


def _padded(parts: Sequence[Tensor]) -> list[Tensor]:
    """Tensors [B, L, …] with zeros behind the shorter."""
    if parts[0].dim() < 2:
        return list(parts)
    longest = max(part.shape[1] for part in parts)
    return [
        torch.cat([p, p.new_zeros(len(p), longest - p.shape[1], *p.shape[2:])], 1)
        if p.shape[1] < longest
        else p
        for p in parts
    ]


@dataclass(frozen=True)
class Condition(Record):
    """Encoded prompts: `tokens` of B prompts, and what "no prompt" looks like, `null` (or None): a
    tensor [L, D] beside a tensor [B, L, D], else named tensors of one row, or of B where what is
    left without a prompt differs, as the pictures do that prompts edit (`own_nulls`).

    Guidance may be by the picture too: `blind` is one row without prompt and picture, and
    `image_guidance` the scale away from it; with None the picture is not left out.
    """

    tokens: Tokens
    null: Tokens | None = None
    own_nulls: bool = False
    blind: Named | None = None
    image_guidance: float = 1.0

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def device(self) -> torch.device:
        return self.tokens.device

    @property
    def summary(self) -> Tensor:
        """What a critic reads of the prompts, [B, L, D]."""
        tokens = self.tokens
        return tokens if isinstance(tokens, Tensor) else tokens.rows[tokens.summary]

    @property
    def tensors(self) -> list[Tensor]:
        """All that there is of the prompts themselves."""
        return [self.tokens] if isinstance(self.tokens, Tensor) else [*self.tokens.rows.values()]

    def take(self, index: Tensor | slice) -> Condition:
        """The condition of some of the samples."""
        taken = replace(self, tokens=self.tokens[index])
        return replace(taken, null=cast(Named, self.null)[index]) if self.own_nulls else taken

    def of_one(self, count: int) -> Condition:
        """The condition of the first prompt, so many times."""
        return self.take(torch.zeros(count, dtype=torch.long, device=self.device))

    @property
    def unprompted(self) -> Tokens:
        """As many rows of "no prompt" as there are prompts. Raises ValueError without one."""
        null = self.null
        if null is None:
            raise ValueError("this model has no empty prompt")
        if isinstance(null, Tensor):
            tokens = cast(Tensor, self.tokens)
            return null.to(tokens).expand_as(tokens)
        return null if self.own_nulls else self._repeated(null)

    @property
    def twins(self) -> list[Tokens]:
        """What guidance is away from, as many rows each as there are prompts: without the picture
        as well where it is by that, and without the prompt."""
        blind = [] if self.blind is None else [self._repeated(self.blind)]
        return [*blind, self.unprompted]

    def _repeated(self, one: Named) -> Named:
        return one[torch.zeros(len(self), dtype=torch.long, device=one.device)]

    @property
    def in_one_batch(self) -> bool:
        """Whether prompts and "no prompt" go through a network together."""
        tokens, null = self.tokens, self.null
        return not isinstance(null, Named) or null.fits(cast(Named, tokens))

    def dropped(self, which: Tensor) -> Tokens:
        """The tokens with "no prompt" where `which` [B] is true. Raises ValueError without one."""
        both = joined([self.tokens, self.unprompted])
        places = torch.arange(len(self), device=which.device)
        return both[torch.where(which, places + len(self), places)]

    @staticmethod
    def joined(parts: Sequence[Condition]) -> Condition:
        """The conditions of parts of a batch as that of the batch."""
        whole = replace(parts[0], tokens=joined([part.tokens for part in parts]))
        if not whole.own_nulls:
            return whole
        return replace(whole, null=joined([cast(Named, part.null) for part in parts]))

    @staticmethod
    def none(batch: int) -> Condition:
        """The condition of an unconditional model."""
        return Condition(torch.zeros(batch, 0, 0))
