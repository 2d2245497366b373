"""Measurement operators A: R^d -> R^m, all with E‖Ax‖² = ‖x‖², drawn from a seed alone.

`Gaussian` is a dense matrix (4md operations for A and its adjoint). `SubsampledDCT` and
`RandomisedHadamard` flip signs at random, apply an orthonormal transform and keep m of its rows:
matrix-free, O(d log d). States are rows: `forward` maps [B, d] to [B, m], `adjoint` back, and
`norm()` is the largest singular value, whose square is the Lipschitz constant of a least-squares
gradient. What a seed draws is drawn on the CPU in float64 and so is the same on every device.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from scoretune.compressed.bases import Basis, Identity, dct, inverse_dct

FINGERPRINT = 8
"""Numbers by which a stored operator is told from another."""
NARROW = 32
"""States up to which A xᵀ is faster than x Aᵀ, whose matrix would be transposed for few rows: half
the time for 4 to 16 states in float64 on a CPU."""


class Operator(Protocol):
    """A linear map of rows."""

    @property
    def m(self) -> int: ...
    @property
    def d(self) -> int: ...
    def forward(self, x: Tensor) -> Tensor: ...
    def adjoint(self, y: Tensor) -> Tensor: ...
    def norm(self) -> float: ...


@dataclass(frozen=True, eq=False)
class Dense:
    """The map of a given matrix [m, d]."""

    matrix: Tensor
    _copies: dict[tuple[torch.device, torch.dtype], Tensor] = field(
        default_factory=dict, init=False, repr=False
    )

    def __post_init__(self) -> None:
        if self.matrix.dim() != 2:
            raise ValueError(f"matrix {list(self.matrix.shape)} must have 2 dimensions")

    @property
    def m(self) -> int:
        return len(self.matrix)

    @property
    def d(self) -> int:
        return self.matrix.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        matrix = self._like(x)
        if x.dim() == 2 and len(x) <= NARROW:
            return (matrix @ x.T).T.contiguous()
        return x @ matrix.T

    def adjoint(self, y: Tensor) -> Tensor:
        return y @ self._like(y)

    def norm(self) -> float:
        return self._norm

    @cached_property
    def _norm(self) -> float:
        """From the smaller Gram matrix: exact, where power iteration stays below."""
        a = self.matrix.double()
        gram = a @ a.T if self.m <= self.d else a.T @ a
        return math.sqrt(max(float(torch.linalg.eigvalsh(gram)[-1]), 0.0))

    def _like(self, x: Tensor) -> Tensor:
        key = (x.device, x.dtype)
        if key not in self._copies:
            self._copies[key] = self.matrix.to(device=x.device, dtype=x.dtype)
        return self._copies[key]


@dataclass(frozen=True)
class _Seeded:
    """An operator that a seed draws: m measurements of d numbers."""

    m: int
    d: int
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.m <= self.d:
            raise ValueError(
                f"m={self.m} measurements of {self.d} numbers: give 1 <= m <= {self.d}"
            )

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)


@dataclass(frozen=True)
class Gaussian(_Seeded):
    """Independent N(0, 1/m) entries: ‖A‖ ≈ 1 + √(d/m)."""

    @cached_property
    def dense(self) -> Dense:
        normal = torch.randn(self.m, self.d, generator=self._generator(), dtype=torch.float64)
        return Dense(normal / math.sqrt(self.m))

    def forward(self, x: Tensor) -> Tensor:
        return self.dense.forward(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.dense.adjoint(y)

    def norm(self) -> float:
        return self.dense.norm()


@dataclass(frozen=True)
class _Subsampled(_Seeded, ABC):
    """√(D/m) · (m random rows of an orthonormal transform of length D, `padded`) · (random signs) ·
    (zeros to D)."""

    @property
    def padded(self) -> int:
        return self.d

    @abstractmethod
    def transform(self, x: Tensor) -> Tensor: ...
    @abstractmethod
    def inverse(self, c: Tensor) -> Tensor: ...

    @cached_property
    def _drawn(self) -> tuple[Tensor, Tensor]:
        """Which rows, and the signs."""
        generator = self._generator()
        rows = torch.randperm(self.padded, generator=generator)[: self.m].sort().values
        signs = torch.randint(0, 2, (self.d,), generator=generator) * 2 - 1
        return rows, signs.double()

    @cached_property
    def _copies(self) -> dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]]:
        return {}

    def _like(self, x: Tensor) -> tuple[Tensor, Tensor]:
        key = (x.device, x.dtype)
        if key not in self._copies:
            rows, signs = self._drawn
            self._copies[key] = rows.to(x.device), signs.to(x)
        return self._copies[key]

    def forward(self, x: Tensor) -> Tensor:
        rows, signs = self._like(x)
        wide = F.pad(x * signs, (0, self.padded - self.d))
        return self.transform(wide)[..., rows] * self.norm()

    def adjoint(self, y: Tensor) -> Tensor:
        rows, signs = self._like(y)
        wide = y.new_zeros(*y.shape[:-1], self.padded)
        wide[..., rows] = y * self.norm()
        return self.inverse(wide)[..., : self.d] * signs

    def norm(self) -> float:
        return math.sqrt(self.padded / self.m)


@dataclass(frozen=True)
class SubsampledDCT(_Subsampled):
    """√(d/m) · (m random rows of the orthonormal DCT-II) · (random signs): ‖A‖ = √(d/m)."""

    def transform(self, x: Tensor) -> Tensor:
        return dct(x)

    def inverse(self, c: Tensor) -> Tensor:
        return inverse_dct(c)


@dataclass(frozen=True)
class RandomisedHadamard(_Subsampled):
    """√(D/m) · (m random rows of the orthonormal Hadamard matrix) · (random signs) · (zeros to D).

    D is the least power of 2 that is d or more; the norm is √(D/m), or where D > d at most that.
    """

    @property
    def padded(self) -> int:
        return 1 << (self.d - 1).bit_length()

    def transform(self, x: Tensor) -> Tensor:
        return hadamard(x)

    def inverse(self, c: Tensor) -> Tensor:
        """The matrix is symmetric."""
        return hadamard(c)


@dataclass(frozen=True)
class InBasis:
    """A Ψ: measurements of what is given by its coefficients in a basis."""

    operator: Operator
    basis: Basis

    @property
    def m(self) -> int:
        return self.operator.m

    @property
    def d(self) -> int:
        return self.operator.d

    def forward(self, x: Tensor) -> Tensor:
        return self.operator.forward(self.basis.synthesis(x).flatten(1))

    def adjoint(self, y: Tensor) -> Tensor:
        return self.basis.analysis(self.operator.adjoint(y).view(-1, *self.basis.shape))

    def norm(self) -> float:
        """Ψ is orthonormal."""
        return self.operator.norm()


Drawn: TypeAlias = Gaussian | SubsampledDCT | RandomisedHadamard
"""What m, d and a seed say all about."""
OPERATORS: dict[str, type[Drawn]] = {
    "gaussian": Gaussian,
    "dct": SubsampledDCT,
    "hadamard": RandomisedHadamard,
}


def in_basis(operator: Operator, basis: Basis) -> Operator:
    """A Ψ as an operator, multiplied out where A is a matrix."""
    if isinstance(basis, Identity):
        return operator
    if isinstance(operator, Gaussian):
        rows = operator.dense.matrix
        return Dense(basis.analysis(rows.view(-1, *basis.shape)))
    return InBasis(operator, basis)


def fingerprint(operator: Operator) -> Tensor:
    """The first numbers [8 or m] of A applied to cos(1), cos(2), …, by which a drawn operator is
    told from one that another library, or another seed, draws."""
    wave = torch.arange(1, operator.d + 1, dtype=torch.float64).cos()
    return operator.forward(wave[None])[0, :FINGERPRINT]


def hadamard(x: Tensor) -> Tensor:
    """The orthonormal Walsh–Hadamard transform of the last dimension, of a length 2^k."""
    size = x.shape[-1]
    if size & (size - 1):
        raise ValueError(f"x {list(x.shape)} must have a power of 2 as its last dimension")
    out, half = x.reshape(-1, size), 1
    while half < size:
        pairs = out.view(-1, size // (2 * half), 2, half)
        first, second = pairs[:, :, 0], pairs[:, :, 1]
        out = torch.stack([first + second, first - second], 2).view(-1, size)
        half *= 2
    return (out / math.sqrt(size)).view(x.shape)
