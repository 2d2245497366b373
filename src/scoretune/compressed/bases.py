"""Orthonormal bases in which data may be sparse: x = Ψ c, c = Ψᵀ x.

A basis is made for the `shape` of a state: pictures [C, H, W] are transformed over height and
width, channel by channel, series [columns, window] over time and points [d] over their numbers.
`analysis` gives coefficients [B, d], `synthesis` states [B, *shape].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

_ROOT3 = math.sqrt(3)
FILTERS: dict[str, tuple[float, ...]] = {
    "haar": (1 / math.sqrt(2),) * 2,
    "db2": tuple(v / (4 * math.sqrt(2)) for v in (1 + _ROOT3, 3 + _ROOT3, 3 - _ROOT3, 1 - _ROOT3)),
    "db4": (
        0.2303778133088965,
        0.7148465705529156,
        0.6308807679298589,
        -0.027983769416859854,
        -0.18703481171909309,
        0.030841381835560764,
        0.0328830116668852,
        -0.010597401785069032,
    ),
}
"""Low-pass filters of Daubechies' orthonormal wavelets with 1, 2 and 4 vanishing moments."""


class Basis(Protocol):
    """An orthonormal basis of states of one shape."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def analysis(self, x: Tensor) -> Tensor: ...
    def synthesis(self, c: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Identity:
    """The numbers themselves."""

    shape: tuple[int, ...]

    def analysis(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def synthesis(self, c: Tensor) -> Tensor:
        return c.view(-1, *self.shape)


@dataclass(frozen=True)
class DCT:
    """Cosines: the orthonormal DCT-II, along both sides of pictures."""

    shape: tuple[int, ...]

    def analysis(self, x: Tensor) -> Tensor:
        return _along(x, self.shape, dct).flatten(1)

    def synthesis(self, c: Tensor) -> Tensor:
        return _along(c.view(-1, *self.shape), self.shape, inverse_dct)


@dataclass(frozen=True)
class Wavelet:
    """Daubechies' periodic wavelets, on as many levels as every side can be halved.

    A side is halved while it is even and not shorter than the filter.
    """

    shape: tuple[int, ...]
    filter: str = "haar"

    def __post_init__(self) -> None:
        if self.filter not in FILTERS:
            raise ValueError(f"no wavelet {self.filter!r}: give {', '.join(FILTERS)}")
        if not self.levels:
            raise ValueError(
                f"{self.filter} wavelets need even sides of {len(FILTERS[self.filter])} or more, "
                f"and a state has shape {list(self.shape)}"
            )

    @property
    def levels(self) -> int:
        taps, sides, levels = len(FILTERS[self.filter]), list(self.shape[-_axes(self.shape) :]), 0
        while all(side % 2 == 0 and side >= taps for side in sides):
            sides, levels = [side // 2 for side in sides], levels + 1
        return levels

    def analysis(self, x: Tensor) -> Tensor:
        out = x.clone()
        for level in range(self.levels):
            corner = self._corner(level)
            out[corner] = _along(out[corner], self.shape, self._split)
        return out.flatten(1)

    def synthesis(self, c: Tensor) -> Tensor:
        out = c.view(-1, *self.shape).clone()
        for level in reversed(range(self.levels)):
            corner = self._corner(level)
            out[corner] = _along(out[corner], self.shape, self._join)
        return out

    def _corner(self, level: int) -> tuple[Any, ...]:
        """Where the low-pass part of the levels before stands."""
        sides = self.shape[-_axes(self.shape) :]
        return (..., *(slice(side >> level) for side in sides))

    def _split(self, x: Tensor) -> Tensor:
        """Low- and high-pass halves of the last dimension, one after the other."""
        low, high = self._filters()
        shifted = [x.roll(-j, -1)[..., ::2] for j in range(len(low))]
        parts = [sum(h * s for h, s in zip(taps, shifted, strict=True)) for taps in (low, high)]
        return torch.cat([torch.as_tensor(part) for part in parts], -1)

    def _join(self, c: Tensor) -> Tensor:
        """The transpose of `_split`, which is its inverse."""
        low, high = c.chunk(2, -1)
        out = torch.zeros_like(c)
        for j, (h, g) in enumerate(zip(*self._filters(), strict=True)):
            wide = torch.zeros_like(c)
            wide[..., ::2] = h * low + g * high
            out = out + wide.roll(j, -1)
        return out

    def _filters(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        low = FILTERS[self.filter]
        return low, tuple((-1) ** j * h for j, h in enumerate(reversed(low)))


def _wavelet(name: str) -> Callable[[tuple[int, ...]], Basis]:
    return lambda shape: Wavelet(shape, name)


BASES: dict[str, Callable[[tuple[int, ...]], Basis]] = {
    "identity": Identity,
    "dct": DCT,
    **{name: _wavelet(name) for name in FILTERS},
}


def dct(x: Tensor) -> Tensor:
    """The orthonormal DCT-II of the last dimension, by one FFT of its length (Makhoul 1980).

    X_k = c_k Σ_n x_n cos(π(2n+1)k / 2N),   c_0 = √(1/N), c_k = √(2/N)
    """
    size = x.shape[-1]
    folded = torch.cat([x[..., ::2], x[..., 1::2].flip(-1)], -1)
    turned: Tensor = torch.fft.fft(folded) * _turn(size, x, -1)
    return turned.real * _scale(size, x)


def inverse_dct(c: Tensor) -> Tensor:
    """The inverse, and transpose, of `dct`."""
    size = c.shape[-1]
    plain = c / _scale(size, c)
    mirrored = torch.cat([torch.zeros_like(plain[..., :1]), plain[..., 1:].flip(-1)], -1)
    folded = torch.fft.ifft(torch.complex(plain, -mirrored) * _turn(size, c, 1)).real
    out = torch.empty_like(c)
    half = (size + 1) // 2
    out[..., ::2], out[..., 1::2] = folded[..., :half], folded[..., half:].flip(-1)
    return out


def _turn(size: int, like: Tensor, sign: int) -> Tensor:
    angle = torch.arange(size, device=like.device, dtype=like.dtype) * (sign * math.pi / 2 / size)
    return torch.polar(torch.ones_like(angle), angle)


def _scale(size: int, like: Tensor) -> Tensor:
    scale = torch.full((size,), math.sqrt(2 / size), device=like.device, dtype=like.dtype)
    scale[0] = math.sqrt(1 / size)
    return scale


def _axes(shape: tuple[int, ...]) -> int:
    """How many of the last dimensions are transformed."""
    return 2 if len(shape) == 3 else 1


def _along(x: Tensor, shape: tuple[int, ...], transform: Callable[[Tensor], Tensor]) -> Tensor:
    out = transform(x)
    if _axes(shape) == 2:
        out = transform(out.transpose(-1, -2)).transpose(-1, -2)
    return out
