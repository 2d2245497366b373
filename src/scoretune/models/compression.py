"""A compressed model: how its data were measured, and are recovered from measurements.

Data x of a shape are y = A x, m numbers, of which a score network learns the law. By the decoder
`sparse` x̂ is the solution of ½‖Ax − y‖² + λ‖c‖₁, x = Ψc (`scoretune.compressed`), looked for from
the best linear guess where the model has one; by `linear` it is that guess. Pictures are taken as
they are.
Points and series are standardised first, column by column; where most numbers are 0 they are only
scaled, since their mean would fill the zeros.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from scoretune.compressed import (
    BASES,
    OPERATORS,
    Operator,
    decode,
    fingerprint,
    in_basis,
)
from scoretune.compressed.linear import LinearDecoder
from scoretune.compressed.operators import Dense, Drawn
from scoretune.core.records import spans
from scoretune.models.networks import Content

Decoder = Literal["sparse", "linear"]

TOGETHER = 256
"""States that are measured at once."""


@dataclass
class Certificate:
    """Of all that was decoded: how many, how many missed the precision, and the worst."""

    precision: float
    decoded: int = 0
    missed: int = 0
    worst: float = 0.0
    iterations: int = 0

    def add(self, kkt: Tensor, iterations: Tensor) -> None:
        self.decoded += len(kkt)
        self.missed += int((~(kkt <= self.precision)).sum())
        self.worst = max([self.worst, *kkt.tolist()])
        self.iterations += int(iterations.sum())

    def reset(self) -> None:
        self.decoded = self.missed = self.iterations = 0
        self.worst = 0.0

    def as_dict(self) -> dict[str, float]:
        mean = self.iterations / max(self.decoded, 1)
        return {
            "decoded": self.decoded,
            "missed": self.missed,
            "worst": self.worst,
            "iterations": round(mean, 1),
        }

    def warnings(self) -> list[str]:
        """A line where the decoder has not converged."""
        if not self.missed:
            return []
        return [
            f"the decoder stopped early for {self.missed} of {self.decoded} samples (worst "
            f"violation of optimality {self.worst:.2g} of the weight, wanted {self.precision:g}): "
            "train with more compress.iterations, or a larger compress.weight or compress.precision"
        ]


@dataclass(frozen=True)
class Compression:
    """Data of a `shape`, the operator `measuring` them, and the decoder's settings; `center` and
    `scale` broadcast to a state. `linear` is the linear decoder, where the sparse one begins;
    without it, at 0."""

    shape: tuple[int, ...]
    content: Content
    measuring: Drawn
    basis: str
    weight: float
    box: bool
    iterations: int
    precision: float
    center: Tensor
    scale: Tensor
    linear: LinearDecoder | None = None
    decoder: Decoder = "sparse"
    certificate: Certificate = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.decoder == "linear" and self.linear is None:
            raise ValueError("the linear decoder is missing")
        object.__setattr__(self, "certificate", Certificate(self.precision))

    @property
    def dimension(self) -> int:
        return math.prod(self.shape)

    @property
    def m(self) -> int:
        return self.measuring.m

    @property
    def seed(self) -> int:
        return self.measuring.seed

    @property
    def operator(self) -> str:
        """Its kind, by name."""
        return next(name for name, kind in OPERATORS.items() if type(self.measuring) is kind)

    def standardised(self, data: Tensor) -> Tensor:
        return (data - self.center.to(data)) / self.scale.to(data)

    def measure(self, data: Tensor) -> Tensor:
        """Data [B, *shape] in their own units as measurements [B, m]."""
        states = self.standardised(data).flatten(1)
        parts = [self.measuring.forward(states[span]) for span in spans(len(states), TOGETHER)]
        return torch.cat(parts)

    def recover(self, y: Tensor) -> Tensor:
        """Measurements [B, m] as data [B, *shape], with the gradient of the decoder's answer."""
        exact = y if y.dtype in (torch.float32, torch.float64) else y.float()
        if self.decoder == "linear" and self.linear is not None:
            coefficients = self.linear(exact)
        else:
            coefficients = self._sparsest(exact)
        states = BASES[self.basis](self.shape).synthesis(coefficients).to(y)
        return states * self.scale.to(y) + self.center.to(y)

    def _sparsest(self, y: Tensor) -> Tensor:
        """Coefficients [B, d] by sparse recovery, noted in the certificate."""
        recovery = decode(
            self._sparse,
            y,
            self.weight,
            box=(0.0, 1.0) if self.box else None,
            iterations=self.iterations,
            tolerance=self.precision,
            start=None if self.linear is None else self.linear(y.detach()),
        )
        self.certificate.add(recovery.kkt, recovery.iterations)
        return recovery.x

    @cached_property
    def _sparse(self) -> Operator:
        """Measurements of coefficients."""
        return in_basis(self.measuring, BASES[self.basis](self.shape))

    def described(self) -> dict[str, Any]:
        """What a file says in words; `tensors` are the rest."""
        names = ("content", "m", "operator", "seed", "basis", "weight", "box", "iterations")
        words = {name: getattr(self, name) for name in (*names, "precision", "decoder")}
        return {**words, "shape": list(self.shape)}

    def tensors(self) -> dict[str, Tensor]:
        """Statistics, and numbers by which the operator is known."""
        kept = {"center": self.center, "scale": self.scale}
        if self.linear is not None:
            kept |= {"slopes": self.linear.slopes.matrix, "offset": self.linear.offset}
        return {**kept, "fingerprint": fingerprint(self.measuring)}

    @classmethod
    def restored(cls, described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Compression:
        """From what `described` and `tensors` gave. Raises ValueError for another operator."""
        words, shape = dict(described), tuple(described["shape"])
        name, m, seed = (words.pop(part) for part in ("operator", "m", "seed"))
        measuring = OPERATORS[name](m, math.prod(shape), seed)
        drawn, stored = fingerprint(measuring), tensors["fingerprint"]
        if drawn.shape != stored.shape or not torch.allclose(drawn, stored, rtol=0, atol=1e-6):
            raise ValueError(
                f"seed {seed} draws another {name} operator here than the one that took its "
                "measurements"
            )
        linear = None  # of models that were saved without, and of fast operators
        if "slopes" in tensors:
            linear = LinearDecoder(Dense(tensors["slopes"]), tensors["offset"])
        return cls(
            **{**words, "shape": shape},
            measuring=measuring,
            center=tensors["center"],
            scale=tensors["scale"],
            linear=linear,
        )


def standards(states: Tensor, content: Content) -> tuple[Tensor, Tensor]:
    """Center and scale of data [n, *S], in a shape that broadcasts to a state."""
    one = states.new_ones((1,) * (states.dim() - 1))
    if content == "images":
        return 0 * one, one
    others = [d for d in range(states.dim()) if d != 1]
    spread, mean = (f(others, keepdim=True)[0] for f in (states.std, states.mean))
    if float((states == 0).float().mean()) > 0.5:
        return torch.zeros_like(mean), spread
    return mean, spread
