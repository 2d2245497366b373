"""What a computation costs, found on tensors without numbers: memory alive at any moment, FLOPs."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from scoretune.commands.plan.known_shapes import KnownShapes


@dataclass(frozen=True)
class Cost:
    """Bytes at the worst moment, beyond what was there before, and floating-point operations;
    `held` are bytes of what the work gave, with the graph behind it."""

    peak: float
    flops: float
    held: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.peak + other.peak, self.flops + other.flops, self.held + other.held)

    def __mul__(self, number: float) -> Cost:
        return Cost(self.peak * number, self.flops * number, self.held * number)


BATCHES = (2, 8)
"""Batches that are measured: one of 1 is laid out in memory in its own way."""


@dataclass(frozen=True)
class Curve:
    """Costs of any batch from those of two: nearly all of it grows with the batch."""

    few: Cost
    many: Cost
    batches: tuple[int, int] = BATCHES

    def at(self, batch: float) -> Cost:
        """Of so many rows; none cost nothing."""
        if batch <= 0:
            return Cost(0, 0)
        few, many = self.batches
        each = (self.many + self.few * -1) * (1 / (many - few))
        return self.few + each * (batch - few)

    def changed(self, change: Callable[[Cost], Cost]) -> Curve:
        """The same with both costs changed."""
        return Curve(change(self.few), change(self.many), self.batches)


_ATEN = torch.ops.aten
_FORMULAS = {
    **flop_registry,
    _ATEN._scaled_dot_product_flash_attention_for_cpu: flop_registry[
        _ATEN._scaled_dot_product_flash_attention
    ],
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        _ATEN._scaled_dot_product_flash_attention_backward
    ],
}
NOTHING = Curve(Cost(0, 0), Cost(0, 0))


def curve(
    work: Callable[[int], Any],
    resident: Iterable[Tensor] = (),
    *,
    batches: tuple[int, int] = BATCHES,
    then: Callable[[Any], Any] | None = None,
) -> Curve:
    """Costs of `work(batch)` with tensors `resident` that were there before, and of what is done
    with what it gives."""
    kept, (few, many) = list(resident), batches
    return Curve(cost(lambda: work(few), kept, then), cost(lambda: work(many), kept, then), batches)


def cost(
    work: Callable[[], Any],
    resident: Iterable[Tensor] = (),
    then: Callable[[Any], Any] | None = None,
) -> Cost:
    """Costs of some work on the meta device, and `then` of more with what it gives: every tensor
    from its making to its end."""
    profiler = _Profiler(resident)
    with _attention_in_pieces(), profiler:
        result = work()
        held = profiler.alive
        if then is not None:
            then(result)
    del result
    return Cost(float(profiler.peak), float(profiler.flops), float(held))


SHAPES = KnownShapes()
"""Of all costs in this process: what torch says of a shape it says again."""


class _Profiler(TorchDispatchMode):
    """Adds up the bytes of storages as operations make them, and takes them off as they end.

    It counts FLOPs by torch's own formulas, but not through torch's own counter: that one keeps
    recomputed activations alive.
    """

    def __init__(self, resident: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive, self.peak, self.flops = 0, 0, 0
        self.seen = {tensor.untyped_storage()._cdata for tensor in resident}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = SHAPES(func, args, kwargs)
        formula = _FORMULAS.get(func.overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=output)
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor):
                self._enter(leaf.untyped_storage())
        return output

    def _enter(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.seen:
            return
        self.seen.add(key)
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._leave, key, size)

    def _leave(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.alive -= size


@contextmanager
def _attention_in_pieces() -> Iterator[None]:
    """Within this context attention makes no matrix of all pairs: devices do not, and the meta
    device would (FlashAttention, arXiv 2205.14135).

    The function is exchanged, not overridden by a mode: backward passes would leave the mode, and
    recomputed activations then differ from the first ones.
    """
    usual = vars(F)["scaled_dot_product_attention"]
    vars(F)["scaled_dot_product_attention"] = partial(_attend, usual)
    try:
        yield
    finally:
        vars(F)["scaled_dot_product_attention"] = usual


def _attend(
    usual: Callable[..., Any],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    fits = query.dim() == 4 and query.shape[-1] == value.shape[-1] and not enable_gqa
    if not fits:
        return usual(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if attn_mask is not None and attn_mask.dtype is torch.bool:
        attn_mask = attn_mask.to(query.dtype)
    flash = _ATEN._scaled_dot_product_flash_attention_for_cpu
    return flash(query, key, value, 0.0, is_causal, attn_mask=attn_mask, scale=scale)[0]
