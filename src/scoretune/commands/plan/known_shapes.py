"""Operations on the meta device, each worked out once for the same shapes.

torch finds the shape of most outputs in Python, in a millisecond or so, and a network asks for the
same ones block after block, a video's decoder frame after frame. From the second time on it takes
microseconds here. Nothing is estimated: what gives no tensors of its own (a view, an operation in
place) or depends on numbers is left to torch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

Known = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]
"""Of an output: its shape, its strides, its precision."""
PLAIN = (Tensor, nn.Parameter)


class KnownShapes:
    """What operations on the meta device put out, remembered by what they were given."""

    def __init__(self) -> None:
        self.known: dict[Any, tuple[type | None, tuple[Known | None, ...]]] = {}
        self.fresh: dict[Any, bool] = {}

    def __call__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The output of an operation, as torch gives it within a `TorchDispatchMode`."""
        fresh = self.fresh.get(func)
        if fresh is None:
            fresh = self.fresh[func] = _is_fresh(func)
        if not fresh:
            return func(*args, **kwargs)
        named = _key(tuple(kwargs.items())) if kwargs else ()
        key = func, _key(args), named, torch.get_default_dtype()  # that of a whole number + 1.0
        found = self.known.get(key)
        if found is not None:
            kind, told = found
            made = [None if one is None else _made(*one) for one in told]
            return made[0] if kind is None else kind(made)
        output = func(*args, **kwargs)
        kind = type(output) if isinstance(output, list | tuple) else None
        outputs = (output,) if kind is None else tuple(output)
        if _are_new(outputs, _tensors((*args, *kwargs.values()))):
            known = (None if one is None else (*_layout(one), one.dtype) for one in outputs)
            self.known[key] = (kind, tuple(known))
        return output


def _is_fresh(func: Any) -> bool:
    """Whether an operation says that it neither changes nor returns what it is given."""
    schema = func._schema
    return all(one.alias_info is None for one in (*schema.arguments, *schema.returns))


def _key(value: Any) -> Any:
    """What decides about shapes: of a tensor its layout and precision, of all else what it is. One
    and 1.0 are different, since precisions follow from them."""
    kind = type(value)
    if kind in PLAIN:
        odd = value.is_conj(), value.is_neg()
        return value.device.type, value.dtype, value.shape, value.stride(), odd
    if kind in (list, tuple):
        return kind, tuple([_key(one) for one in value])
    return kind, value


def _layout(tensor: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(tensor.shape), tensor.stride()


def _made(shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty_strided(shape, strides, dtype=dtype, device="meta")


def _are_new(outputs: tuple[Any, ...], inputs: list[Tensor]) -> bool:
    """Whether these outputs of these inputs can be made again by `_made`: all are without numbers,
    and each output has its storage for itself, as large as it must be."""
    made = [one for one in outputs if one is not None]
    everything = (*made, *inputs)
    if not all(type(one) in PLAIN and one.device.type == "meta" for one in everything):
        return False
    before = {one.untyped_storage()._cdata for one in inputs}
    storages = {one.untyped_storage()._cdata for one in made} - before
    return len(storages) == len(made) and all(map(_is_whole, made))


def _is_whole(tensor: Tensor) -> bool:
    alike = _made(*_layout(tensor), tensor.dtype).untyped_storage()
    odd = tensor.is_conj() or tensor.is_neg() or tensor.storage_offset() > 0
    return not odd and alike.nbytes() == tensor.untyped_storage().nbytes()


def _tensors(values: tuple[Any, ...]) -> list[Tensor]:
    """All tensors among the arguments of an operation."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(tuple(value))
    return found
