"""Random numbers row by row, for one process or for one of several that make one batch together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class Rows(torch.Generator):
    """A generator of which `part` is one of `parts` that share every batch equally.

    Each of them draws the numbers of the whole batch and keeps its own rows, so that what a sample
    gets does not depend on how many processes there are. Drawing costs far less than a network.
    """

    part: int = 0
    parts: int = 1


def randn(shape: Sequence[int], generator: torch.Generator | None, **options: Any) -> Tensor:
    """Standard normal numbers of a shape [B, …], a row a sample."""
    return _rows(torch.randn, shape, generator, 0, options)


def rand(
    shape: Sequence[int], generator: torch.Generator | None, *, dim: int = 0, **options: Any
) -> Tensor:
    """Uniform numbers in [0, 1) of a shape that has the samples at `dim`."""
    return _rows(torch.rand, shape, generator, dim, options)


def randint(low: int, high: int, batch: int, generator: torch.Generator | None) -> Tensor:
    """Whole numbers from low to high − 1, [B], one a sample."""

    def draw(shape: Sequence[int], **options: Any) -> Tensor:
        return torch.randint(low, high, tuple(shape), **options)

    return _rows(draw, (batch,), generator, 0, {})


def _rows(
    draw: Callable[..., Tensor],
    shape: Sequence[int],
    generator: torch.Generator | None,
    dim: int,
    options: dict[str, Any],
) -> Tensor:
    if not isinstance(generator, Rows):
        return draw(tuple(shape), generator=generator, **options)
    whole, rows = list(shape), shape[dim]
    whole[dim] *= generator.parts
    return draw(whole, generator=generator, **options).narrow(dim, generator.part * rows, rows)
