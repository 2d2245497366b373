"""Shapes at the door: formulas refuse tensors that would broadcast in silence, in one line.

Every check compares shapes alone, so that it costs next to nothing and never waits for a device. A
message names the arguments and their shapes. Raises ValueError.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def check_same_shape(**tensors: Tensor) -> None:
    """All of one shape; no broadcasting, not even of a size 1."""
    first, *others = tensors.values()
    if any(other.shape != first.shape for other in others):
        raise ValueError(f"{_listed(tensors)} must have the same shape")


def check_shape(shape: Sequence[int], **tensors: Tensor | None) -> None:
    """Each of exactly this shape; None is none."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.shape != tuple(shape):
            raise ValueError(f"{name} {list(tensor.shape)} must be {list(shape)}")


def check_rank(least: int, most: int | None = None, **tensors: Tensor) -> None:
    """Each with at least, and at most, so many dimensions."""
    for name, tensor in tensors.items():
        if tensor.dim() < least or (most is not None and tensor.dim() > most):
            wanted = f"{least}" if most == least else f"{least} or more"
            raise ValueError(f"{name} {list(tensor.shape)} must have {wanted} dimensions")


def check_batch(x: Tensor, **numbers: Tensor | float | None) -> None:
    """Each a number a sample, [B], of states x [B, *S]; what is no tensor is the same for all."""
    check_rank(1, x=x)
    for name, number in numbers.items():
        if isinstance(number, Tensor) and number.shape != x.shape[:1]:
            raise ValueError(
                f"{name} {list(number.shape)} must be [{len(x)}], one number for each sample of "
                f"{list(x.shape)}"
            )


def check_steps(dt: Tensor, **sums: Tensor) -> None:
    """Tensors [..., N] of one shape, and the lengths of their steps `dt` [..., N] or [N]."""
    check_same_shape(**sums)
    shape = next(iter(sums.values())).shape
    if not shape or dt.shape not in (shape, shape[-1:]):
        raise ValueError(
            f"dt {list(dt.shape)} must be the length of each step of {_listed(sums)}: of the same "
            "shape, or [N] for their last dimension"
        )


def _listed(tensors: dict[str, Tensor]) -> str:
    return ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items())
