"""Whether numbers are finite: what is neither NaN nor infinite."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers of a tensor are finite. Whole numbers are; so is an empty tensor."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    return bool(tensor.isfinite().all())


def nonfinite(tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> list[str]:
    """The names of the tensors that hold a number that is not finite."""
    pairs = tensors.items() if isinstance(tensors, Mapping) else tensors
    return [name for name, tensor in pairs if not is_finite(tensor)]
