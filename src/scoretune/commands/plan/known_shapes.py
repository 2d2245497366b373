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

Layout = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]
"""Of an output: its shape, its strides, its precision."""
PLAIN = (Tensor, nn.Parameter)


class KnownShapes:
    """What operations on the meta device put out, remembered by what they were given."""

    def __init__(self) -> None:
        self.outputs: dict[Any, tuple[type | None, tuple[Layout | None, ...]]] = {}
        self.functional: dict[Any, bool] = {}

    def __call__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The output of an operation, as torch gives it within a `TorchDispatchMode`."""
        functional = self.functional.get(func)
        if functional is None:
            functional = self.functional[func] = _is_functional(func)
        if not functional:
            return func(*args, **kwargs)
        named = _key(tuple(kwargs.items())) if kwargs else ()
        key = func, _key(args), named, torch.get_default_dtype()  # that of a whole number + 1.0
        remembered = self.outputs.get(key)
        if remembered is not None:
            container, layouts = remembered
            tensors = [None if layout is None else _empty(*layout) for layout in layouts]
            return tensors[0] if container is None else container(tensors)
        output = func(*args, **kwargs)
        container = type(output) if isinstance(output, list | tuple) else None
        tensors = [output] if container is None else list(output)
        if _are_new(tensors, _tensors((*args, *kwargs.values()))):
            self.outputs[key] = container, tuple(None if t is None else _layout(t) for t in tensors)
        return output


def _is_functional(func: Any) -> bool:
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


def _layout(tensor: Tensor) -> Layout:
    return tuple(tensor.shape), tensor.stride(), tensor.dtype


def _empty(shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty_strided(shape, strides, dtype=dtype, device="meta")


def _are_new(outputs: list[Any], inputs: list[Tensor]) -> bool:
    """Whether these outputs of these inputs can be made again by `_empty`: all are without numbers,
    and each output has its storage for itself, as large as it must be."""
    tensors = [output for output in outputs if output is not None]
    everything = (*tensors, *inputs)
    if not all(type(t) in PLAIN and t.device.type == "meta" for t in everything):
        return False
    before = {tensor.untyped_storage()._cdata for tensor in inputs}
    storages = {tensor.untyped_storage()._cdata for tensor in tensors} - before
    return len(storages) == len(tensors) and all(map(_is_whole, tensors))


def _is_whole(tensor: Tensor) -> bool:
    alike = _empty(*_layout(tensor)).untyped_storage()
    odd = tensor.is_conj() or tensor.is_neg() or tensor.storage_offset() > 0
    return not odd and alike.nbytes() == tensor.untyped_storage().nbytes()


def _tensors(values: tuple[Any, ...]) -> list[Tensor]:
    """All tensors among the arguments of an operation."""
    tensors: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            tensors.append(value)
        elif isinstance(value, list | tuple):
            tensors += _tensors(tuple(value))
    return tensors
