"""The value of a linear diffusion with a quadratic reward, in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class Linear:
    """dx = (Ax + b)dt + noise of covariance `spread` a unit of time, reward rate x'Qx + q·x + r."""

    matrix: Array
    offset: Array
    spread: Array
    square: Array
    slope: Array
    constant: float

    def value(self, discount: float) -> tuple[Array, Array, float] | None:
        """P, p and c of V(x) = x'Px + p·x + c; None where V is infinite.

        A'P + PA − ρP + Q = 0, (A' − ρ)p + q + 2Pb = 0 and ρc = r + b·p + tr(P·spread).
        """
        a, size = self.matrix, len(self.offset)
        one = np.eye(size)
        if np.linalg.eigvals(a).real.max() >= discount / 2:
            return None
        system = np.kron(a.T, one) + np.kron(one, a.T) - discount * np.eye(size**2)
        p2 = np.linalg.solve(system, -self.square.ravel()).reshape(size, size)
        p1 = np.linalg.solve(a.T - discount * one, -(self.slope + 2 * p2 @ self.offset))
        flow = self.constant + self.offset @ p1 + np.trace(p2 @ self.spread)
        return np.asarray(p2, float), np.asarray(p1, float), float(flow) / discount
